"""Make: a whole allocation from a scenario: a choice for every phase and length bucket, with its rivals."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import partial

from planner.cache_fit import sliced
from planner.evaluate import Evaluated, doubt_of, evaluate_until, lacking, memory_of, metrics_of, step_interval
from planner.exploring.critical_path import difference
from planner.pair import Pair, race_pair, race_prefill
from planner.policy import (
    Option,
    differ,
    must_be_weighed,
    option_of,
    options_of,
    simulated,
    switching_of,
    weigh,
    why_none,
)
from planner.problem import Problem, load_problem
from planner.processes import each
from planner.rivals import baselines, rule_placement
from planner.search import Race, Rival
from planner.space import Question
from simulator.allocation import (
    Allocation,
    Alternative,
    Binding,
    BindingKind,
    Choice,
    Digests,
    Exactness,
    Interval,
    ParetoPoint,
    Threshold,
    digest,
)
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.program import Program
from simulator.scenario import Scenario
from simulator.simulation.clock import collector_paused
from simulator.workload import Bucket, Phase

QUICK_SIMULATIONS = 40  # a race, unless it is exact; the FA Pool documents' questions need fewer: those are exact too


def make(
    scenario: Scenario,
    *,
    command: str = "",
    ttft_slo_s: float | None = None,
    tpot_slo_s: float | None = None,
    exact: bool = False,
) -> Allocation:
    """Plan a scenario. InfeasibleError where a bucket has no plan; the message names what is binding.

    ``exact``: simulate until nothing unsimulated can win, however many that takes; else QUICK_SIMULATIONS a race at
    most, best bound first, and where that is not enough the gap is stated.
    """
    problem = load_problem(scenario, command=command, ttft_slo_s=ttft_slo_s, tpot_slo_s=tpot_slo_s)
    return make_problem(problem, limit=None if exact else QUICK_SIMULATIONS, workers=os.cpu_count() or 1)


def make_problem(problem: Problem, *, limit: int | None = None, workers: int = 1) -> Allocation:
    """Plan a problem. ``limit``: simulations a race at most (None: exact); ``workers``: processes, a bucket each."""
    with collector_paused():  # in the workers too, which end with their buckets
        return _make(problem, limit, workers)


def _make(problem: Problem, limit: int | None, workers: int) -> Allocation:
    buckets = sorted(problem.workload.buckets, key=lambda bucket: -bucket.tokens)  # the longest job first
    plain = replace(problem)  # a copy: what a problem keeps cannot all be sent
    found = each(partial(plan_pair, plain, limit=limit), buckets, workers)
    planned = {bucket.name: one for bucket, one in zip(buckets, found, strict=True)}
    own = [planned[bucket.name].option for bucket in problem.workload.buckets]
    chosen = _together(problem, own, limit, workers)
    takers = zip(problem.workload.buckets, chosen, own, strict=True)
    moved = [(bucket, taken) for bucket, taken, before in takers if differ(taken, before)]
    found = each(partial(plan_option, plain, limit=limit), moved, workers)
    planned |= {bucket.name: one for (bucket, _), one in zip(moved, found, strict=True)}
    policy = [choice for one in planned.values() for choice in one.choices]
    policy.sort(key=lambda choice: (choice.phase != "prefill", choice.min_tokens))
    return Allocation(
        name=problem.name,
        command=problem.command,
        objective=problem.objective,
        limits=problem.limits,
        model=problem.model.name,
        cluster=problem.cluster.name,
        workload=problem.workload.name,
        profile=problem.profile_name,
        dtype=problem.dtype,
        policy=tuple(policy),
        thresholds=tuple(_threshold(tuple(policy), phase) for phase in ("prefill", "decode")),
        switching=switching_of(problem, chosen, own),
        sources=problem.sources,
        digests=digests(problem),
        assumptions=(*problem.cluster.assumptions, *problem.workload.assumptions),
    )


def _together(problem: Problem, own: list[Option], limit: int | None, workers: int) -> list[Option]:
    """The policy: every bucket's own best placements, or what fits side by side and switches for less."""
    if not must_be_weighed(problem, own, exact=limit is None):
        return own
    for others in (False, True):
        options = partial(options_of, replace(problem), others=others, limit=limit)
        chosen = weigh(problem, each(options, problem.workload.buckets, workers))
        if chosen is not None:
            return chosen
    raise why_none(problem, own)


@dataclass(frozen=True)
class Planned:
    """A bucket's two entries of the policy (prefill, decode), and what they are beside other buckets'."""

    choices: tuple[Choice, Choice]
    option: Option


