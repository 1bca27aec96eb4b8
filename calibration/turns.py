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
    """How much longer steps take on ranks that share the first rank's core than their number explains: its own steps a
    second alone, ``duration_s`` long, against all of that core's together; the median over ``questions``."""
    from executor.step_timing import step_rate

    core = world.seats[0].cores
    sharing = tuple(rank for rank in range(world.size) if world.seats[rank].cores == core)
    if len(sharing) == 1 or not core:
        return 0.0
    found = []
    for model, step, placement in questions:
        alone, *_ = world.run(step_rate, model, (step, placement), (0,), duration_s)
        together = sum(world.run(step_rate, model, (step, placement), sharing, duration_s))
        found.append(float(alone) / float(together) - 1.0)
    return max(0.0, median(found))
