"""Boxes: the pools of a large space by base, made only where one of them may win.

On a thousand GPUs there are millions of pools, but whatever its pool, a base computes all projections and all of the
feed-forward itself, and its all-reduces: no pool of a base is faster than that (``base_bound``). A base whose floor is
above the best simulated time is counted and never opened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.bounds.bound import base_bound
from planner.bounds.rates import Rates
from planner.candidate import Scheme, Table, rows
from planner.counts import micro_batch_counts
from planner.pooled import bases, pool_counts, pooled
from planner.question import Question
from planner.weights_fit import fits_alone

FEW = 200_000  # pools up to which all are made at once


@dataclass(frozen=True)
class Box:
    """All pools of one base: ``count`` candidates on ``least_gpus`` at least; no step is shorter than ``floor_s``."""

    scheme: Scheme
    order: int
    base: int
    count: int
    least_gpus: int
    floor_s: float

    def open(self, question: Question) -> Table:
        """Its candidates, in the order of the space."""
        return pooled(question, self.order, joined=self.scheme == Scheme.JOINED, only=self.base)


def boxes_of(question: Question, rates: Rates, *, parts: int | None, few: int = FEW) -> tuple[Box, ...]:
    """The pools of a space, base by base, where there are more than ``few`` of them; () where not, or where heads may
    be dealt unevenly (those candidates are made from all)."""
    if question.mixed or question.max_gpus < 2:
        return ()
    counts = {joined: pool_counts(question, joined=joined) for joined in (False, True)}
    if len(question.orders) * sum(sum(found.values()) for found in counts.values()) <= few:
        return ()
    found = []
    for order in range(len(question.orders)):
        fitting = [base for base in bases(question) if fits_alone(question, base)]
        floors = {base: _floor_s(question, rates, parts, order, base) for base in fitting}
        for joined, scheme in ((False, Scheme.POOL), (True, Scheme.JOINED)):
            for base, floor_s in floors.items():
                if count := counts[joined].get(base, 0):
                    found.append(Box(scheme, order, base, count, base + 1, floor_s))
    return tuple(found)


def _floor_s(question: Question, rates: Rates, parts: int | None, order: int, base: int) -> float:
    """The least over micro-batches and, where they say how sequences are dealt, query blocks."""
    cuts = np.array((parts,)) if parts is not None else np.arange(1, min(question.batch, question.max_gpus) + 1)
    micro = np.array(micro_batch_counts(question))
    table = rows(
        Scheme.POOL,
        len(cuts) * len(micro),
        order=order,
        tensor=base,
        queries=np.repeat(cuts, len(micro)),
        micro_batches=np.tile(micro, len(cuts)),
    )
    return float(base_bound(question, table, rates, parts).min())
