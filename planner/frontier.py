"""Frontier: the candidates of a race by rising bound, each bound as tight as its turn asks for.

Few candidates are all bounded by predicted kernels at once. Of many, all get a thin bound, and the tight one when their
turn comes: a candidate is handed out once its tight bound is still the least. Pools
of a large space are made base by base, when the floor of a base is the least (``boxes.py``). What is never tightened
or made has a bound above all that was handed out, so the order is that of all tight bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import numpy as np
import numpy.typing as npt

from planner.bounds.bound import chunked_bound, num_cells
from planner.bounds.rates import Array, Numbers
from planner.boxes import Box
from planner.candidate import Scheme, Table, num_gpus
from planner.effort import effort
from planner.problem import Problem
from planner.question import Question
from planner.score import least_factor, score_factor

PRICED_CELLS = 100_000  # query blocks of all candidates up to which all are bounded by predicted kernels at once
BATCH = 128  # candidates tightened at a time
Mask = npt.NDArray[np.bool_]
Entry = tuple[float, int, int, int]
"""Score, GPUs, place among the alike, row (a closed box: −1 − its number)."""


@dataclass
class Frontier:
    """By row of ``table``: lower bounds on seconds and objective, whether they are tight, and efforts. ``closed``:
    boxes not opened yet. ``parts``: sequences are dealt into as many (None: as each candidate would)."""

    problem: Problem
    question: Question
    parts: int | None
    table: Table
    closed: list[Box] = field(default_factory=list)
    bounds: Array = field(init=False)
    scores: Array = field(init=False)
    tight: Mask = field(init=False)
    efforts: Array = field(init=False)

    large: bool = field(init=False)

    def __post_init__(self) -> None:
        self.large = bool(self.closed)
        self.bounds, self.tight = self._first(self.table)
        self.scores = self.bounds * score_factor(self.problem, self.question, self.table)
        self.efforts = effort(self.question, self.table)

    def __len__(self) -> int:
        """Candidates, those of closed boxes too."""
        return len(self.table) + sum(box.count for box in self.closed)

    def _first(self, table: Table) -> tuple[Array, Mask]:
        """Tight bounds of few; of many the first of two."""
        floor = self.problem.rates.as_roofline()
        few = not self.large and int(num_cells(table, floor).sum()) <= PRICED_CELLS
        rates = self.problem.rates if few else floor.as_thin()
        return chunked_bound(self.question, table, rates, parts=self.parts), np.full(len(table), few)

    def rising(
        self, wanted: Sequence[Scheme] = tuple(Scheme), *, most: float = np.inf, boxes: int | None = None
    ) -> Iterator[int]:
        """Rows of these schemes by rising score, then fewer GPUs, then chains before trees (which are the better at
        length), then in order; prefills by replicas of greater effort than ``most`` with the bounds they have.
        ``boxes``: of those closed, so many of least floor take part (None: all)."""
        queue = self._entries(np.flatnonzero(np.isin(self.table["scheme"], wanted)))
        closed = sorted((box for box in self.closed if box.scheme in wanted), key=lambda box: box.floor_s)[:boxes]
        queue += [self._closed_entry(box, number) for number, box in enumerate(closed)]
        heapify(queue)
        while queue:
            row = heappop(queue)[-1]
            if row < 0:
                fresh = self._open(closed[-1 - row])
            elif not self._loose(row, most):
                yield row
                continue
            else:
                batch = [row]
                while queue and len(batch) < BATCH and self._loose(queue[0][-1], most):
                    batch.append(heappop(queue)[-1])
                fresh = np.array(batch)
                self._tighten(fresh)
            for entry in self._entries(fresh):
                heappush(queue, entry)

    def _loose(self, row: int, most: float) -> bool:
        """Whether a row's bound is still to be tightened: of too much effort, only where that is soon done."""
        quick = self.question.phase == "decode" or self.table["scheme"][row] != Scheme.CONTEXT
        return row >= 0 and not self.tight[row] and bool(quick or self.efforts[row] <= most)

    def _entries(self, rows: Numbers) -> list[Entry]:
        """Of rows, to be handed out by the least."""
        some, chains = self.table[rows], -self.table["multicast"][rows].astype(np.int64)
        columns = self.scores[rows], num_gpus(some), chains, rows
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _closed_entry(self, box: Box, number: int) -> Entry:
        factor = least_factor(self.problem, self.question, box.least_gpus)
        return box.floor_s * factor, box.least_gpus, 0, -1 - number

    def _tighten(self, rows: Numbers) -> None:
        """By predicted kernels, all query blocks and replicas."""
        some = self.table[rows]
        found = chunked_bound(self.question, some, self.problem.rates, parts=self.parts)
        self.bounds[rows] = np.maximum(self.bounds[rows], found)
        self.scores[rows] = self.bounds[rows] * score_factor(self.problem, self.question, some)
        self.tight[rows] = True

    def _open(self, box: Box) -> Numbers:
        """Make a box's candidates; their rows."""
        self.closed.remove(box)
        table, first = box.open(self.question), len(self.table)
        bounds, tight = self._first(table)
        bounds = np.maximum(bounds, box.floor_s)
        scores = bounds * score_factor(self.problem, self.question, table)
        self.table = np.concatenate((self.table, table))
        self.bounds, self.scores = np.concatenate((self.bounds, bounds)), np.concatenate((self.scores, scores))
        self.tight = np.concatenate((self.tight, tight))
        self.efforts = np.concatenate((self.efforts, effort(self.question, table)))
        return np.arange(first, len(self.table))
