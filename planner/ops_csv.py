"""OPS.csv: a table of operations in, the same table with seconds, p05, p95 and tag out.

Columns: ``op`` and, by op, those of COLUMNS; ``dtype`` (bf16 when empty) and ``window`` (0 when empty) are
optional. Cells that an op does not use are empty. Sizes are positive integers; ``bytes`` is nccl-tests' size.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulator.costs.columns import routing_alpha
from simulator.costs.cost import predict
from simulator.errors import SpecError
from simulator.formats.files import read_text
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, GroupCollective, Kernel, Moe
from simulator.profile import Profile
from simulator.units import DTYPE_BYTES

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention_prefill": ("batch", "seq_q", "seq_kv", "heads", "kv_heads", "head_dim", "causal"),
    "attention_decode": ("batch", "context", "heads", "kv_heads", "head_dim"),
    "moe": ("tokens", "hidden", "inter", "topk", "experts", "tp", "ep", "routing"),
    "all_reduce": ("bytes", "gpus"),
    "all_gather": ("bytes", "gpus"),
    "reduce_scatter": ("bytes", "gpus"),
    "all_to_all": ("bytes", "gpus"),
}
COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})
WINDOWED = frozenset({"attention_prefill", "attention_decode"})
KNOWN_COLUMNS = frozenset({"op", "dtype", "window"}).union(*COLUMNS.values())
RESULT_COLUMNS = ("seconds", "p05", "p95", "tag")
DEFAULT_DTYPE = "bf16"
MAX_ROWS = 200_000
MAX_SIZE = 2**53  # the largest integer every column can hold exactly as a float
TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class Operations:
    """The table as read: its header, its rows as text, and a kernel a row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True, slots=True)
class _Cells:
    """One row's cells by column name, and where it stands (``ops.csv:3``) for messages."""

    place: str
    cells: Mapping[str, str]

    def text(self, name: str) -> str:
        return self.cells.get(name, "")

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        text = self.text(name)
        if not text and default is not None:
            return default
        if not text.isascii() or not text.isdigit() or not least <= int(text[:17]) <= MAX_SIZE or len(text) > 16:
            raise SpecError(f"{self.place}: {name}: needs an integer from {least} to {MAX_SIZE}, got {text[:40]!r}")
        return int(text)

    def truth(self, name: str) -> bool:
        value = TRUTH.get(self.text(name).lower())
        if value is None:
            raise SpecError(f"{self.place}: {name}: needs 1 or 0, got {self.text(name)[:40]!r}")
        return value

    def need(self, ok: bool, message: str) -> None:
        if not ok:
            raise SpecError(f"{self.place}: {message}")


def predicted_csv(path: Path, profile: Profile) -> str:
    """The table of ``path`` with what ``profile`` predicts; SpecError names the line of a bad row."""
    table = read_operations(path)
    prediction = predict(table.kernels, profile)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*table.header, *RESULT_COLUMNS))
    for index, row in enumerate(table.rows):
        numbers = (prediction.seconds[index], prediction.p05_s[index], prediction.p95_s[index])
        writer.writerow((*row, *(f"{number:.6g}" for number in numbers), prediction.tag[index]))
    return out.getvalue()


def read_operations(path: Path) -> Operations:
    """OPS.csv as kernels; SpecError with file and line for anything it cannot mean."""
    return parse_operations(read_text(path), str(path))


def parse_operations(text: str, source: str) -> Operations:
    """As ``read_operations``, from text."""
    if text.count("\n") > MAX_ROWS:
        raise SpecError(f"{source}: more than {MAX_ROWS} lines; split the table")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[str, ...]] = []
    kernels: list[Kernel] = []
    header: tuple[str, ...] = ()
    try:
        for cells in reader:
            stripped = tuple(cell.strip() for cell in cells)
            if not any(stripped):
                continue
            if not header:
                header = _checked_header(stripped, f"{source}:{reader.line_num}")
                continue
            place = f"{source}:{reader.line_num}"
            if len(stripped) != len(header):
                raise SpecError(f"{place}: {len(stripped)} cells under {len(header)} columns")
            rows.append(stripped)
            kernels.append(_kernel(_Cells(place, dict(zip(header, stripped, strict=True)))))
    except csv.Error as error:
        raise SpecError(f"{source}:{reader.line_num}: not CSV: {error}") from error
    if not rows:
        raise SpecError(f"{source}: no operations; the first line names columns (op, …), one operation a line below")
    return Operations(header, tuple(rows), tuple(kernels))


