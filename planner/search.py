"""Search: the best placement of every phase and length bucket, exact with respect to the simulator.

All candidates get a lower bound (``frontier.py``); the most promising are simulated until no bound is below the best
simulated time: what was never simulated cannot win, so the optimality gap is 0 (or stated, under a limit). A simulation
stops as soon as its clock passes the runner-up, so losers cost less than winners. Decode is
planned first: prefill then leaves its KV cache where the chosen decode placement reads it.
Ties go to fewer GPUs, then to the earlier candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from planner.bounds.bound import ROUNDING
from planner.bounds.rates import Array
from planner.boxes import boxes_of
from planner.cache_fit import beside_cache, sliced
from planner.evaluate import Evaluated, evaluate_until, shortage, step_interval
from planner.frontier import Frontier
from planner.problem import Problem
from planner.score import score_factor, score_of
from planner.space import Question, Scheme, Table, enumerate_space, placement_of
from planner.weights_fit import fitting
from simulator.allocation import Search
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.program import Program

RUNNER_UPS = 4  # candidates tried beyond the proof while no other placement has been met
POOL_EFFORT = 4  # ordinary simulations that a pool may take which is only shown
LOOKED_AT = 2000  # pools among which one of so little effort is looked for
POOLS = (Scheme.POOL, Scheme.JOINED)
Mask = npt.NDArray[np.bool_]
__all__ = ["Race", "Rival", "differs", "parts_of", "race", "score_factor", "score_of", "try_pools", "try_static"]


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
    frontier: Frontier
    cache: Placement | None
    simulated: dict[int, Evaluated] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    gap: float = 0.0
    late: dict[int, float] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """Candidates, but for those of boxes that were never opened."""
        return self.frontier.table

    @property
    def bounds(self) -> Array:
        return self.frontier.bounds

    @property
    def scores(self) -> Array:
        """Bounds in the objective."""
        return self.frontier.scores

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
    def spent(self) -> float:
        """Ordinary simulations that count against a limit: four that end in a refusal (memory, SLO) as one."""
        refused = self.refused.keys() & self.simulated.keys()
        efforts = self.frontier.efforts
        rest = [row for row in (*self.simulated, *self.late) if row not in refused]
        return float(efforts[rest].sum() + sum(efforts[row] for row in refused) // 4)

    def search(self) -> Search:
        simulated = self.num_simulated
        lowered = simulated + len(self.refused.keys() - self.simulated.keys())
        return Search(candidates=len(self.frontier), lowered=lowered, simulated=simulated, gap=self.gap)

    def runner_up(self) -> Rival | None:
        """The best on other GPUs, groups or grids than the winner's."""
        ranking = self.ranking()
        placements = [self.simulated[rival.row].placement for rival in ranking]
        return next((r for r, one in zip(ranking, placements, strict=True) if differs(one, placements[0])), None)