def plan_bucket(problem: Problem, bucket: Bucket, *, limit: int | None = None) -> tuple[Choice, Choice]:
    """Decode first, then prefill into the cache that decode reads."""
    return plan_pair(problem, bucket, limit=limit).choices


def plan_pair(problem: Problem, bucket: Bucket, *, limit: int | None = None) -> Planned:
    """A bucket's own best placements."""
    pair = race_pair(problem, bucket, limit=limit)
    return _planned(problem, bucket, pair, pair.prefiller, pair.decoder)


def plan_option(problem: Problem, taken: tuple[Bucket, Option], *, limit: int | None = None) -> Planned:
    """A bucket's entries where the policy takes an option that is not its own best."""
    bucket, option = taken
    pair = race_pair(problem, bucket, limit=limit)
    decoder = simulated(pair.decode, option.decode)
    if decoder.placement != pair.decoder.placement:
        pair = Pair(pair.decode, race_prefill(problem, bucket, decoder, limit))
    return _planned(problem, bucket, pair, simulated(pair.prefill, option.prefill), decoder)


def _planned(problem: Problem, bucket: Bucket, pair: Pair, prefill: Evaluated, decode: Evaluated) -> Planned:
    choices = (
        choose(problem, bucket, pair.prefill, (decode.program,), taken=prefill),
        choose(problem, bucket, pair.decode, (), taken=decode),
    )
    return Planned(choices, option_of(problem, bucket, prefill, decode))


def digests(problem: Problem) -> Digests:
    """Of every input, as loaded."""
    return Digests(
        model=digest(problem.model),
        cluster=digest(problem.cluster),
        workload=digest(problem.workload),
        profiles={name: digest(profile) for name, profile in sorted(problem.profiles.items())},
    )


def choose(
    problem: Problem, bucket: Bucket, found: Race, beside: tuple[Program, ...], *, taken: Evaluated | None = None
) -> Choice:
    """The winner of a race as an entry of the policy. ``taken``: another one that was simulated, because the policy as
    a whole is better with it; its gap is then to the winner, and it has no runner-up."""
    ranking, question = found.ranking(), found.question
    first, pool = found.simulated[ranking[0].row], found.best_pool()
    winner = first if taken is None else taken
    own_best = winner.placement == first.placement
    second = found.runner_up() if own_best else None
    margin = None if second is None else _margin(problem, found, ranking[0], second)
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
        runner_up=None if second is None else alternative(problem, found.simulated[second.row]),
        margin=margin,
        too_close_to_call=margin is not None and margin.p05 <= 0.0,
        rule=_rival(problem, question, rule_placement(question), found.cache),
        baselines=tuple(_rival(problem, question, one, found.cache) for one in baselines(question)),
        best_pool=None if pool is None else alternative(problem, found.simulated[pool.row]),
        pareto=_pareto(found),
        search=search,
    )


def _margin(problem: Problem, found: Race, first: Rival, second: Rival) -> Interval:
    """(runner-up − ours) / ours in the objective."""
    ours, other = found.simulated[first.row], found.simulated[second.row]
    below, above = difference(doubt_of(problem, ours), doubt_of(problem, other))
    value = second.score / first.score - 1.0
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


def _rival(problem: Problem, question: Question, placement: Placement | str, cache: Placement | None) -> Alternative:
    """A named rival, simulated; or why it cannot be."""
    if isinstance(placement, str):
        return Alternative(
            name=placement.split(":")[0], placement=None, num_gpus=0, pool_gpus=0, step_s=None, infeasible=placement
        )
    found: Evaluated | str | None
    try:
        found = evaluate_until(problem, question, placement, cache, math.inf)
    except InfeasibleError as error:
        found = str(error)
    if isinstance(found, Evaluated):
        short = lacking(memory_of(problem, [found.program]))
        if short is None:
            return alternative(problem, found)
        found = f"rank {short.rank} lacks {-short.headroom_bytes} bytes"
    return Alternative(
        name=placement.name, placement=placement, num_gpus=len(placement.ranks), pool_gpus=len(placement.pool_ranks),
        step_s=None, infeasible=found,
    )  # fmt: skip


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


def _threshold(policy: tuple[Choice, ...], phase: Phase) -> Threshold:
    entries = [choice for choice in policy if choice.phase == phase]
    pooled = [choice.min_tokens for choice in entries if choice.pool_gpus]
    faster = [choice.min_tokens for choice in entries if _pool_beats_base(choice)]
    return Threshold(phase=phase, tokens=min(pooled, default=None), pool_tokens=min(faster, default=None))


def _pool_beats_base(choice: Choice) -> bool:
    base = choice.baselines[0].step_s
    pool = choice.best_pool.step_s if choice.best_pool is not None else None
    return base is not None and pool is not None and pool.value < base.value
