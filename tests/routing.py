"""Who routes which tokens, and where to: read off a program and what its ranks kept, so that a one-device reference can
choose what the ranks chose and drop what they drop."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from executor.experts import Assignment
from executor.reference import RoutingGroup
from simulator import program as p
from simulator.tile import Block


def rows_of(step_batch: tuple[object, ...], block: Block, everything: Block) -> tuple[int, ...]:
    """The rows of the packed step (every sequence's new tokens) that hold the positions of ``block``."""
    rows: list[int] = []
    first = 0
    for group, spans, whole in zip(step_batch, block, everything, strict=True):
        (start, stop) = whole[0]
        for _ in range(group.count):  # type: ignore[attr-defined]
            rows += [first + position - start for low, high in spans for position in range(low, high)]
            first += stop - start
    return tuple(rows)


Routes = Sequence[Sequence[Assignment]]
"""By rank, one assignment a Route, in the order of its operations."""


def routing_of(program: p.Program, routes: Routes = ()) -> tuple[RoutingGroup, ...] | None:
    """Every distinct set of tokens that a rank routes, with an expert's slots for them; None without experts.

    ``routes`` of a run: the groups then hold the experts it chose."""
    capacities: dict[tuple[int, ...], int | None] = {}
    chosen: dict[tuple[int, ...], dict[int, torch.Tensor]] = {}
    for rank in range(len(program.ranks)):
        for number, (route, rows) in enumerate(routings(program, rank)):
            assert len(rows) == route.num_tokens
            capacities[rows] = route.capacity
            if routes:
                chosen.setdefault(rows, {})[route.layer] = routes[rank][number].experts
    return tuple(RoutingGroup(rows, slots, chosen.get(rows)) for rows, slots in capacities.items()) or None


def routings(program: p.Program, rank: int) -> list[tuple[p.Route, tuple[int, ...]]]:
    """A rank's Routes, each with the rows of the packed step it routes: those embedded by it or, in a later stage of a
    pipeline, by the first one."""
    own = embedded(program, program.ranks[rank])
    first = {number: rows for operations in program.ranks for number, rows in embedded(program, operations).items()}
    found = [operation for operation in program.ranks[rank] if isinstance(operation, p.Route)]
    return [(route, (own or first)[route.micro_batch]) for route in found]


def embedded(program: p.Program, operations: Sequence[p.Operation]) -> dict[int, tuple[int, ...]]:
    """Rows of the packed step that a rank embeds, by micro-batch."""
    batch = program.step.batch
    everything = tuple(((group.past, group.total),) for group in batch)
    slices = {op.writes[0]: op.target.block for op in operations if isinstance(op, p.Slice)}
    embeds = [op for op in operations if isinstance(op, p.Embed)]
    return {op.micro_batch: rows_of(batch, slices.get(op.reads[0], everything), everything) for op in embeds}


def dropped_by(program: p.Program, routes: Routes) -> set[tuple[int, int, int]]:
    """Every (layer, row of the step, expert) that some rank dropped."""
    found: set[tuple[int, int, int]] = set()
    for rank, assignments in enumerate(routes[: len(program.ranks)]):
        for (route, mine), assignment in zip(routings(program, rank), assignments, strict=True):
            rows, choices = (assignment.slots < 0).nonzero(as_tuple=True)
            experts = assignment.experts[rows, choices].tolist()
            found |= {(route.layer, mine[row], expert) for row, expert in zip(rows.tolist(), experts, strict=True)}
    return found