def _checked_header(header: Sequence[str], place: str) -> tuple[str, ...]:
    if "op" not in header:
        raise SpecError(f"{place}: no column 'op'; the first line names columns: op, m, n, k, …")
    for name in header:
        if name not in KNOWN_COLUMNS:
            raise SpecError(f"{place}: unknown column {name[:40]!r}; known: {', '.join(sorted(KNOWN_COLUMNS))}")
        if header.count(name) > 1:
            raise SpecError(f"{place}: column {name!r} appears twice; keep one")
    return tuple(header)


def _kernel(row: _Cells) -> Kernel:
    op = row.text("op")
    if op not in COLUMNS:
        raise SpecError(f"{row.place}: op: unknown {op[:40]!r}; known: {', '.join(COLUMNS)}")
    used = {"op", *COLUMNS[op], *(() if op in COLLECTIVES else ("dtype",)), *(("window",) if op in WINDOWED else ())}
    for name, text in row.cells.items():
        row.need(name in used or not text, f"{name}: {op} does not use it; leave it empty, got {text[:40]!r}")
    dtype = row.text("dtype") or DEFAULT_DTYPE
    row.need(dtype in DTYPE_BYTES, f"dtype: unknown {dtype[:40]!r}; known: {', '.join(DTYPE_BYTES)}")
    if op == "gemm":
        return Gemm(row.size("m"), row.size("n"), row.size("k"), dtype)
    if op == "attention_prefill":
        return _prefill(row, dtype)
    if op == "attention_decode":
        return _decode(row, dtype)
    if op == "moe":
        return _moe(row, dtype)
    return GroupCollective(op, row.size("bytes"), row.size("gpus", least=2))


def _heads(row: _Cells) -> tuple[int, int]:
    heads, kv_heads = row.size("heads"), row.size("kv_heads")
    row.need(heads % kv_heads == 0, f"heads: {heads} is not a multiple of kv_heads {kv_heads}")
    return heads, kv_heads


def _prefill(row: _Cells, dtype: str) -> Kernel:
    heads, kv_heads = _heads(row)
    seq_q, seq_kv, causal = row.size("seq_q"), row.size("seq_kv"), row.truth("causal")
    row.need(
        not causal or seq_kv >= seq_q, f"seq_kv: {seq_kv} is below seq_q {seq_q}; causal queries would see nothing"
    )
    sizes = (row.size("batch"), seq_q, seq_kv, heads, kv_heads, row.size("head_dim"))
    return AttentionPrefill(*sizes, causal=causal, window=row.size("window", 0, least=0), dtype=dtype)


def _decode(row: _Cells, dtype: str) -> Kernel:
    heads, kv_heads = _heads(row)
    sizes = (row.size("batch"), row.size("context"), heads, kv_heads, row.size("head_dim"))
    return AttentionDecode(*sizes, window=row.size("window", 0, least=0), dtype=dtype)


def _moe(row: _Cells, dtype: str) -> Kernel:
    topk, experts, inter = row.size("topk"), row.size("experts"), row.size("inter")
    tp, ep = row.size("tp", 1), row.size("ep", 1)
    row.need(topk <= experts, f"topk: {topk} exceeds experts {experts}")
    row.need(experts % ep == 0, f"ep: {ep} does not divide experts {experts}")
    row.need(inter % tp == 0, f"tp: {tp} does not divide inter {inter}")
    routing = row.text("routing") or "balanced"
    try:
        routing_alpha(routing)
    except SpecError as error:
        raise SpecError(f"{row.place}: {error}") from error
    sizes = (row.size("tokens"), row.size("hidden"), inter, topk, experts, tp, ep)
    return Moe(*sizes, routing=routing, dtype=dtype)
