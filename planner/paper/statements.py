"""The documents against arithmetic and simulation: one row a statement, 146 in all.

    python -m planner.paper        writes docs/paper-vs-physics.md (rows, seed replay, where speed-ups come from)
    python -m planner.paper FILE   writes there instead

Every value is computed when asked for; verdicts follow from it. Seed replay (one constant fitted to the documents'
baseline column) is kept apart from first principles and enters no row.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

from planner.paper import (
    architecture,
    breakdown,
    experiments,
    keypoints,
    performance,
    scaling,
    separation,
    traffic,
    two_level,
)
from planner.paper.statement import DOCUMENTS, Statement

DEFAULT_FILE = Path(__file__).resolve().parents[2] / "docs" / "paper-vs-physics.md"
PARTS = (
    architecture,
    performance,
    scaling,
    keypoints,
    experiments,
    breakdown,
    separation,
    traffic,
    two_level,
)


@lru_cache(maxsize=1)
def rows() -> tuple[Statement, ...]:
    """Every statement of the five documents, in their order."""
    found = [row for part in PARTS for row in part.rows()]
    order = list(DOCUMENTS)
    return tuple(sorted(found, key=lambda row: (order.index(row.id[0]), int(row.id[1:]))))


def counts(statements: tuple[Statement, ...] | None = None) -> dict[str, int]:
    """Statements by verdict, most first."""
    found: dict[str, int] = {}
    for row in rows() if statements is None else statements:
        found[row.verdict] = found.get(row.verdict, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def main(arguments: list[str]) -> int:
    """Write the page; its path goes to stdout."""
    from planner.paper.page import page

    target = Path(arguments[0]) if arguments else DEFAULT_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(rows()), encoding="utf-8")
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
