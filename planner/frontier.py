"""Frontier: the candidates of a race by rising bound, each bound as tight as its turn asks for.

Few candidates are all bounded by predicted kernels at once. Of many, all get a thin bound of roofline kernels, and
when their turn comes one of predicted kernels, then the tight one: a candidate is handed out once its tight bound is
still the least. Pools of a large space are made base by base, when the floor of a base is the least (``boxes.py``).
What is never tightened or made has a bound above all that was handed out, so the order is that of all tight bounds.
Candidates beyond a limit's effort are not handed out; their least bound is asked for once, for the gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from planner.bounds.bound import chunked_bound, num_cells
from planner.bounds.rates import Array, Numbers, Rates
from planner.boxes import Box
from planner.candidate import Scheme, Table, num_gpus
from planner.effort import effort
from planner.problem import Problem
from planner.question import Question
from planner.score import least_factor, score_factor

PRICED_CELLS = 100_000  # query blocks of all candidates up to which all are bounded by predicted kernels at once
BATCH = 256  # candidates tightened at a time
THIN, ENDS, SOLO, TIGHT = range(4)  # how tight a bound is: thin roofline, thin, own streams, all (``bounds.Rates``)
Entry = tuple[float, int, int, int]
"""Score, GPUs, place among the alike, row (a closed box: −1 − its number)."""


@dataclass
class _Queues:
    """Heaps of rows whose bounds are tight ``enough``, and of those (and closed boxes) whose are not."""

    enough: int
    ready: list[Entry] = field(default_factory=list)
    loose: list[Entry] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.ready or self.loose)

    @property
    def settled(self) -> bool:
        """Whether the least of all is ready."""
        return not self.loose or (bool(self.ready) and self.ready[0] < self.loose[0])


@dataclass
class Frontier:
    """By row of ``table``: lower bounds on seconds and objective, how tight they are, and efforts. ``closed``: boxes
    not opened yet. ``parts``: sequences are dealt into as many (None: as each candidate would)."""

    problem: Problem
    question: Question
    parts: int | None
    table: Table
    closed: list[Box] = field(default_factory=list)
    bounds: Array = field(init=False)
    scores: Array = field(init=False)
    stage: Numbers = field(init=False)
    efforts: Array = field(init=False)

    large: bool = field(init=False)

    def __post_init__(self) -> None:
        self.large = bool(self.closed)
        self.bounds, self.stage = self._first(self.table)
        self.scores = self.bounds * score_factor(self.problem, self.question, self.table)
        self.efforts = effort(self.question, self.table)

    def __len__(self) -> int:
        """Candidates, those of closed boxes too."""
        return len(self.table) + sum(box.count for box in self.closed)

    def _first(self, table: Table) -> tuple[Array, Numbers]:
        """Tight bounds of few; of many the first of two."""
        cells = num_cells(table, self.problem.rates.as_roofline()).sum()
        stage = THIN if self.large or cells > PRICED_CELLS else TIGHT
        return chunked_bound(self.question, table, self._rates(stage), parts=self.parts), np.full(len(table), stage)

    def rising(
        self, wanted: Sequence[Scheme] = tuple(Scheme), *, most: float = np.inf, boxes: int | None = None
    ) -> Iterator[int]:
        """Rows of these schemes of no greater effort than ``most`` by rising score, then fewer GPUs, then chains before
        trees (which are the better at length), then in order. ``boxes``: of those closed, so many of least floor take
        part (None: all)."""
        closed = sorted((box for box in self.closed if box.scheme in wanted), key=lambda box: box.floor_s)[:boxes]
        queues = _Queues(TIGHT)
        for number, box in enumerate(closed):
            heappush(queues.loose, self._closed_entry(box, number))
        rows = np.flatnonzero(np.isin(self.table["scheme"], wanted) & (self.efforts <= most))
        self._add(queues, rows)
        while queues:
            if queues.settled:
                yield heappop(queues.ready)[-1]
            elif (number := -1 - queues.loose[0][-1]) >= 0:
                heappop(queues.loose)
                fresh = self._open(closed[number])
                self._add(queues, fresh[self.efforts[fresh] <= most])
            else:
                self._add(queues, self._tightened(queues))

    def least_beyond(self, most: float, *, below: float, slo_s: float) -> float:
        """The least score of rows of greater effort than ``most`` that may meet the SLO, unraced; infinite where it is
        not ``below``."""
        queues = _Queues(SOLO)
        self._add(queues, np.flatnonzero(self.efforts > most))
        while queues:
            if queues.settled:
                score, *_, row = heappop(queues.ready)
                if self.bounds[row] <= slo_s:
                    return score
            elif queues.loose[0][0] >= below:
                break
            else:
                self._add(queues, self._tightened(queues))
        return np.inf

    def _add(self, queues: _Queues, rows: Numbers) -> None:
        """Rows whose bounds are tight enough, and those whose are not."""
        done = self.stage[rows] >= queues.enough
        for queue, some in ((queues.ready, rows[done]), (queues.loose, rows[~done])):
            for entry in self._entries(some):
                heappush(queue, entry)

    def _tightened(self, queues: _Queues) -> Numbers:
        """The next rows whose bounds are not tight enough, each a step tighter."""
        batch: list[int] = []
        while queues.loose and len(batch) < BATCH and queues.loose[0][-1] >= 0:
            batch.append(heappop(queues.loose)[-1])
        rows = np.array(batch)
        stages = np.minimum(self.stage[rows] + 1, queues.enough)
        stages = np.where(stages == SOLO, queues.enough, stages)
        for stage in np.unique(stages).tolist():
            some = rows[stages == stage]
            found = chunked_bound(self.question, self.table[some], self._rates(stage), parts=self.parts)
            self.bounds[some] = np.maximum(self.bounds[some], found)
        self.scores[rows] = self.bounds[rows] * score_factor(self.problem, self.question, self.table[rows])
        self.stage[rows] = stages
        return rows

    def _rates(self, stage: int) -> Rates:
        rates = self.problem.rates
        return {THIN: rates.as_roofline().as_thin(), ENDS: rates.as_thin(), SOLO: rates.as_solo(), TIGHT: rates}[stage]

    def _entries(self, rows: Numbers) -> list[Entry]:
        """Of rows, to be handed out by the least."""
        some, chains = self.table[rows], -self.table["multicast"][rows].astype(np.int64)
        columns = self.scores[rows], num_gpus(some), chains, rows
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _closed_entry(self, box: Box, number: int) -> Entry:
        factor = least_factor(self.problem, self.question, box.least_gpus)
        return box.floor_s * factor, box.least_gpus, 0, -1 - number

    def _open(self, box: Box) -> Numbers:
        """Make a box's candidates; their rows."""
        self.closed.remove(box)
        table, first = box.open(self.question), len(self.table)
        bounds, stage = self._first(table)
        bounds = np.maximum(bounds, box.floor_s)
        scores = bounds * score_factor(self.problem, self.question, table)
        self.table = np.concatenate((self.table, table))
        self.bounds, self.scores = np.concatenate((self.bounds, bounds)), np.concatenate((self.scores, scores))
        self.stage = np.concatenate((self.stage, stage))
        self.efforts = np.concatenate((self.efforts, effort(self.question, table)))
        return np.arange(first, len(self.table))
