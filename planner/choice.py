"""Choice: a race's winner as an entry of the policy, with what is shown beside it.

The runner-up is the best on other GPUs, groups or grids of all that was simulated: in the race, or as one of the
documents' own configurations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from planner.cache_fit import sliced
from planner.evaluate import Evaluated, doubt_of, evaluate_until, memory_of, metrics_of, shortage, step_interval
from planner.exploring.critical_path import difference
from planner.problem import Problem
from planner.rivals import baselines, rule_placement
from planner.search import Race, differs, score_of
from planner.space import Question
from simulator.allocation import Alternative, Binding, BindingKind, Choice, Exactness, Interval, ParetoPoint
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.program import Program
from simulator.workload import Bucket


def choose(
    problem: Problem, bucket: Bucket, found: Race, beside: tuple[Program, ...], *, taken: Evaluated | None = None
) -> Choice:
    """The winner of a race as an entry of the policy. ``taken``: another one that was simulated, because the policy as
    a whole is better with it; its gap is then to the winner, and it has no runner-up."""
    ranking, question = found.ranking(), found.question
    first, pool = found.simulated[ranking[0].row], found.best_pool()
    winner = first if taken is None else taken
    own_best = winner.placement == first.placement
    shown = [_shown(problem, found, one) for one in (rule_placement(question), *baselines(question))]
    second = _runner_up(problem, found, winner, shown) if own_best else None
    margin = None if second is None else _margin(problem, question, winner, second)
    search = found.search()
    if not own_best:
        ours = next(rival.score for rival in ranking if found.simulated[rival.row].placement == winner.placement)
        search = search.model_copy(update={"gap": 1.0 - ranking[0].score * (1.0 - search.gap) / ours})
    return Choice(
        phase=question.phase,
        bucket=bucket.name,
        min_tokens=bucket.min_tokens,
        max_tokens=bucket.max_tokens,
        tokens=question.tokens,
        batch=question.batch,
        placement=winner.placement,
        num_gpus=winner.num_gpus,
        pool_gpus=winner.pool_gpus,
        metrics=metrics_of(problem, question, winner),
        memory=memory_of(problem, [winner.program, *beside]),
        binding=binding_of(winner),
        exactness=exactness_of(problem, winner.placement),
        runner_up=None if second is None else alternative(problem, second),
        margin=margin,
        too_close_to_call=margin is not None and margin.p05 <= 0.0,
        rule=_as_alternative(problem, shown[0]),
        baselines=tuple(_as_alternative(problem, one) for one in shown[1:]),
        best_pool=None if pool is None else alternative(problem, found.simulated[pool.row]),
        pareto=_pareto(found),
        search=search,
    )


def _runner_up(
    problem: Problem, found: Race, winner: Evaluated, shown: Sequence[Evaluated | Alternative]
) -> Evaluated | None:
    """The best on other GPUs, groups or grids of all that was simulated: in the race, or to be shown beside it."""
    question, second = found.question, found.runner_up()
    others = [] if second is None else [found.simulated[second.row]]
    for one in shown:
        if not isinstance(one, Evaluated) or not differs(one.placement, winner.placement):
            continue
        if score_of(problem, question, one) >= score_of(problem, question, winner):
            others.append(one)
    return min(others, key=lambda one: (score_of(problem, question, one), one.num_gpus), default=None)


def _margin(problem: Problem, question: Question, ours: Evaluated, other: Evaluated) -> Interval:
    """(runner-up − ours) / ours in the objective."""
    below, above = difference(doubt_of(problem, ours), doubt_of(problem, other))
    value = score_of(problem, question, other) / score_of(problem, question, ours) - 1.0
    return Interval(
        value=value,
        p05=value - below / ours.step_s,
        p95=value + above / ours.step_s,
        tag=step_interval(problem, ours).tag,
    )


def alternative(problem: Problem, found: Evaluated) -> Alternative:
    return Alternative(
        name=found.placement.name,
        placement=found.placement,
        num_gpus=found.num_gpus,
        pool_gpus=found.pool_gpus,
        step_s=step_interval(problem, found),
    )


def _shown(problem: Problem, race: Race, placement: Placement | str) -> Evaluated | Alternative:
    """A named rival, simulated (in the race or now); or why it cannot be."""
    if isinstance(placement, str):
        return Alternative(
            name=placement.split(":")[0], placement=None, num_gpus=0, pool_gpus=0, step_s=None, infeasible=placement
        )
    found: Evaluated | str | None
    try:
        found = _raced(race, placement) or evaluate_until(problem, race.question, placement, race.cache, math.inf)
    except InfeasibleError as error:
        found = str(error)
    if isinstance(found, Evaluated):
        short = shortage(problem, [found.program])
        if short is None:
            return found
        found = f"rank {short.rank} lacks {-short.headroom_bytes} bytes"
    return Alternative(
        name=placement.name, placement=placement, num_gpus=len(placement.ranks), pool_gpus=len(placement.pool_ranks),
        step_s=None, infeasible=found,
    )  # fmt: skip


def _raced(race: Race, placement: Placement) -> Evaluated | None:
    """A placement that the race has simulated, under whatever name."""
    for one in race.simulated.values():
        if one.placement.model_copy(update={"name": placement.name}) == placement:
            return replace(one, placement=placement)
    return None


def _as_alternative(problem: Problem, shown: Evaluated | Alternative) -> Alternative:
    return alternative(problem, shown) if isinstance(shown, Evaluated) else shown


def _pareto(found: Race) -> tuple[ParetoPoint, ...]:
    """Of the simulated candidates: those no other beats with as few GPUs."""
    points: list[ParetoPoint] = []
    rows = sorted((one.num_gpus, one.step_s, row) for row, one in found.simulated.items() if row not in found.refused)
    for gpus, step_s, row in rows:
        if not points or step_s < points[-1].step_s:
            points.append(ParetoPoint(num_gpus=gpus, step_s=step_s, name=found.simulated[row].placement.name))
    return tuple(points)


def binding_of(found: Evaluated) -> Binding:
    """What the critical path is made of."""
    seconds = found.path.seconds()
    shares = {kind: value / found.step_s for kind, value in seconds.items() if value > 0}
    kind = max(shares, key=lambda name: (shares[name], name))
    kinds: dict[str, BindingKind] = {
        "gemm": "compute", "experts": "compute", "memory": "compute", "attention": "attention",
        "collective": "collective", "network": "network", "waiting": "network",
    }  # fmt: skip
    detail = ", ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))
    return Binding(kind=kinds[kind], share=min(shares[kind], 1.0), shares=shares, detail=f"critical path: {detail}")


def exactness_of(problem: Problem, placement: Placement) -> Exactness:
    """A softmax per slice is another model; capacity slots drop tokens when experts are unevenly loaded; all else is
    exact."""
    if sliced(placement) and placement.dim_mode == "per_slice":
        return "model-changing"
    experts = problem.model.experts
    drops = experts is not None and experts.capacity_factor is not None
    return "drops-possible" if drops and any(layer.routed for layer in problem.model.layers) else "exact"
