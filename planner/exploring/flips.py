"""Flips: what would change a choice, and at which value, by simulating choice and runner-up side by side.

One quantity is moved, all else stays: prompt length, batch, NICs a node, and the price of time. Lengths are bisected to
5 % between an eighth and eight times the planned one; batches are doubled and halved; NICs are halved down to one. The
price needs no simulation: with n GPUs held for t seconds each, the plan with fewer GPU-seconds is the better one where
a second of the step is worth less than (n t - n' t') / (t' - t) GPU-seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from planner.evaluate import Evaluated, try_evaluate
from planner.execution import inputs
from planner.objective import weight
from planner.problem import Problem
from planner.processes import each
from planner.space import Question
from simulator.allocation import Allocation, Alternative, Choice
from simulator.cluster import Cluster
from simulator.placement import Placement
from simulator.units import format_figure
from simulator.workload import Phase

REACH = 8  # how far from the planned length a flip is looked for
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Flip:
    """A quantity, and the value at which the runner-up overtakes (None: it does not, as far as was looked)."""

    phase: Phase
    bucket: str
    quantity: str
    value: float | None
    sentence: str


def flips(allocation: Allocation) -> tuple[Flip, ...]:
    """For every entry with a runner-up: length, batch, NICs and price. SpecError if an input has gone or changed."""
    found = inputs(allocation)
    problem = Problem(
        name=allocation.name,
        command=allocation.command,
        model=found.model,
        cluster=found.cluster,
        workload=found.workload,
        profile_name=allocation.profile,
        profiles=found.profiles,
        objective=allocation.objective,
        limits=allocation.limits,
        sources=allocation.sources,
    )
    own = partial(_flips, problem, allocation)
    return tuple(flip for some in each(own, allocation.policy, os.cpu_count() or 1) for flip in some)


def _flips(problem: Problem, allocation: Allocation, choice: Choice) -> list[Flip]:
    cache = allocation.choice("decode", choice.tokens).placement if choice.phase == "prefill" else None
    return list(flips_of(problem, choice, cache))


def flips_of(problem: Problem, choice: Choice, cache: Placement | None = None) -> Iterator[Flip]:
    """``cache``: where a prefill leaves its keys and values."""
    second = choice.runner_up
    if second is None or second.placement is None:
        return
    other = second.placement
    question = next(
        problem.question(choice.phase, bucket) for bucket in problem.workload.buckets if bucket.name == choice.bucket
    )

    def leads(problem: Problem, question: Question) -> bool | None:
        """Whether the choice still beats the runner-up; None where one of them is impossible."""
        times = [try_evaluate(problem, question, one, cache) for one in (choice.placement, other)]
        if not all(isinstance(time, Evaluated) for time in times):
            return None
        ours, theirs = (time for time in times if isinstance(time, Evaluated))
        scores = [one.step_s * weight(problem, one.placement.ranks) for one in (ours, theirs)]
        return scores[0] <= scores[1]

    name = second.name
    yield _length(problem, question, choice, name, leads)
    yield _batch(problem, question, choice, name, leads)
    yield from _nics(problem, question, choice, name, leads)
    yield from price_flip(choice, second)


Leads = Callable[[Problem, Question], bool | None]


def _length(problem: Problem, question: Question, choice: Choice, name: str, leads: Leads) -> Flip:
    for edge in (question.tokens * REACH, max(question.tokens // REACH, 1)):
        if leads(problem, replace(question, tokens=edge)) is False:
            near, far = question.tokens, edge
            while abs(far - near) > max(1, TOLERANCE * min(near, far)):
                middle = (near + far) // 2
                near, far = (middle, far) if leads(problem, replace(question, tokens=middle)) else (near, middle)
            side = "from" if edge > question.tokens else "up to"
            return _flip(choice, "tokens", far, f"{name} is better {side} about {far} tokens [fitted]")
    low, high = max(question.tokens // REACH, 1), question.tokens * REACH
    return _flip(choice, "tokens", None, f"no length from {low} tokens to {high} tokens makes {name} better [fitted]")


def _batch(problem: Problem, question: Question, choice: Choice, name: str, leads: Leads) -> Flip:
    tried = [
        size for size in (question.batch * 2, question.batch * 4, question.batch // 2, question.batch // 4) if size
    ]
    for batch in tried:
        if leads(problem, replace(question, batch=batch)) is False:
            return _flip(choice, "batch", batch, f"{name} is better with {batch} sequences at once [fitted]")
    shown = " or ".join(f"{size} sequences" for size in sorted(tried))
    return _flip(choice, "batch", None, f"no batch of {shown} makes {name} better [fitted]")


def _nics(problem: Problem, question: Question, choice: Choice, name: str, leads: Leads) -> Iterator[Flip]:
    """Nothing where no node has several."""
    most = max((node.nics.count for node in problem.cluster.nodes if node.nics is not None), default=1)
    if most == 1:
        return
    count = most // 2
    while count:
        cluster = with_nics(problem.cluster, count)
        if leads(replace(problem, cluster=cluster), replace(question, cluster=cluster)) is False:
            yield _flip(choice, "nics", count, f"{name} is better with {count} NICs a node [assumed]")
            return
        count //= 2
    yield _flip(choice, "nics", None, f"fewer than {most} NICs a node do not make {name} better [assumed]")


def price_flip(choice: Choice, second: Alternative) -> Iterator[Flip]:
    """What a second must be worth, where one of the two is faster and the other takes fewer GPU-seconds."""
    ours = choice.metrics.step_s
    if second.step_s is None or second.step_s.value == ours.value:
        return
    held, theirs = choice.num_gpus * ours.value, second.num_gpus * second.step_s.value
    worth = (held - theirs) / (second.step_s.value - ours.value)
    if worth > 0:
        side = "less" if second.step_s.value > ours.value else "more"
        price = f"{side} than {format_figure(worth)} GPU-seconds [{ours.tag}]"
        yield _flip(choice, "price", worth, f"{second.name} is better where a second of the step is worth {price}")


def with_nics(cluster: Cluster, count: int) -> Cluster:
    """The cluster with at most ``count`` NICs in every node."""
    nodes = tuple(
        node
        if node.nics is None
        else node.model_copy(update={"nics": node.nics.model_copy(update={"count": min(node.nics.count, count)})})
        for node in cluster.nodes
    )
    return cluster.model_copy(update={"nodes": nodes})


def _flip(choice: Choice, quantity: str, value: float | None, sentence: str) -> Flip:
    return Flip(choice.phase, choice.bucket, quantity, value, sentence)
