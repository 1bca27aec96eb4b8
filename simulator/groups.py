"""Groups: a step's batch cut into sequence groups, so that every split of sequences is a choice of groups.

One query cannot be cut, so decode deals *sequences* to context-parallel replicas (``parts``); micro-batches cut
each part further. Both keep the order of sequences, so prefill and decode agree on who is who.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from simulator.errors import InfeasibleError
from simulator.placement import even_split
from simulator.tile import Batch, Block, Span, new_tokens
from simulator.workload import Sequences, Step


@dataclass(frozen=True)
class Groups:
    """``batch[i]`` belongs to sequence part ``part[i]`` and micro-batch ``micro_batch[i]``."""

    batch: Batch
    part: tuple[int, ...]
    micro_batch: tuple[int, ...]
    parts: int
    micro_batches: int

    @cached_property
    def everything(self) -> Block:
        """Every new token."""
        return new_tokens(self.batch)

    def select(self, block: Block, *, part: int | None = None, micro_batch: int | None = None) -> Block:
        """``block`` without the groups of other parts or micro-batches."""
        return tuple(
            spans
            if (part is None or self.part[i] == part) and (micro_batch is None or self.micro_batch[i] == micro_batch)
            else ()
            for i, spans in enumerate(block)
        )

    def last_tokens(self, micro_batch: int | None = None) -> Block:
        """The newest position of every sequence."""
        last = tuple(((group.total - 1, group.total),) for group in self.batch)
        return self.select(last, micro_batch=micro_batch)


def split_batch(step: Step, *, parts: int, micro_batches: int) -> Groups:
    """Cut at every part and micro-batch edge. Raises InfeasibleError with fewer sequences than micro-batches."""
    total = step.num_sequences
    if total < micro_batches:
        raise InfeasibleError(f"{micro_batches} micro-batches of {total} sequences; use at most {total}")
    owner: list[tuple[Span, int, int]] = []
    start = 0
    for part, size in enumerate(even_split(total, parts)):
        for micro_batch, count in enumerate(even_split(size, micro_batches)):
            owner.append(((start, start + count), part, micro_batch))
            start += count
    rows: list[tuple[Sequences, int, int]] = []
    first = 0
    for group in step.batch:
        for (low, high), part, micro_batch in owner:
            count = min(high, first + group.count) - max(low, first)
            if count > 0:
                rows.append((Sequences(count, group.past, group.new, group.prompt), part, micro_batch))
        first += group.count
    return Groups(
        tuple(row[0] for row in rows),
        tuple(row[1] for row in rows),
        tuple(row[2] for row in rows),
        parts,
        micro_batches,
    )
