"""Points: kernels timed one after another, each on disk before the next, until the time is over.

What a calibration is bound to (:func:`facts`) goes into its journal: on another GPU, driver or torch it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from calibration.journal import Journal
from calibration.rows import TimedRow
from simulator.kernel import ComputeKernel

SOURCE = "timed by attnplan on this machine"
DRIVER_FILE = Path("/proc/driver/nvidia/version")
JOURNAL_SUFFIX = ".points"


def journal_beside(output: Path) -> Path:
    """Where the points of the calibration that writes ``output`` are kept until it is written."""
    return output.with_name(output.name + JOURNAL_SUFFIX)


def facts(device: str, dtype: str) -> dict[str, str]:
    """What points depend on: ``cpu`` or ``cuda``'s name, its driver, torch, cores and the dtype."""
    import torch

    from executor.environment import cpu_name, usable_cores

    found = {"torch": torch.__version__, "dtype": dtype}
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return found | {"device": name, "driver": driver_version(DRIVER_FILE), "cuda": str(torch.version.cuda)}
    return found | {"device": cpu_name(), "cores": str(usable_cores())}


def driver_version(path: Path) -> str:
    """Of the kernel module: ``NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  …`` → 550.54.15."""
    try:
        found = re.search(r"Kernel Module\D*\s(\d[\d.]+)", path.read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group(1) if found else "unknown"


def time_points(
    kernels: Sequence[ComputeKernel],
    time_one: Callable[[ComputeKernel], float | None],
    journal: Journal | None,
    is_over: Callable[[int], bool],
) -> tuple[TimedRow, ...]:
    """Rows of ``kernels`` in their order until ``is_over(number timed)``; those in the journal are not timed again.

    ``time_one`` answers None for a kernel that does not fit the device: it has no row.
    """
    known = journal.seconds if journal is not None else {}
    rows: list[TimedRow] = []
    with journal or nullcontext():
        for kernel in kernels:
            seconds = known.get(kernel)
            if seconds is None:
                if is_over(len(rows)):
                    break
                seconds = time_one(kernel)
                if seconds is not None and journal is not None:
                    journal.add(kernel, seconds)
            if seconds is not None:
                rows.append(TimedRow(kernel, seconds, SOURCE))
    return tuple(rows)
