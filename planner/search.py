"""Search: the best placement of every phase and length bucket, exact with respect to the simulator.

All candidates get a lower bound at once (``bound``); the most promising are simulated until no bound is below the best
simulated time: what was never simulated cannot win, so the optimality gap is 0 (or stated, under a limit). A simulation
stops as soon as its clock passes the runner-up, so losers cost less than winners. Decode is
planned first: prefill then leaves its KV cache where the chosen decode placement reads it.
Objectives: ttft and tpot are a step's seconds; tps tokens/s (the same order at a given batch); tps_per_gpu and cost
GPU-seconds a token. Ties go to fewer GPUs, then to the earlier candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from planner.bounds.bound import ROUNDING, chunked_bound, num_cells
from planner.bounds.rates import Array, Numbers, Rates
from planner.cache_fit import beside_cache
from planner.evaluate import Evaluated, evaluate_until, shortage, step_interval
from planner.problem import Problem
from planner.space import Question, Scheme, Table, enumerate_space, num_gpus, placement_of
from planner.weights_fit import fitting
from simulator.allocation import Search
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.program import Program

RUNNER_UPS = 4  # candidates tried beyond the proof while no other placement has been met
SHORTLIST = 64  # candidates bounded by predicted kernels before anything is simulated
PRICED_CELLS = 100_000  # query blocks of all candidates up to which all are bounded by predicted kernels at once
THIN_CELLS = 4_000_000  # query blocks of all candidates from which the first bound looks at one of each
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
    """What a search found. ``simulated`` by row; ``refused`` by row, with the reason; ``late``: seconds that rows take
    longer than (they were stopped there)."""

    question: Question
    table: Table
    bounds: Array
    scores: Array
    cache: Placement | None
    simulated: dict[int, Evaluated] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    gap: float = 0.0
    known: dict[int, Evaluated] = field(default_factory=dict)
    late: dict[int, float] = field(default_factory=dict)

    def ranking(self) -> list[Rival]:
        """Simulated and fitting candidates, best first."""
        factor = self.scores / np.maximum(self.bounds, 1e-30)
        rivals = [
            Rival(found.step_s * float(factor[row]), found.num_gpus, row)
            for row, found in self.simulated.items()
            if row not in self.refused
        ]
        return sorted(rivals, key=lambda rival: rival.key)

    @property
    def best_score(self) -> float:
        ranking = self.ranking()
        return ranking[0].score if ranking else np.inf

    def best_pool(self) -> Rival | None:
        return next((rival for rival in self.ranking() if self.simulated[rival.row].pool_gpus), None)

    @property
    def num_simulated(self) -> int:
        return len(self.simulated) + len(self.late)

    @property
    def spent(self) -> int:
        """Simulations that count against a limit: four that end in a refusal (memory, SLO) as one."""
        refused = len(self.refused.keys() & self.simulated.keys())
        return self.num_simulated - refused + refused // 4

    def search(self) -> Search:
        simulated = self.num_simulated
        lowered = simulated + len(self.refused.keys() - self.simulated.keys())
        return Search(candidates=len(self.table), lowered=lowered, simulated=simulated, gap=self.gap)

    def runner_up(self) -> Rival | None:
        """The best on other GPUs, groups or grids than the winner's."""
        ranking = self.ranking()
        placements = [self.simulated[rival.row].placement for rival in ranking]
        return next((r for r, one in zip(ranking, placements, strict=True) if differs(one, placements[0])), None)


def differs(one: Placement, other: Placement) -> bool:
    """Different GPUs, groups or grids: not only another block rule, multicast or number of pieces."""
    return one.stages != other.stages or one.micro_batches != other.micro_batches


def score_factor(problem: Problem, question: Question, table: Table) -> Array:
    """What a candidate's step seconds are multiplied with to give the objective (lower is better)."""
    return np.broadcast_to(_factor(problem, question, num_gpus(table).astype(np.float64)), len(table))


def score_of(problem: Problem, question: Question, found: Evaluated) -> float:
    """The objective of a simulated candidate; lower is better."""
    return found.step_s * float(_factor(problem, question, np.float64(found.num_gpus)))


def _factor(problem: Problem, question: Question, gpus: Array | np.float64) -> Array | np.float64:
    tokens = question.step.num_tokens
    match problem.objective:
        case "ttft" | "tpot":
            return np.float64(1.0)
        case "tps":
            return np.float64(1.0 / tokens)
        case "tps_per_gpu" | "cost":
            return gpus / tokens


def race(
    problem: Problem,
    question: Question,
    *,
    cache: Placement | None = None,
    beside: tuple[Program, ...] = (),
    rows: Mask | None = None,
    limit: int | None = None,
) -> Race:
    """Simulate best-first until no bound can beat the best; then, if none was met, look for a runner-up a little.

    ``beside``: programs whose memory must fit too; ``rows``: a mask of the candidates that take part; ``limit``:
    simulations at most (then the gap is stated)."""
    table = enumerate_space(question)
    table = beside_cache(table if rows is None else table[rows], cache)
    if not len(table):
        raise InfeasibleError(f"{problem.name}: no candidate can prefill into the cache of {cache and cache.name}")
    table = fitting(question, table)
    found = _bounded(problem, question, table, cache, beside)
    extra = 0
    for row in _promising(found, _slo_s(problem, question)):
        best, second = found.best_score, found.runner_up()
        if found.scores[row] > best:
            if second is not None or extra == RUNNER_UPS:
                break
            extra += 1
        if limit is not None and found.spent >= limit and np.isfinite(best):
            found.gap = max(0.0, 1.0 - float(found.scores[row]) / best)
            break
        _try(problem, found, row, beside, np.inf if second is None else second.score)
    if not np.isfinite(found.best_score):
        raise InfeasibleError(_why_nothing(problem, found))
    return found


