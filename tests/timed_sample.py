"""480 rows of AIConfigurator's A100 tables (vLLM; Apache-2.0), 120 a class: tests/data/a100_sample.csv.

Drawn once with ``numpy.random.default_rng(11).permutation`` over each class's distinct rows.
"""

from __future__ import annotations

import csv
from pathlib import Path

from calibration.rows import TimedRow
from planner.ops_csv import parse_operations

PATH = Path(__file__).parent / "data" / "a100_sample.csv"


def timed_rows() -> tuple[TimedRow, ...]:
    with PATH.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    text = "\n".join(",".join(cells[:-1]) for cells in table)
    kernels = parse_operations(text, PATH.name).kernels
    return tuple(
        TimedRow(kernel, float(cells[-1]), PATH.name) for kernel, cells in zip(kernels, table[1:], strict=True)
    )
