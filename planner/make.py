"""Make: a whole allocation from a scenario: a choice for every phase and length bucket, with its rivals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from planner.choice import choose
from planner.evaluate import Evaluated
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
from simulator.allocation import (
    Allocation,
    Choice,
    Digests,
    Threshold,
    digest,
)
from simulator.collector import collector_paused
from simulator.scenario import Scenario
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
    buckets = _longest_jobs_first(problem.workload.buckets)
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


def _longest_jobs_first(buckets: Sequence[Bucket]) -> list[Bucket]:
    """From both ends: long prompts have long simulations, short ones many candidates close to each other."""
    left = sorted(buckets, key=lambda bucket: bucket.tokens)
    order: list[Bucket] = []
    while left:
        order.append(left.pop(-1 if len(order) % 2 == 0 else 0))
    return order


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


def _threshold(policy: tuple[Choice, ...], phase: Phase) -> Threshold:
    entries = [choice for choice in policy if choice.phase == phase]
    pooled = [choice.min_tokens for choice in entries if choice.pool_gpus]
    faster = [choice.min_tokens for choice in entries if _pool_beats_base(choice)]
    return Threshold(phase=phase, tokens=min(pooled, default=None), pool_tokens=min(faster, default=None))


def _pool_beats_base(choice: Choice) -> bool:
    base = choice.baselines[0].step_s
    pool = choice.best_pool.step_s if choice.best_pool is not None else None
    return base is not None and pool is not None and pool.value < base.value
