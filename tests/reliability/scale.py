"""How much the reliability suite does: a little in ``make test``, everything under ``ATTNPLAN_RELIABILITY=full``.

Figures go, one JSON line each, to the file that ``ATTNPLAN_FIGURES`` names; ``tests.reliability.report`` reads them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import settings

FULL = os.environ.get("ATTNPLAN_RELIABILITY") == "full"
ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"


def of(few: int, full: int) -> int:
    """A count: ``few`` in ``make test``, ``full`` for the report."""
    return full if FULL else few


ENOUGH = settings(max_examples=of(100, 500))
"""Of an invariant of programs, steps or served requests."""


def record(row: str, **figures: float | int | str) -> None:
    """Keep a row's figures for the report, if one is being made."""
    if path := os.environ.get("ATTNPLAN_FIGURES"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, **figures}) + "\n")
