"""Turns: what ranks of one core need beyond their number, since each finds the others' data in its caches."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from simulator.model import Model
from simulator.placement import Placement
from simulator.workload import Step

if TYPE_CHECKING:
    from executor.supervisor import Supervisor

Question = tuple[Model, Step, Placement]
"""A step of one rank."""


def turn_share(world: Supervisor, questions: Sequence[Question], duration_s: float) -> float:
    """How much more core time a step takes on ranks that share the first rank's core than on that rank alone, each
    stepping for ``duration_s``; the median over ``questions``. Core time: whoever else runs here does not count."""
    from executor.step_timing import step_core_s

    core = world.seats[0].cores
    sharing = tuple(rank for rank in range(world.size) if world.seats[rank].cores == core)
    if len(sharing) == 1 or not core:
        return 0.0
    found = []
    for model, step, placement in questions:
        alone, *_ = world.run(step_core_s, model, (step, placement), (0,), duration_s)
        together = world.run(step_core_s, model, (step, placement), sharing, duration_s)
        found.append(sum(together[rank] for rank in sharing) / len(sharing) / alone - 1.0)
    return max(0.0, float(median(found)))
