"""Shared cores: what ranks of a node cost each other in steps, on cores of their own and in turns on one.

Beside each other they share memory and its caches; in turns each finds the others' data in its core's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import TYPE_CHECKING

from simulator.model import Model
from simulator.placement import Placement
from simulator.workload import Step

if TYPE_CHECKING:
    from executor.step_timing import Timing
    from executor.supervisor import Supervisor

Question = tuple[Model, Step, Placement]
"""A step of one rank."""


def shared_cores(world: Supervisor, cores: int, questions: Sequence[Question], timing: Timing) -> tuple[float, float]:
    """Of the first rank's node: the cores' worth of work that a rank on each of its ``cores`` does, in units of one
    alone; and how much more core time ranks take that share the first rank's core. Medians over ``questions``, each
    stepped for ``timing.limit_s``."""
    beside, in_turns = neighbours(world, cores)
    slower_beside, slower_in_turns = (slowdown(world, questions, busy, timing) for busy in (beside, in_turns))
    return len(beside) / slower_beside, slower_in_turns - 1.0


def slowdown(world: Supervisor, questions: Sequence[Question], busy: tuple[int, ...], timing: Timing) -> float:
    """Core time of a step on the busy ranks at once over that on the first alone; at least 1."""
    if len(busy) == 1:
        return 1.0
    found = [core_s(world, one, busy, timing) / core_s(world, one, (0,), timing) for one in questions]
    return max(1.0, median(found))


def neighbours(world: Supervisor, cores: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ranks of the first one's node that have a core each, and those that share its core."""
    by_core: dict[tuple[int, ...], list[int]] = {}
    first = world.seats[0]
    for rank, seat in enumerate(world.seats):
        if seat.node == first.node:
            by_core.setdefault(seat.cores or (-1 - rank,), []).append(rank)
    beside = [rank for own, ranks in by_core.items() for rank in ranks[: len(own)]]
    in_turns = by_core[first.cores] if len(first.cores) == 1 else [0]
    return tuple(beside[:cores]), tuple(in_turns)


def core_s(world: Supervisor, question: Question, busy: tuple[int, ...], timing: Timing) -> float:
    """Core seconds of a step on the busy ranks, all at it for ``timing.limit_s``; their mean. Core time: whoever else
    runs here does not count."""
    from executor.step_timing import step_core_s

    model, *plan = question
    spent: list[float] = world.run(step_core_s, model, tuple(plan), busy, timing)
    return mean(spent[rank] for rank in busy)
