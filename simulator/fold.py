"""Fold: ranks that do the same work at the same time, lowered and simulated once.

A placement that cuts heads evenly F ways, on a cluster that treats those cuts alike, has a symmetry: *block* c of its
ranks (tensor shards and head groups number c·T/F to (c+1)·T/F) does what block 0 does, on links of its own or on the
same ones. By induction over time every operation of block c then begins and ends with its like in block 0: max-min
fair rates depend only on who shares what. So block 0 stands for all; a flow takes from a link that all blocks use
as many shares as there are blocks on it.

What must hold is checked, never assumed: even cuts here, messages that stay within a block while lowering
(``lowering.builder``), and links in
``fabric.copies``. Where it does not, the program is lowered whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from simulator.errors import AttnplanError
from simulator.model import Model
from simulator.placement import Placement, Stage, even_split

Slot = tuple[int, ...]
"""A place within a block: (stage, role, …)."""


class UnfoldableError(AttnplanError):
    """A program is not the same in every block; it has to be lowered whole."""


@dataclass(frozen=True)
class Fold:
    """``images[c][i]``: the rank that is to block c what ``images[0][i]`` is to block 0."""

    images: tuple[tuple[int, ...], ...]

    @property
    def blocks(self) -> int:
        return len(self.images)

    @cached_property
    def kept(self) -> frozenset[int]:
        """The ranks of block 0."""
        return frozenset(self.images[0])

    @cached_property
    def place(self) -> dict[int, tuple[int, int]]:
        """Rank → (its block, the rank of block 0 that it is like)."""
        return {
            rank: (block, kept)
            for block, ranks in enumerate(self.images)
            for kept, rank in zip(self.images[0], ranks, strict=True)
        }

    def groups_like(self, ranks: Sequence[int]) -> int:
        """Images that a group of ranks has: 1 where every block takes part in it, ``blocks`` where one does."""
        place = [self.place[rank] for rank in ranks]
        if len({block for block, _ in place}) == 1:
            return self.blocks
        parts = {block: {kept for where, kept in place if where == block} for block in range(self.blocks)}
        if len(parts[0]) * self.blocks != len(ranks) or any(part != parts[0] for part in parts.values()):
            raise UnfoldableError(f"the group {list(ranks)} meets the {self.blocks} blocks unevenly")
        return 1


def folds(model: Model, placements: Sequence[Placement]) -> Iterator[Fold]:
    """Ways to fold programs that concern all of ``placements`` (one's steps and the cache of the other), most blocks
    first; none where heads are not cut evenly or tokens change hands across heads."""
    stages = [stage for placement in placements for stage in placement.stages]
    if any(stage.projections == "attention" and stage.separated for stage in stages):
        return
    most = gcd(*(size for stage in stages for size in (stage.tensor_degree, len(stage.grid.heads))))
    for blocks in range(most, 1, -1):
        if most % blocks == 0 and all(_even(model, stage, blocks) for stage in stages):
            fold = _fold(stages, blocks)
            if fold is not None:
                yield fold


def _even(model: Model, stage: Stage, blocks: int) -> bool:
    """Whether every cut of the model by this stage is the same in each block."""
    tensor, experts = stage.tensor_degree, model.experts
    cuts = [stage.grid.heads, even_split(model.num_attention_heads, tensor), even_split(model.vocab_size, tensor)]
    cuts.append(even_split(model.intermediate_size, tensor))
    if experts is not None:
        cuts.append(stage.experts or even_split(experts.num_experts, len(stage.feed_forward_ranks)))
        cuts.append(even_split(experts.shared_intermediate_size or 0, tensor))
    periodic = all(cut == cut[: len(cut) // blocks] * blocks for cut in cuts)
    return periodic and model.num_key_value_heads % blocks == 0 and (experts is None or stage.token_replicas == 1)


def _fold(stages: Sequence[Stage], blocks: int) -> Fold | None:
    """Ranks by their slots; None where a rank would be in two blocks, or like two ranks."""
    slots: dict[Slot, list[int]] = {}
    for number, stage in enumerate(stages):
        for slot, rank in (*_feeding(stage, blocks), *_attending(stage, blocks)):
            slots.setdefault((number, *slot), []).append(rank)
    rows = {tuple(ranks) for ranks in slots.values()}
    ranks = [rank for row in rows for rank in row]
    if any(len(row) != blocks for row in rows) or len(set(ranks)) != len(ranks):
        return None
    return Fold(tuple(zip(*sorted(rows), strict=True)))


def _feeding(stage: Stage, blocks: int) -> Iterator[tuple[Slot, int]]:
    """Slots of the feed-forward ranks, block after block."""
    size = stage.tensor_degree // blocks
    for index, rank in enumerate(stage.feed_forward_ranks):
        replica, shard = divmod(index, stage.tensor_degree)
        yield (0, replica, shard % size), rank


def _attending(stage: Stage, blocks: int) -> Iterator[tuple[Slot, int]]:
    size = len(stage.grid.heads) // blocks
    for index, rank in enumerate(stage.attention_ranks):
        head, query, kv, dim = stage.grid.coordinates(index)
        yield (1, head % size, query, kv, dim), rank
