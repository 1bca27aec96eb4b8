"""Who routes which tokens: read off a program, so that a one-device reference can drop what the ranks drop."""

from __future__ import annotations

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


def routing_of(program: p.Program) -> tuple[RoutingGroup, ...] | None:
    """Every distinct set of tokens that a rank routes, with an expert's slots for them; None without experts."""
    found: dict[tuple[int, ...], RoutingGroup] = {}
    everything = tuple(((group.past, group.total),) for group in program.step.batch)
    for operations in program.ranks:
        routes = {op.micro_batch: op for op in operations if isinstance(op, p.Route)}
        slices = {op.writes[0]: op.target.block for op in operations if isinstance(op, p.Slice)}
        for embed in (op for op in operations if isinstance(op, p.Embed)):
            if route := routes.get(embed.micro_batch):
                tokens = rows_of(program.step.batch, slices.get(embed.reads[0], everything), everything)
                assert len(tokens) == route.num_tokens
                found[tokens] = RoutingGroup(tokens, route.capacity)
    return tuple(found.values()) or None
