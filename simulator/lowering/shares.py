"""Shares: which heads and tokens each rank projects, attends for, or multiplies by W_O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.cache_layout import head_spans
from simulator.lowering.context import Context
from simulator.placement import Stage, even_split
from simulator.tile import Block, Span, is_empty


@dataclass(frozen=True, slots=True)
class Projector:
    """A rank that projects heads ``heads`` of the tokens in ``block``."""

    rank: int
    heads: Span
    block: Block


@dataclass(frozen=True, slots=True)
class Attender:
    """An attention rank's share of one micro-batch."""

    rank: int
    heads: Span
    block: Block
    kv_index: int


def projecting_ranks(context: Context, stage: Stage, micro_batch: int) -> tuple[Projector, ...]:
    """Heads and tokens every projecting rank computes q, k and v for."""
    return context.once("projecting", stage, micro_batch, lambda: _projecting(context, stage, micro_batch))


def attending_ranks(context: Context, stage: Stage, micro_batch: int) -> tuple[Attender, ...]:
    """Heads and queries of every attention rank that has any in this micro-batch."""
    return context.once("attending", stage, micro_batch, lambda: _attending(context, stage, micro_batch))


def out_ranks(context: Context, stage: Stage, micro_batch: int) -> tuple[Projector, ...]:
    """The ranks that multiply W_O: the projectors, or with MA Separation's M:N exit the feed-forward ranks."""
    if stage.projections == "attention" and stage.separated and context.placement.exit == "all_to_all":
        return context.once("out", stage, micro_batch, lambda: _feeding(context, stage, micro_batch))
    return projecting_ranks(context, stage, micro_batch)


def _projecting(context: Context, stage: Stage, micro_batch: int) -> Iterator[Projector]:
    if stage.projections == "attention":
        attenders = attending_ranks(context, stage, micro_batch)
        return (Projector(a.rank, a.heads, a.block) for a in attenders if a.kv_index == 0)
    return _feeding(context, stage, micro_batch)


def _feeding(context: Context, stage: Stage, micro_batch: int) -> Iterator[Projector]:
    own = not stage.separated and len(stage.grid.heads) == stage.tensor_degree
    sizes = stage.grid.heads if own else even_split(context.model.num_attention_heads, stage.tensor_degree)
    heads = head_spans(sizes)
    return (Projector(rank, heads[shard], block) for rank, shard, block in context.feed_forward(stage, micro_batch))


def _attending(context: Context, stage: Stage, micro_batch: int) -> Iterator[Attender]:
    heads = head_spans(stage.grid.heads)
    blocks = context.token_blocks(stage.grid.query_blocks)
    for index, rank in enumerate(stage.attention_ranks):
        if not context.wants(rank):
            continue
        head, query, kv, _ = stage.grid.coordinates(index)
        block = context.groups.select(blocks[query], micro_batch=micro_batch)
        if not is_empty(block):
            yield Attender(rank, heads[head], block, kv)