def try_pools(problem: Problem, found: Race, beside: tuple[Program, ...], *, simulations: int | None) -> None:
    """Simulate the pools of best bound too where they are not in the race, so that its best pool is known: so many at
    most (None: until no other can be better)."""
    slo_s = _slo_s(problem, found.question)
    pools = np.isin(found.table["scheme"], (Scheme.POOL, Scheme.JOINED))
    # of equal bounds a chain first, which is the better at length: the others are then stopped early
    order = np.lexsort((-found.table["multicast"].astype(np.int64), num_gpus(found.table), found.scores))
    for row in islice((row for row in _promising(found, slo_s, order) if pools[row]), simulations):
        best = found.best_pool()
        if best is not None and found.scores[row] > best.score:
            break
        raced = row in found.simulated or row in found.refused or (best is not None and row in found.late)
        if not raced:
            _try(problem, found, row, beside, np.inf if best is None else best.score)


def try_static(problem: Problem, found: Race, beside: tuple[Program, ...]) -> None:
    """Where a limit left a gap, simulate one micro-batch through the documents' static strategies too: a choice is
    never behind what is shown beside it."""
    if found.gap == 0.0:
        return
    table, before = found.table, found.best_score
    base = found.question.base_gpus or min(8, found.question.max_gpus)
    for tensor, stages in ((base, 1), (8, 2), (16, 2), (8, 4)):
        same = (table["scheme"] == Scheme.STATIC) & (table["micro_batches"] == 1) & (table["dealing"] == 0)
        for row in np.flatnonzero(same & (table["tensor"] == tensor) & (table["stages"] == stages)):
            if int(row) not in found.simulated and int(row) not in found.refused and int(row) not in found.late:
                _try(problem, found, int(row), beside, np.inf)
    found.gap = max(0.0, 1.0 - (1.0 - found.gap) * before / found.best_score)


def _slo_s(problem: Problem, question: Question) -> float | None:
    return problem.limits.ttft_slo_s if question.phase == "prefill" else problem.limits.tpot_slo_s


def _bounded(
    problem: Problem, question: Question, table: Table, cache: Placement | None, beside: tuple[Program, ...]
) -> Race:
    """Bounds by predicted kernels for all of few. Of many: roofline bounds (of very many: thin ones), and tighter ones
    for those that a first simulated candidate does not already beat."""
    parts = None if cache is None else parts_of(cache)
    factor, floor = score_factor(problem, question, table), problem.rates.as_roofline()
    bounds = np.zeros(len(table))

    def raise_to(rows: Numbers, rates: Rates) -> None:
        bounds[rows] = np.maximum(bounds[rows], chunked_bound(question, table[rows], rates, parts=parts))

    cells = int(num_cells(table, floor).sum())
    if cells <= PRICED_CELLS:
        raise_to(np.arange(len(table)), problem.rates)
        return Race(question, table, bounds, bounds * factor, cache)
    many = cells > THIN_CELLS
    raise_to(np.arange(len(table)), floor.as_thin() if many else floor)
    first = np.argsort(bounds * factor, kind="stable")[:SHORTLIST]
    raise_to(first, problem.rates)
    best = int(first[np.argmin((bounds * factor)[first])])
    found = Race(question, table, bounds, bounds * factor, cache)
    _try(problem, found, best, beside, np.inf)
    for rates in (floor, problem.rates) if many else (problem.rates,):
        near = np.flatnonzero(bounds * factor <= found.best_score)
        raise_to(np.setdiff1d(near, first), rates)
    return Race(question, table, bounds, bounds * factor, cache, known=found.simulated)


def _promising(found: Race, slo_s: float | None, order: Numbers | None = None) -> Iterator[int]:
    """Rows by rising score bound, then fewer GPUs; none whose bound already misses the SLO."""
    for row in np.lexsort((num_gpus(found.table), found.scores)) if order is None else order:
        if slo_s is None or found.bounds[row] <= slo_s:
            yield int(row)


def _try(problem: Problem, found: Race, row: int, beside: tuple[Program, ...], worst: float) -> None:
    """Simulate a row until its score passes ``worst``; refuse it if it does not fit model, SLO or memory."""
    placement, slo_s = placement_of(found.question, found.table[row]), _slo_s(problem, found.question)
    deadline_s = worst * float(found.bounds[row] / found.scores[row]) * (1 + ROUNDING)
    try:
        evaluated = found.known.get(row) or evaluate_until(problem, found.question, placement, found.cache, deadline_s)
    except InfeasibleError as error:
        found.refused[row] = str(error)
        return
    if evaluated is None:
        found.late[row] = deadline_s
        return
    found.simulated[row] = evaluated
    step_s = step_interval(problem, evaluated).p95 if problem.limits.slo_quantile == "p95" else evaluated.step_s
    if slo_s is not None and step_s > slo_s:
        found.refused[row] = f"{step_s:.4g} s ({problem.limits.slo_quantile}) misses the SLO of {slo_s:.4g} s"
        return
    short = shortage(problem, [evaluated.program, *beside])
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
