"""Statement: one sentence of the documents, what attnplan computes for it, and a verdict that follows from the two.

Verdicts are never written down: ``judged`` compares, ``specified`` checks that the program does what was specified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal[
    "consistent",
    "inconsistent",
    "only under assumption",
    "specification, implemented",
    "unverifiable",
    "not implemented",
]
Tag = Literal["measured", "replayed", "imported", "fitted", "assumed", "derived"]
DOCUMENTS = {
    "F": "FA Pool, methodology",
    "K": "FA Pool, key points",
    "E": "FA Pool, experiments",
    "M": "MA Separation, methodology",
    "T": "Two-level partitioning, methodology",
}
TOLERANCE = 0.05  # relative; the documents print two or three digits


@dataclass(frozen=True, slots=True)
class Statement:
    """One row. ``criterion`` says how the verdict was computed; ``assumptions`` what it leans on."""

    id: str
    claim: str
    ours: str
    criterion: str
    assumptions: str
    verdict: Verdict
    tag: Tag

    @property
    def document(self) -> str:
        return DOCUMENTS[self.id[0]]


def close(ours: float, claimed: float, tolerance: float = TOLERANCE) -> bool:
    """|ours − claimed| ≤ tolerance · |claimed|."""
    return abs(ours - claimed) <= tolerance * abs(claimed)


def within(ours: float, low: float, high: float, tolerance: float = TOLERANCE) -> bool:
    """In [low, high], widened by ``tolerance``."""
    return low * (1 - tolerance) <= ours <= high * (1 + tolerance)


def judged(
    id: str,
    claim: str,
    ours: str,
    *,
    holds: bool,
    holds_if: bool = False,
    criterion: str = "within 5 %",
    assuming: str = "",
    tag: Tag = "derived",
) -> Statement:
    """Consistent if it holds as it stands, else only under ``assuming`` if it holds then, else inconsistent."""
    verdict: Verdict = "consistent" if holds else "only under assumption" if holds_if else "inconsistent"
    return Statement(id, claim, ours, criterion, assuming, verdict, tag)


def specified(
    id: str, claim: str, ours: str, *, implemented: bool, criterion: str = "checked by running it", assuming: str = ""
) -> Statement:
    """A specification: implemented if the check passed."""
    verdict: Verdict = "specification, implemented" if implemented else "not implemented"
    return Statement(id, claim, ours, criterion, assuming, verdict, "derived")


def unverifiable(id: str, claim: str, ours: str, *, why: str, tag: Tag = "derived") -> Statement:
    """Nothing in the documents or in arithmetic decides it."""
    return Statement(id, claim, ours, "no criterion", why, "unverifiable", tag)
