"""nccl-tests logs → measured collectives.

What it reads: both column layouts (with and without ``root``), launcher prefixes (``[1,0]<stdout>:``,
``0: ``), logs with prose around or inside the table, excerpts without a header; and AIConfigurator's NCCL
tables as CSV. The out-of-place time counts. A log does not tell all it should, so the facts (nodes, GPUs,
collective) come from a YAML file beside it or from the caller and are checked against the printed bandwidths.
What it ignores: in-place columns and rows of 0 bytes. Source: nccl-tests src/common.cu, doc/PERFORMANCE.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from calibration.importers.collective_row import CollectiveRow, Kind, bus_factor
from simulator.errors import SpecError
from simulator.formats.files import Record, load
from simulator.formats.table import Row, read_lines, read_rows

MAX_PATH = 4000
MAX_NAME_BYTES = 250  # with room for another suffix
GROUP_COLUMNS = 4  # time, algbw, busbw, error: once out of place, once in place
LEADING_COLUMNS = (3, 4, 5)  # size count type [redop [root]]
LEAST_CHECKED_BYTES_PER_S = 1e9  # printed with two decimals of GB/s: slower rows are too coarse to check
PRINT_TOLERANCE = 0.02
CSV_KINDS: dict[str, Kind] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
CSV_DTYPES = {"half": ("fp16", 2), "bfloat16": ("bf16", 2), "float": ("fp32", 4), "int8": ("int8", 1)}
LOG_DTYPES = {
    **{"float": "fp32", "half": "fp16", "bfloat16": "bf16", "double": "fp64", "f8e4m3": "fp8", "f8e5m2": "fp8"},
    **{name: name for name in ("int8", "uint8", "int32", "uint32", "int64", "uint64")},
}
_PREFIX = re.compile(r"^(\[\d+,\d+\]<std(out|err)>:\s*|\d+:\s+)")
_FAILURE = re.compile(r"Test (NCCL )?failure|FAILED|unhandled (cuda|system) error", re.IGNORECASE)
_ROW = re.compile(r"\s*\d{1,18}\s+\d{1,18}\s+[a-z]\w*\s")


class RunFacts(Record):
    """What a log does not tell: the YAML file beside it."""

    log: str = ""
    nodes: int = Field(ge=1)
    gpus_per_node: int = Field(ge=1)
    gpu: str
    nics_per_node: int | None = Field(default=None, ge=1)
    nic_gbit_s: float | None = Field(default=None, gt=0)
    nic_facts: str = "unknown"
    collective: Literal["all_reduce", "all_gather", "reduce_scatter", "alltoall", "broadcast", "sendrecv"] | list[str]
    note: str = ""
    source: str

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True)
class NcclRun:
    """A log's rows with its facts."""

    facts: RunFacts
    rows: tuple[CollectiveRow, ...]


def read_run(path: Path, facts: RunFacts | None = None) -> NcclRun:
    """A log (or AIConfigurator's ``.csv``); facts from ``path`` with ``.yaml`` unless given."""
    if facts is None:
        if not path.name or len(path.name.encode(errors="replace")) > MAX_NAME_BYTES or len(str(path)) > MAX_PATH:
            raise SpecError(f"{path}: not a file name; name an nccl-tests log")
        beside = path.with_suffix(".yaml")
        if not beside.exists():
            raise SpecError(f"{path}: no facts: write {beside.name} with nodes, gpus_per_node, gpu, collective, source")
        facts = load(beside, RunFacts)
    rows = _csv_rows(path, facts) if path.suffix == ".csv" else _log_rows(path, facts)
    if not rows:
        raise SpecError(f"{path}: no row of a collective; give the output of an nccl-tests binary")
    return NcclRun(facts, rows)


def _log_rows(path: Path, facts: RunFacts) -> tuple[CollectiveRow, ...]:
    kind = _kind(facts, path)
    rows = []
    for number, raw in read_lines(path):
        line, place = _PREFIX.sub("", raw), f"{path}:{number}"
        if _FAILURE.search(line) and "#wrong" not in line:
            raise SpecError(f"{place}: the run failed: {line.strip()[:60]!r}; give a log of one that passed")
        if line.lstrip().startswith("#"):
            _check_units(line, place)
        elif re.match(r"\s*\d+\s", line):
            row = _log_row(line, kind, facts, place)
            rows.extend([row] if row.num_bytes else [])
    return tuple(rows)


def _kind(facts: RunFacts, path: Path) -> Kind:
    match facts.collective:
        case "alltoall":
            return "all_to_all"
        case "sendrecv":
            return "send_recv"
        case "all_reduce" | "all_gather" | "reduce_scatter" | "broadcast" as kind:
            return kind
    raise SpecError(f"{path}: collective: a log holds one collective, the facts list {facts.collective}")


