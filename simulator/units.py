"""Unit constants and their formatting. SI inside; the unit is in every name."""

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
MiB, GiB = 2**20, 2**30
PICOSECONDS_PER_S = 10**12

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int32": 4, "int64": 8}


def format_bytes(num_bytes: float) -> str:
    """Decimal units, three significant digits: ``1.61 GB``."""
    for unit, size in (("TB", TB), ("GB", GB), ("MB", MB), ("kB", KB)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def format_seconds(duration_s: float) -> str:
    """Three significant digits in the unit that keeps them readable: ``35.9 ms``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(duration_s) >= size:
            return f"{duration_s / size:.3g} {unit}"
    return f"{duration_s / 1e-9:.3g} ns"


def format_figure(value: float) -> str:
    """Three digits at least, and no exponent where it is large: ``1,940``, ``0.0125``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
