"""Evaluate: one candidate lowered, checked for memory, simulated; and what its profile doubts about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from planner.depth import period_ps, shallow_versions
from planner.exploring.critical_path import CriticalPath, Doubt, critical_path, kind_of
from planner.problem import Problem
from planner.space import Question
from simulator.allocation import Interval, Metrics, RankBytes
from simulator.collector import collector_paused
from simulator.costs.pricing import price
from simulator.costs.work import kernels_of
from simulator.errors import InfeasibleError
from simulator.fold import Fold, UnfoldableError
from simulator.kernel import Kernel
from simulator.lowering import lower
from simulator.memory import Footprint, rank_memory
from simulator.memory_ceiling import most_bytes
from simulator.placement import Placement
from simulator.power import drawn_w
from simulator.profile import Tag
from simulator.program import Program
from simulator.simulation.engine import run_until
from simulator.simulation.timeline import Timeline
from simulator.units import PICOSECONDS_PER_S

NETWORK_LOG_ERROR = 0.1  # half-width of the 90 % interval of transfers and collectives on assumed links


@dataclass(frozen=True)
class Evaluated:
    """A candidate that was simulated. ``step_s`` is the whole model's; program and timeline may be a shallow one's."""

    placement: Placement
    program: Program
    timeline: Timeline
    num_gpus: int
    pool_gpus: int
    step_s: float
    doubts: list[Doubt] = field(default_factory=list, compare=False)
    paths: list[CriticalPath] = field(default_factory=list, compare=False)

    @property
    def path(self) -> CriticalPath:
        if not self.paths:
            self.paths.append(critical_path(self.timeline, self.step_s))
        return self.paths[0]


def lower_for(
    problem: Problem, question: Question, placement: Placement, cache: Placement | None, fold: Fold | None = None
) -> Program:
    dtype, nodes = problem.dtype, question.nodes
    return lower(problem.model, question.step, placement, nodes=nodes, dtype=dtype, cache=cache, fold=fold)


def evaluate(problem: Problem, question: Question, placement: Placement, cache: Placement | None) -> Evaluated:
    """Lower and simulate every layer. InfeasibleError where the placement does not fit the model."""
    with collector_paused():
        timeline = _play(problem, lower_for(problem, question, placement, cache), math.inf)
    assert timeline is not None, "no deadline was passed"
    return _evaluated(placement, timeline, timeline.duration_s)


def evaluate_until(
    problem: Problem, question: Question, placement: Placement, cache: Placement | None, deadline_s: float
) -> Evaluated | None:
    """The same step time with as few ranks and layers simulated as it takes; None where it is above ``deadline_s``."""
    with collector_paused():
        for fold in (*problem.folds(placement, cache), None):
            try:
                return evaluate_folded(problem, question, placement, cache, fold, deadline_s)
            except UnfoldableError:
                continue
    raise AssertionError("a program that is not folded is evaluated")


def evaluate_folded(
    problem: Problem,
    question: Question,
    placement: Placement,
    cache: Placement | None,
    fold: Fold | None,
    deadline_s: float,
) -> Evaluated | None:
    """As ``evaluate_until``, by one way to fold (None: whole); UnfoldableError where its blocks differ after all."""
    for shallow in shallow_versions(problem.model, placement, cache):
        cut = replace(problem, model=shallow.model)
        program = lower_for(cut, question, shallow.placement, shallow.cache, fold)
        timeline = _play(problem, replace(program, repeated=shallow.repeated()), deadline_s)
        if timeline is None:
            return None
        period = period_ps(timeline, shallow.depth)
        if period is not None:
            whole_ps = timeline.makespan_ps + (shallow.layers - shallow.depth) * period
            step_s = whole_ps / PICOSECONDS_PER_S
            return _evaluated(placement, timeline, step_s) if step_s <= deadline_s else None
    timeline = _play(problem, lower_for(problem, question, placement, cache, fold), deadline_s)
    return None if timeline is None else _evaluated(placement, timeline, timeline.duration_s)


def _play(problem: Problem, program: Program, deadline_s: float) -> Timeline | None:
    prices = price(program, problem.cluster, problem.profiles, predicted=problem.predicted)
    return run_until(program, problem.rates.cluster, prices.durations_s, deadline_s, problem.world.priced(prices))


def _evaluated(placement: Placement, timeline: Timeline, step_s: float) -> Evaluated:
    return Evaluated(placement, timeline.program, timeline, len(placement.ranks), len(placement.pool_ranks), step_s)


def memory_of(problem: Problem, programs: Sequence[Program]) -> tuple[RankBytes, ...]:
    """Bytes of every used rank over these programs, against its device's."""
    return resident_bytes(problem, [problem.footprint(program) for program in programs])


def shortage(problem: Problem, programs: Sequence[Program]) -> RankBytes | None:
    """The rank that lacks most while these programs are resident, or None if all fit."""
    most = most_bytes(problem.model, [problem.ceiling(program) for program in programs])
    if most <= min(gpu.memory_bytes for gpu in problem.cluster.gpus):
        return None
    return lacking(memory_of(problem, programs))


