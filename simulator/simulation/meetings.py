"""Meetings: which ends of transfers belong together, and that they agree.

The n-th use of a tag by one end of a pair or a group meets the n-th of the others: streams are in order, so no other
could.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.errors import ExecutionError
from simulator.program import Operation

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Meetings:
    """``transfer[i]``: of which transfer end i is one; ``first[t]``, ``count[t]``: transfer t's first end, and how
    many there are."""

    transfer: Numbers
    first: Numbers
    count: Numbers


def meetings_of(key: Numbers, side: Numbers) -> Meetings:
    """Ends of equal key meet, one of each side; within a side they are in issue order."""
    order = np.lexsort((side, key))
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (key[order[1:]] != key[order[:-1]]) | (side[order[1:]] != side[order[:-1]])
    if not new.all():  # a side uses a key again
        place = np.arange(len(order))
        turn = np.empty_like(place)
        turn[order] = place - np.maximum.accumulate(np.where(new, place, 0))
        key = key * (turn.max() + 1) + turn
    _, first, transfer, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    return Meetings(transfer, first, count)


def check(
    ends: Sequence[Operation], meetings: Meetings, num_bytes: Sequence[int], collective: npt.NDArray[np.bool_]
) -> None:
    """ExecutionError where ends of a transfer, each of ``num_bytes``, differ in kind or size. ``collective``: which are
    ends of collectives; messages are of one kind."""
    size, other = np.array(num_bytes, dtype=np.float64), meetings.first[meetings.transfer]
    wrong: list[int] = np.flatnonzero(size != size[other]).tolist()
    for end in np.flatnonzero(collective).tolist():
        if ends[end].kind != ends[other[end]].kind:  # type: ignore[union-attr]
            wrong.append(end)
    if wrong:
        one, two = ends[wrong[0]], ends[int(other[wrong[0]])]
        raise ExecutionError(
            f"one end of a transfer is {two!r:.120} but another {one!r:.120}; their kinds and sizes must agree"
        )