def differs(one: Placement, other: Placement) -> bool:
    """Different GPUs, groups or grids: not only another block rule, multicast or number of pieces."""
    return one.stages != other.stages or one.micro_batches != other.micro_batches


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
    ordinary simulations at most (``effort.py``; then the gap is stated)."""
    found = Race(question, _frontier(problem, question, cache, rows), cache)
    least, extra, slo_s = np.inf, 0, _slo_s(problem, question)
    for row in _promising(found, slo_s, most=np.inf if limit is None else limit):
        if found.scores[row] > found.best_score:
            if found.runner_up() is not None or extra == RUNNER_UPS:
                break
            extra += 1
        if limit is not None and found.spent + found.frontier.efforts[row] > limit and not _first(found, row, limit):
            least = min(least, float(found.scores[row]))
            if found.spent >= limit:
                break
            continue
        second = found.runner_up()
        _try(problem, found, row, beside, np.inf if second is None else second.score)
    if limit is not None:
        least = min(least, found.frontier.least_beyond(limit, below=found.best_score, slo_s=slo_s))
    if not np.isfinite(found.best_score) and np.isfinite(least):
        _try_cheapest(problem, found, beside)
    if not np.isfinite(found.best_score):
        raise InfeasibleError(_why_nothing(problem, found))
    found.gap = max(0.0, 1.0 - least / found.best_score)
    return found


def _first(found: Race, row: int, limit: int) -> bool:
    """Whether nothing fits yet, and one simulation of this row is within the limit."""
    return not np.isfinite(found.best_score) and bool(found.frontier.efforts[row] <= limit)


def _try_cheapest(problem: Problem, found: Race, beside: tuple[Program, ...]) -> None:
    """Where the limit is less than one simulation: what is least work, until something fits."""
    slo_s = _slo_s(problem, found.question)
    for row in np.lexsort((found.scores, found.frontier.efforts)).tolist():
        raced = row in found.simulated or row in found.refused
        if not raced and found.bounds[row] <= slo_s:
            _try(problem, found, row, beside, np.inf)
        if np.isfinite(found.best_score):
            break


def try_pools(problem: Problem, found: Race, beside: tuple[Program, ...], *, simulations: int | None) -> None:
    """Simulate the pools of best bound too where they are not in the race, so that its best pool is known: so many at
    most (None: until no other can be better)."""
    most, boxes, looked_at = (np.inf, None, None) if simulations is None else (POOL_EFFORT, 1, LOOKED_AT)
    rising = islice(found.frontier.rising(POOLS, most=most, boxes=boxes), looked_at)
    slo_s = _slo_s(problem, found.question)
    cheap = (row for row in rising if found.bounds[row] <= slo_s)
    for row in islice(cheap, simulations):
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


def _slo_s(problem: Problem, question: Question) -> float:
    """Infinite where none is asked for."""
    slo_s = problem.limits.ttft_slo_s if question.phase == "prefill" else problem.limits.tpot_slo_s
    return np.inf if slo_s is None else slo_s


def _frontier(problem: Problem, question: Question, cache: Placement | None, rows: Mask | None) -> Frontier:
    """The candidates that can prefill into a cache and whose weights may fit; pools of a large space closed."""
    parts = None if cache is None else parts_of(cache)
    whole = rows is not None or (cache is not None and sliced(cache))
    closed = () if whole else boxes_of(question, problem.rates, parts=parts)
    table = enumerate_space(question, pools=not closed)
    table = beside_cache(table if rows is None else table[rows], cache)
    if not len(table):
        raise InfeasibleError(f"{problem.name}: no candidate can prefill into the cache of {cache and cache.name}")
    return Frontier(problem, question, parts, fitting(question, table), list(closed))


def _promising(found: Race, slo_s: float, *, most: float) -> Iterator[int]:
    """Rows by rising score bound, then fewer GPUs; none whose bound already misses the SLO."""
    for row in found.frontier.rising(most=most):
        if found.bounds[row] <= slo_s:
            yield row


def _try(problem: Problem, found: Race, row: int, beside: tuple[Program, ...], worst: float) -> None:
    """Simulate a row until its score passes ``worst``; refuse it if it does not fit model, SLO or memory."""
    placement, slo_s = placement_of(found.question, found.table[row]), _slo_s(problem, found.question)
    deadline_s = worst * float(found.bounds[row] / found.scores[row]) * (1 + ROUNDING)
    try:
        evaluated = evaluate_until(problem, found.question, placement, found.cache, deadline_s)
    except InfeasibleError as error:
        found.refused[row] = str(error)
        return
    if evaluated is None:
        found.late[row] = deadline_s
        return
    found.simulated[row] = evaluated
    step_s = step_interval(problem, evaluated).p95 if problem.limits.slo_quantile == "p95" else evaluated.step_s
    if step_s > slo_s:
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
        slo_s = _slo_s(problem, question)
        return f"{place}: no candidate can meet the SLO of {slo_s} s; the best bound is {found.bounds.min():.4g} s"
    row = min(found.refused, key=lambda row: (found.scores[row], row))
    return (
        f"{place}: none of {len(found.table)} candidates fits on {question.max_gpus} GPUs; the best by bound fails as "
        f"{found.refused[row]}; allow more GPUs, a smaller batch or another model"
    )