def resident_bytes(problem: Problem, footprints: Sequence[Footprint]) -> tuple[RankBytes, ...]:
    """As ``memory_of``, all footprints' weights resident side by side."""
    gpus = [problem.cluster.gpu_named(node.gpu) for _, _, node in problem.cluster.rank_nodes()]
    return tuple(
        RankBytes(
            rank=rank,
            weights_bytes=used.weights,
            kv_cache_bytes=used.kv_cache,
            activations_bytes=used.activations,
            buffers_bytes=used.buffers,
            capacity_bytes=gpus[rank].memory_bytes,
            headroom_bytes=gpus[rank].memory_bytes - used.total,
        )
        for rank, used in enumerate(rank_memory(problem.model, footprints, gpus))
        if used.total
    )


def lacking(memory: tuple[RankBytes, ...]) -> RankBytes | None:
    """The rank that lacks most, or None if all fit."""
    worst = min(memory, key=lambda row: row.headroom_bytes)
    return worst if worst.headroom_bytes < 0 else None


def doubt_of(problem: Problem, found: Evaluated) -> Doubt:
    """p05 and p95 of the kernels on the critical path, summed by kind; transfers by an assumed error."""
    if found.doubts:
        return found.doubts[0]
    places = problem.cluster.rank_nodes()
    up: dict[str, float] = {}
    down: dict[str, float] = {}
    wanted: dict[tuple[str, Kernel], list[tuple[str, float]]] = {}
    for rank, index in found.path.nodes:
        operation, node = found.program.ranks[rank][index], places[rank][2]
        for kernel in kernels_of(operation, found.program.dtype):
            weight = node.slowdown * found.path.times((rank, index))
            wanted.setdefault((node.gpu, kernel), []).append((kind_of(operation), weight))
    for gpu in dict.fromkeys(gpu for gpu, _ in wanted):
        mine = [kernel for owner, kernel in wanted if owner == gpu]
        prediction = problem.predicted(mine, problem.profiles[gpu])
        for number, key in enumerate(mine):
            above = float(prediction.p95_s[number] - prediction.seconds[number])
            below = float(prediction.seconds[number] - prediction.p05_s[number])
            for kind, weight in wanted[gpu, key]:
                up[kind] = up.get(kind, 0.0) + above * weight
                down[kind] = down.get(kind, 0.0) + below * weight
    seconds = found.path.seconds()
    for kind in ("network", "collective", "waiting"):
        up[kind] = seconds[kind] * float(np.expm1(NETWORK_LOG_ERROR))
        down[kind] = -seconds[kind] * float(np.expm1(-NETWORK_LOG_ERROR))
    found.doubts.append(Doubt(up, down))
    return found.doubts[0]


def tag_of(problem: Problem, found: Evaluated) -> Tag:
    """``assumed`` where bytes pass links nobody measured (between nodes), else ``fitted``."""
    nodes = {problem.cluster.rank_nodes()[rank][0] for rank in found.placement.ranks}
    return "assumed" if len(nodes) > 1 else "fitted"


def step_interval(problem: Problem, found: Evaluated) -> Interval:
    below, above = doubt_of(problem, found).half_widths()
    return Interval(
        value=found.step_s,
        p05=max(found.step_s - below, 0.0),
        p95=found.step_s + above,
        tag=tag_of(problem, found),
    )


def metrics_of(problem: Problem, question: Question, found: Evaluated) -> Metrics:
    """Every metric of one step; tokens are the step's new tokens."""
    step, tokens = step_interval(problem, found), question.step.num_tokens
    watts = drawn_w(problem.cluster, found.placement.ranks)
    return Metrics(
        step_s=step,
        ttft_s=step if question.phase == "prefill" else None,
        tpot_s=step if question.phase == "decode" else None,
        tokens_per_s=_inverse(step, tokens),
        tokens_per_s_per_gpu=_inverse(step, tokens / found.num_gpus),
        gpu_seconds_per_token=_scaled(step, found.num_gpus / tokens),
        joules_per_token=None if watts is None else _scaled(step.model_copy(update={"tag": "assumed"}), watts / tokens),
    )


def _inverse(interval: Interval, amount: float) -> Interval:
    low = interval.p05 if interval.p05 > 0 else interval.value
    return Interval(value=amount / interval.value, p05=amount / interval.p95, p95=amount / low, tag=interval.tag)


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(
        value=interval.value * factor, p05=interval.p05 * factor, p95=interval.p95 * factor, tag=interval.tag
    )


def try_evaluate(
    problem: Problem, question: Question, placement: Placement, cache: Placement | None
) -> Evaluated | str:
    """The evaluation, or why there is none."""
    try:
        return evaluate(problem, question, placement, cache)
    except InfeasibleError as error:
        return str(error)
