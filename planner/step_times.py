"""Step times: a placement's step over batch and length, from a few simulations, as the function that serving asks.

A surface is simulated on a coarse grid, equally spaced in the logarithm, and interpolated: prefill log-log in both
(a sum of linear and quadratic parts is at most 1.5 % below such a chord at a ratio of 2), decode bilinearly (its time
is a constant, plus a part linear in the batch, plus the KV cache's bytes, bilinear in batch and length).
Outside the grid the nearest cell goes on; below ``LEAST_TOKENS`` the time is that of ``LEAST_TOKENS``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace

from planner.evaluate import evaluate
from planner.problem import Problem
from planner.space import Question
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.workload import Phase

LEAST_TOKENS = 64
TOKEN_RATIO = 2.0  # prefill: between neighbouring lengths
MOST_LENGTHS = {"prefill": 9, "decode": 3}
BATCH_RATIO = 6.0  # between neighbouring batches


@dataclass(frozen=True, slots=True)
class Surface:
    """``seconds[i][j]`` of ``batches[i]`` sequences of ``tokens[j]``; ``log``: interpolate logarithms."""

    batches: tuple[int, ...]
    tokens: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    log: bool

    def line(self, batch: int) -> Line:
        """The surface at one batch."""
        if len(self.batches) == 1:
            return Line(self.tokens, self.seconds[0], self.log)
        index, share = _cell(self.batches, batch, self.log)
        pairs = zip(self.seconds[index], self.seconds[index + 1], strict=True)
        return Line(self.tokens, tuple(_between(*pair, share, self.log) for pair in pairs), self.log)

    def at(self, batch: int, tokens: int) -> float:
        return self.line(batch).at(tokens)


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a batch over length."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    log: bool

    def at(self, tokens: int) -> float:
        if len(self.tokens) == 1:
            return self.seconds[0]
        index, share = _cell(self.tokens, max(tokens, LEAST_TOKENS), self.log)
        return _between(self.seconds[index], self.seconds[index + 1], share, self.log)


def _cell(knots: tuple[int, ...], value: int, log: bool) -> tuple[int, float]:
    """(index of the cell, position in it: 0 to 1 inside)."""
    index = min(max(bisect_right(knots, value) - 1, 0), len(knots) - 2)
    low, high = knots[index], knots[index + 1]
    if log:
        return index, math.log(value / low) / math.log(high / low)
    return index, (value - low) / (high - low)


def _between(low: float, high: float, share: float, log: bool) -> float:
    """Never below half of the smaller end, where a line goes on beyond the grid."""
    if log:
        return low * math.pow(high / low, share)
    return max(low + share * (high - low), min(low, high) / 2)


@dataclass(frozen=True, slots=True)
class Region:
    """Where a surface holds: batches whose longest sequence has at least ``min_tokens``, on ``pool_gpus``."""

    phase: Phase
    min_tokens: int
    pool_gpus: int
    surface: Surface


@dataclass(frozen=True)
class StepTimes:
    """Every surface of a system; calling it answers ``simulator.serving.queue.StepTime``."""

    regions: tuple[Region, ...]
    known: dict[tuple[Phase, int, int], list[tuple[int, Line]]] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, phase: Phase, batch: int, tokens: int, pool_gpus: int) -> float:
        lines = self.known.get((phase, batch, pool_gpus))
        if lines is None:
            lines = self.known[phase, batch, pool_gpus] = [
                (region.min_tokens, region.surface.line(batch))
                for region in self.regions
                if region.phase == phase and region.pool_gpus == pool_gpus
            ]
        chosen = lines[0][1]
        for min_tokens, line in lines[1:]:
            if min_tokens <= tokens:
                chosen = line
        return chosen.at(tokens)


def knots(low: int, high: int, ratio: float, most: int) -> tuple[int, ...]:
    """At most ``most`` whole numbers from ``low`` to ``high``, neighbours about ``ratio`` apart."""
    if high <= low:
        return (low,)
    cells = min(max(1, math.ceil(math.log(high / low) / math.log(ratio) - 1e-9)), most - 1)
    found = [round(low * (high / low) ** (index / cells)) for index in range(cells + 1)]
    return tuple(sorted(set(found)))


def simulate_surface(
    problem: Problem,
    question: Question,
    placement: Placement,
    *,
    cache: Placement | None,
    lengths: tuple[int, int],
) -> Surface:
    """From simulations of 1 to ``question.batch`` sequences of ``lengths`` (shortest, longest) tokens."""
    low = max(lengths[0], LEAST_TOKENS)
    tokens = knots(low, max(lengths[1], low), TOKEN_RATIO, MOST_LENGTHS[question.phase])
    batches = knots(1, question.batch, BATCH_RATIO, 4)
    seconds = tuple(
        tuple(step_seconds(problem, replace(question, batch=b, tokens=n), placement, cache) for n in tokens)
        for b in batches
    )
    return Surface(batches, tokens, seconds, log=question.phase == "prefill")


def step_seconds(problem: Problem, question: Question, placement: Placement, cache: Placement | None) -> float:
    """One simulation. A batch too small to be cut takes as long as the smallest that can be: ranks stand idle."""
    fitting = placement.model_copy(update={"micro_batches": min(placement.micro_batches, question.batch)})
    try:
        return evaluate(problem, question, fitting, cache).step_s
    except InfeasibleError:
        parts = max(max(stage.grid.query_blocks, stage.token_replicas) for stage in placement.stages)
        if question.batch >= parts:
            raise
        return evaluate(problem, replace(question, batch=parts), fitting, cache).step_s
