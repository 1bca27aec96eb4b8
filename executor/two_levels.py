"""Two levels: an all-reduce over several nodes as reduce-scatter inside each, all-reduce across, all-gather inside.

Of S bytes over G nodes of g ranks, 2(G−1)/G·S leave a node; a ring through all ranks sends 2(p−1)/p·S (p = G·g).
The stages follow one another: the first starts when the collective is issued, the others when its value is awaited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

Ranks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Levels:
    """The ranks of every node, and the i-th ranks of all nodes."""

    inside: tuple[Ranks, ...]
    across: tuple[Ranks, ...]

    @property
    def groups(self) -> tuple[Ranks, ...]:
        return (*self.inside, *self.across)


def levels_of(ranks: Sequence[int], nodes: Sequence[int]) -> Levels | None:
    """The levels of ``ranks``, or None where there are none: one node, one rank a node, or nodes of several sizes.
    ``nodes``: the node of every rank of the world; empty: one."""
    members: dict[int, list[int]] = {}
    for rank in ranks:
        members.setdefault(nodes[rank] if nodes else 0, []).append(rank)
    inside = tuple(tuple(ranks) for ranks in members.values())
    if len(inside) == 1 or len({len(ranks) for ranks in inside}) > 1 or len(inside[0]) == 1:
        return None
    return Levels(inside, tuple(zip(*inside, strict=True)))


@dataclass
class TwoLevelAllReduce:
    """One under way: ``wait`` returns once ``value`` holds the sum."""

    value: Tensor
    inside: dist.ProcessGroup
    across: dist.ProcessGroup

    def __post_init__(self) -> None:
        size = dist.get_world_size(self.inside)
        flat = self.value.view(-1)
        self.flat = functional.pad(flat, (0, -len(flat) % size))
        self.part = self.flat.new_empty(len(self.flat) // size)
        self.first = dist.reduce_scatter_tensor(self.part, self.flat, group=self.inside, async_op=True)

    def wait(self) -> None:
        assert self.first is not None
        self.first.wait()
        dist.all_reduce(self.part, group=self.across)
        dist.all_gather_into_tensor(self.flat, self.part, group=self.inside)
        if self.flat.data_ptr() != self.value.data_ptr():
            self.value.copy_(self.flat[: self.value.numel()].view_as(self.value))
