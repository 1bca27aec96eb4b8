"""Deadlock: what every unfinished stream waits for, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.program import Collective, Operation, Program, Recv, Send

SHOWN = 6  # stuck streams spelled out; a real deadlock repeats itself


@dataclass(frozen=True, slots=True)
class Stuck:
    """A stream's first unfinished operation; ``blocker``: the unfinished one on its rank that writes what it reads."""

    rank: int
    operation: int
    blocker: int | None


def deadlock_message(program: Program, stuck: Sequence[Stuck]) -> str:
    """One line: how many ranks, then each stuck stream: transfers that lack a partner first."""
    ranks = sorted({one.rank for one in stuck})
    ordered = sorted(stuck, key=lambda one: (one.blocker is not None, one.rank, one.operation))
    lines = [_explain(program, one) for one in ordered[:SHOWN]]
    more = f"; and {len(stuck) - SHOWN} more streams" if len(stuck) > SHOWN else ""
    return f"deadlock: {len(ranks)} of {len(program.ranks)} ranks never finish: " + "; ".join(lines) + more


def _explain(program: Program, one: Stuck) -> str:
    operations = program.ranks[one.rank]
    here = f"rank {one.rank} waits in {describe(operations[one.operation], one.operation)}"
    if one.blocker is not None:
        return f"{here} for {describe(operations[one.blocker], one.blocker)}"
    match operations[one.operation]:
        case Send(to=to, tag=tag):
            return f"{here} for rank {to} to receive tag {tag}"
        case Recv(source=source, tag=tag):
            return f"{here} for rank {source} to send tag {tag}"
        case Collective(ranks=ranks, tag=tag):
            return f"{here} for all of its {len(ranks)} ranks to enter tag {tag}"
        case _:
            return here


def describe(operation: Operation, index: int) -> str:
    """``operation 12 Recv (layer 3, micro-batch 0)``."""
    place = f"layer {operation.layer}, micro-batch {operation.micro_batch}"
    return f"operation {index} {type(operation).__name__} ({place})"
