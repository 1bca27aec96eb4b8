"""Request traces → workloads: the length buckets of real traffic.

Reads the Azure LLM inference trace (columns TIMESTAMP, ContextTokens, GeneratedTokens), its processed form
(arrived_at in seconds, num_prefill_tokens, num_decode_tokens) and Mooncake's JSON lines (timestamp in
milliseconds, input_length, output_length). What it ignores: prefix sharing (Mooncake's hash_ids) and every
other column. Sources: Splitwise (ISCA 2024), Mooncake (FAST 2025).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import SpecError
from simulator.formats.parsing import parse_json
from simulator.formats.table import Row, read_lines, read_rows
from simulator.workload import Bucket, Workload

MAX_REQUESTS = 500_000
MAX_TOKENS = 10**9
MAX_BUCKETS = 64
MAX_TIME_S = 1e12  # 30,000 years
RESOLUTION_S = 1e-6  # of the formats: requests closer together arrived at one instant


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its arrival after the trace's first, its prompt and what was generated."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class _Columns:
    """The names one CSV format gives to the three numbers, and how it writes time."""

    arrival: str
    prompt: str
    output: str
    seconds: Callable[[str], float]


def from_trace(path: Path, num_buckets: int = 8) -> Workload:
    """``num_buckets`` buckets of equal share (fewer where lengths repeat) over the prompt lengths of a trace.

    Edges are quantiles that occur in the trace; a bucket is planned at its median prompt and its mean output.
    """
    if not 1 <= num_buckets <= MAX_BUCKETS:
        raise SpecError(f"num_buckets: {num_buckets} is not between 1 and {MAX_BUCKETS}")
    requests = read_requests(path)
    span_s = requests[-1].arrival_s
    return Workload(
        name=re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:100].strip("-") or "trace",
        buckets=_buckets(requests, num_buckets),
        requests_per_s=(len(requests) - 1) / span_s if span_s >= RESOLUTION_S else None,
        assumptions=("a trace does not tell batch sizes: 1 until stated",),
        source=f"{path.name}, quantiles of {len(requests)} requests",
    )


def _buckets(requests: tuple[Request, ...], num_buckets: int) -> tuple[Bucket, ...]:
    prompts = np.array([request.prompt_tokens for request in requests])
    outputs = np.array([request.output_tokens for request in requests])
    fractions = np.arange(1, num_buckets) / num_buckets
    edges = {int(np.quantile(prompts, fraction, method="inverted_cdf")) for fraction in fractions}
    lows = [0, *sorted(edge for edge in edges if edge > prompts.min())]
    result = []
    for low, high in zip(lows, [*lows[1:], None], strict=True):
        inside = (prompts >= low) & (prompts < (math.inf if high is None else high))
        result.append(
            Bucket(
                name=f"{low}+" if high is None else f"{low}-{high - 1}",
                min_tokens=low,
                max_tokens=high,
                tokens=int(np.quantile(prompts[inside], 0.5, method="inverted_cdf")),
                share=float(inside.mean()),
                output_tokens=max(1, round(float(outputs[inside].mean()))),
            )
        )
    return tuple(result)


def read_requests(path: Path) -> tuple[Request, ...]:
    """Every request by arrival, the first at 0 s; SpecError names the line that is not understood."""
    first = next((line for _, line in read_lines(path) if line.strip()), None)
    if first is None:
        raise SpecError(f"{path}: empty; name a CSV or JSON-lines trace")
    rows = _json_rows(path) if first.lstrip().startswith("{") else _csv_rows(path)
    requests: list[Request] = []
    for request in rows:
        requests.append(request)
        if len(requests) > MAX_REQUESTS:
            raise SpecError(f"{path}: more than {MAX_REQUESTS} requests; cut the trace")
    if not requests:
        raise SpecError(f"{path}: a header but no request; name a longer trace")
    requests.sort(key=lambda request: request.arrival_s)
    start_s = requests[0].arrival_s
    return tuple(Request(r.arrival_s - start_s, r.prompt_tokens, r.output_tokens) for r in requests)


def _json_rows(path: Path) -> Iterator[Request]:
    """Mooncake: timestamps in milliseconds."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        row = parse_json(line, place)
        if not isinstance(row, dict):
            raise SpecError(f"{place}: not a JSON object with timestamp, input_length and output_length")
        yield Request(
            _non_negative(row.get("timestamp"), f"{place}: timestamp") / 1000,
            _tokens(row.get("input_length"), f"{place}: input_length"),
            _tokens(row.get("output_length"), f"{place}: output_length"),
        )


def _csv_rows(path: Path) -> Iterator[Request]:
    columns = None
    for row in read_rows(path):
        columns = columns or _format_of(row, path)
        yield Request(
            _arrival(row, columns),
            _tokens(row.text(columns.prompt), f"{row.place}: {columns.prompt}"),
            _tokens(row.text(columns.output), f"{row.place}: {columns.output}"),
        )


def _format_of(row: Row, path: Path) -> _Columns:
    for columns in CSV_FORMATS:
        if {columns.arrival, columns.prompt, columns.output} <= row.cells.keys():
            return columns
    known = " or ".join(f"{c.arrival},{c.prompt},{c.output}" for c in CSV_FORMATS)
    raise SpecError(f"{path}:1: unknown header {','.join(row.cells)[:80]!r}; known: {known}")


def _arrival(row: Row, columns: _Columns) -> float:
    cell, place = row.text(columns.arrival), f"{row.place}: {columns.arrival}"
    try:
        seconds = columns.seconds(cell)
    except (ValueError, OverflowError, TypeError) as error:  # TypeError: a time with an offset
        raise SpecError(f"{place}: not a time, got {cell[:40]!r}") from error
    return _non_negative(seconds, place)


def _non_negative(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TIME_S:
        raise SpecError(f"{place}: not a time of 0 or more, got {str(value)[:40]!r}")
    return float(value)


def _tokens(value: Any, place: str) -> int:
    """A whole number of tokens from a JSON number or a CSV cell; at least one."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
        raise SpecError(f"{place}: not a whole number of tokens from 1 to {MAX_TOKENS}, got {str(value)[:40]!r}")
    return value


def _calendar_seconds(cell: str) -> float:
    """``2023-11-16 18:15:46.6805900``: Azure writes seven decimals, Python reads six; the rest is added."""
    whole, _, decimals = cell.partition(".")
    if decimals and not re.fullmatch(r"[0-9]{1,9}", decimals):
        raise ValueError(cell)
    epoch = datetime(1970, 1, 1)
    return (datetime.fromisoformat(whole) - epoch).total_seconds() + float(f"0.{decimals or 0}")


CSV_FORMATS = (
    _Columns("arrived_at", "num_prefill_tokens", "num_decode_tokens", float),
    _Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", _calendar_seconds),
)
