"""Search: the best placement of every phase and length bucket, exact with respect to the simulator.

All candidates get a lower bound at once (``bound``); the most promising are simulated until no bound is below the best
simulated time: what was never simulated cannot win, so the optimality gap is 0 (or stated, under a limit). Decode is
planned first: prefill then leaves its KV cache where the chosen decode placement reads it.
Objectives: ttft and tpot are a step's seconds; tps tokens/s (the same order at a given batch); tps_per_gpu and cost
GPU-seconds a token. Ties go to fewer GPUs, then to the earlier candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from planner.bound import step_bound
from planner.evaluate import Evaluated, evaluate, lacking, memory_of
from planner.problem import Problem
from planner.rates import Array
from planner.space import Question, Scheme, Table, enumerate_space, num_gpus, placement_of
from simulator.allocation import RankBytes, Search
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.program import Program

SHORTLIST = 64  # candidates bounded by predicted kernels before anything is simulated
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rival:
    """A candidate's place in the race: its objective (lower is better), GPUs, row."""

    score: float
    num_gpus: int
    row: int

    @property
    def key(self) -> tuple[float, int, int]:
        return self.score, self.num_gpus, self.row


@dataclass
class Race:
    """What a search found. ``simulated`` by row; ``refused`` by row, with the reason."""

    question: Question
    table: Table
    bounds: Array
    scores: Array
    cache: Placement | None
    simulated: dict[int, Evaluated] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    memory: dict[int, tuple[RankBytes, ...]] = field(default_factory=dict)
    gap: float = 0.0
    known: dict[int, Evaluated] = field(default_factory=dict)

    def ranking(self) -> list[Rival]:
        """Simulated and fitting candidates, best first."""
        factor = self.scores / np.maximum(self.bounds, 1e-30)
        rivals = [
            Rival(found.step_s * float(factor[row]), found.num_gpus, row)
            for row, found in self.simulated.items()
            if row not in self.refused
        ]
        return sorted(rivals, key=lambda rival: rival.key)

    def search(self) -> Search:
        lowered = len(self.simulated) + len(self.refused)
        return Search(candidates=len(self.table), lowered=lowered, simulated=len(self.simulated), gap=self.gap)


def score_factor(problem: Problem, question: Question, table: Table) -> Array:
    """What a candidate's step seconds are multiplied with to give the objective (lower is better)."""
    tokens = question.step.num_tokens
    match problem.objective:
        case "ttft" | "tpot" | "tps":
            return np.full(len(table), 1.0 / tokens if problem.objective == "tps" else 1.0)
        case "tps_per_gpu" | "cost":
            return np.asarray(num_gpus(table) / tokens, dtype=np.float64)


def race(
    problem: Problem,
    question: Question,
    *,
    cache: Placement | None = None,
    beside: tuple[Program, ...] = (),
    rows: Mask | None = None,
    limit: int | None = None,
) -> Race:
    """Simulate best-first until no bound can beat the best. ``beside``: programs whose memory must fit too;
    ``rows``: a mask of the candidates that take part; ``limit``: simulations at most (then the gap is stated)."""
    table = enumerate_space(question)
    table = table if rows is None else table[rows]
    found = _bounded(problem, question, table, cache, beside)
    scores, bounds = found.scores, found.bounds
    slo_s = problem.limits.ttft_slo_s if question.phase == "prefill" else problem.limits.tpot_slo_s
    best = np.inf
    for number, row in enumerate(_promising(found, slo_s)):
        if scores[row] > best:
            break
        if limit is not None and number >= limit and np.isfinite(best):
            found.gap = max(0.0, 1.0 - float(scores[row]) / best)
            break
        _try(problem, found, row, beside, slo_s, best)
        if row in found.simulated and row not in found.refused:
            best = min(best, found.simulated[row].step_s * float(scores[row] / bounds[row]))
    if not np.isfinite(best):
        raise InfeasibleError(_why_nothing(problem, found))
    return found


def _bounded(
    problem: Problem, question: Question, table: Table, cache: Placement | None, beside: tuple[Program, ...]
) -> Race:
    """Roofline bounds for all; predicted ones for those that a first simulated candidate does not already beat."""
    parts = None if cache is None else parts_of(cache)
    factor = score_factor(problem, question, table)
    bounds = step_bound(question, table, problem.rates.as_roofline(), parts=parts)
    first = np.argsort(bounds * factor, kind="stable")[:SHORTLIST]
    bounds[first] = np.maximum(bounds[first], step_bound(question, table[first], problem.rates, parts=parts))
    best = int(first[np.argmin((bounds * factor)[first])])
    found = Race(question, table, bounds, bounds * factor, cache)
    _try(problem, found, best, beside, None, np.inf)
    limit = np.inf
    if best in found.simulated and best not in found.refused:
        limit = found.simulated[best].step_s * float(factor[best])
    near = np.setdiff1d(np.flatnonzero(bounds * factor <= limit), first)
    if len(near):
        bounds[near] = np.maximum(bounds[near], step_bound(question, table[near], problem.rates, parts=parts))
    return Race(question, table, bounds, bounds * factor, cache, known=found.simulated)


def _promising(found: Race, slo_s: float | None) -> Iterator[int]:
    """Rows by rising score bound, then fewer GPUs; none whose bound already misses the SLO."""
    for row in np.lexsort((num_gpus(found.table), found.scores)):
        if slo_s is None or found.bounds[row] <= slo_s:
            yield int(row)


def _try(
    problem: Problem, found: Race, row: int, beside: tuple[Program, ...], slo_s: float | None, best: float
) -> None:
    """Simulate a row; refuse it if it does not fit model, SLO or memory (only checked if it would lead)."""
    placement = placement_of(found.question, found.table[row])
    try:
        evaluated = found.known.get(row) or evaluate(problem, found.question, placement, found.cache)
    except InfeasibleError as error:
        found.refused[row] = str(error)
        return
    found.simulated[row] = evaluated
    if slo_s is not None and evaluated.step_s > slo_s:
        found.refused[row] = f"{evaluated.step_s:.4g} s misses the SLO of {slo_s:.4g} s"
        return
    if evaluated.step_s * float(found.scores[row] / found.bounds[row]) <= best:
        found.memory[row] = memory_of(problem, [evaluated.program, *beside])
        short = lacking(found.memory[row])
        if short is not None:
            found.refused[row] = f"rank {short.rank} lacks {-short.headroom_bytes} bytes"


def parts_of(cache: Placement) -> int:
    """As ``lowering.decode_parts`` deals sequences."""
    return max(max(stage.grid.query_blocks, stage.token_replicas) for stage in cache.stages)


def _why_nothing(problem: Problem, found: Race) -> str:
    question = found.question
    place = f"{problem.name}: {question.phase} of {question.batch} × {question.tokens} tokens"
    if not found.refused:
        slo_s = problem.limits.ttft_slo_s if question.phase == "prefill" else problem.limits.tpot_slo_s
        return f"{place}: no candidate can meet the SLO of {slo_s} s; the best bound is {found.bounds.min():.4g} s"
    row = min(found.refused, key=lambda row: (found.scores[row], row))
    return (
        f"{place}: none of {len(found.table)} candidates fits on {question.max_gpus} GPUs; the best by bound fails as "
        f"{found.refused[row]}; allow more GPUs, a smaller batch or another model"
    )


def pools_only(question: Question) -> Mask:
    """Mask of FA Pool candidates, hybrids included."""
    table = enumerate_space(question)
    return np.asarray(np.isin(table["scheme"], (Scheme.POOL, Scheme.JOINED)))