def _check_units(line: str, place: str) -> None:
    """The third header line names the units; other versions may print others."""
    units = re.findall(r"\(([^)]*)\)", line)
    if "algbw" not in line and "elements" in units and not {"B", "us", "GB/s"} <= set(units):
        raise SpecError(f"{place}: unknown units {line.strip()[:60]!r}; known: (B), (us), (GB/s)")


def _log_row(line: str, kind: Kind, facts: RunFacts, place: str) -> CollectiveRow:
    cells = line.split()
    num_leading = len(cells) - 2 * GROUP_COLUMNS
    if num_leading not in LEADING_COLUMNS or not _ROW.match(line):
        raise SpecError(f"{place}: not a row of nccl-tests: {line.strip()[:60]!r}")
    size, _, dtype = cells[:3]
    time_us, algbw, busbw = (_number(cell, place) for cell in cells[num_leading : num_leading + 3])
    wrong = cells[num_leading + 3]
    if wrong not in ("0", "N/A") and not re.fullmatch(r"0e[-+]\d+", wrong) and not _is_small_error(wrong):
        raise SpecError(f"{place}: {wrong[:40]} wrong elements; give a log of a run that passed")
    if dtype not in LOG_DTYPES:
        raise SpecError(f"{place}: unknown type {dtype[:40]!r}; known: {', '.join(LOG_DTYPES)}")
    if time_us <= 0:
        raise SpecError(f"{place}: time {time_us} µs; a collective takes some")
    known = LOG_DTYPES[dtype]
    row = CollectiveRow(kind, int(size), facts.gpus, facts.nodes, time_us * 1e-6, known, place)
    _check_bandwidths(row, algbw=algbw * 1e9, busbw=busbw * 1e9)
    return row


def _is_small_error(text: str) -> bool:
    """Old versions print the largest numerical error, such as ``4e-07``, instead of a count."""
    return re.fullmatch(r"\de-\d+", text) is not None


def _number(cell: str, place: str) -> float:
    if not re.fullmatch(r"\d{1,12}(\.\d{1,6})?", cell):
        raise SpecError(f"{place}: not a number: {cell[:40]!r}")
    return float(cell)


def _check_bandwidths(row: CollectiveRow, *, algbw: float, busbw: float) -> None:
    """The printed algbw must be bytes over time, and busbw over algbw tells the number of ranks."""
    if algbw < LEAST_CHECKED_BYTES_PER_S:
        return
    if abs(row.algbw_bytes_per_s - algbw) > PRINT_TOLERANCE * algbw:
        own = row.algbw_bytes_per_s / 1e9
        raise SpecError(f"{row.place}: algbw {algbw / 1e9:g} GB/s, but size/time is {own:.4g}")
    ratio, expected = busbw / algbw, bus_factor(row.collective, row.gpus)
    if abs(ratio - expected) > PRINT_TOLERANCE * expected:
        raise SpecError(
            f"{row.place}: busbw/algbw is {ratio:.4g}, but {row.collective} on {row.gpus} GPUs gives "
            f"{expected:.4g}; correct nodes, gpus_per_node or collective in the facts"
        )


def _csv_rows(path: Path, facts: RunFacts) -> tuple[CollectiveRow, ...]:
    return tuple(_csv_row(row, facts) for row in read_rows(path))


def _csv_row(row: Row, facts: RunFacts) -> CollectiveRow:
    """AIConfigurator: message_size in elements, latency in ms."""
    name, dtype = row.text("op_name"), row.text("nccl_dtype")
    if name not in CSV_KINDS:
        raise SpecError(f"{row.place}: op_name: unknown {name[:40]!r}; known: {', '.join(CSV_KINDS)}")
    if dtype not in CSV_DTYPES:
        raise SpecError(f"{row.place}: nccl_dtype: unknown {dtype[:40]!r}; known: {', '.join(CSV_DTYPES)}")
    gpus = row.whole("num_gpus", least=2)
    if gpus > facts.gpus:
        raise SpecError(f"{row.place}: num_gpus: {gpus}, but the facts give {facts.gpus} GPUs")
    known, size = CSV_DTYPES[dtype]
    return CollectiveRow(
        CSV_KINDS[name],
        num_bytes=row.whole("message_size", least=1) * size,
        gpus=gpus,
        nodes=facts.nodes,
        duration_s=row.positive("latency") * 1e-3,
        dtype=known,
        place=row.place,
    )
