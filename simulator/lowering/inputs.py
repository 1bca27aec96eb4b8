"""Attention's inputs: q, k and v where they are projected, and their way to the attention ranks."""

from __future__ import annotations

from dataclasses import dataclass

from simulator import program as p
from simulator.cache_layout import cover
from simulator.lowering.builder import Layout, Moved, Where
from simulator.lowering.chunks import visible_keys
from simulator.lowering.context import Context, Residual
from simulator.lowering.ends import ONE, hidden_layout
from simulator.lowering.redistribution import Holding, plan
from simulator.lowering.shares import Attender, Projector, projecting_ranks
from simulator.placement import Stage
from simulator.tile import Block, Span, Tile, intersect, split_block


@dataclass(frozen=True, slots=True)
class Values:
    """What ranks hold of q or kv: a tile and a name each."""

    holdings: tuple[Holding, ...]
    names: tuple[str, ...]


def to_projectors(context: Context, stage: Stage, where: Where, residual: Residual) -> Residual:
    """MA Separation: the residual comes over to the attention ranks; elsewhere it is already there."""
    if stage.projections == "feed_forward" or not stage.separated:
        return residual
    held = tuple(Holding(rank, Tile(ONE, block)) for rank, block in residual.blocks.items())
    needs = tuple(Holding(q.rank, Tile(ONE, q.block)) for q in projecting_ranks(context, stage, where.micro_batch))
    moves = plan(held, needs, context.nodes, context.placement.kv_multicast, context.placement.transfer_chunks)
    names = context.builder.redistribute(moves, tuple(residual.names.values()), hidden_layout(context), where, "x.in")
    return Residual(
        {need.rank: name for need, name in zip(needs, names, strict=True)},
        {need.rank: need.tile.block for need in needs},
    )


def project(
    context: Context, where: Where, residual: Residual, projectors: tuple[Projector, ...]
) -> tuple[Values, Values]:
    """q and kv of every projecting rank."""
    model = context.model
    prefix = f"layers.{where.layer}.attention"
    q_names, kv_names, q_held, kv_held = [], [], [], []
    for projector in projectors:
        rank, tokens = projector.rank, context.count(projector.block)
        kv_heads = cover(projector.heads, model.heads_per_kv_head)
        normed = context.norm(rank, where, residual.names[rank], f"{prefix}_norm", tokens)
        weights = tuple(
            p.WeightSlice(f"{prefix}.{name}", (0, model.hidden_size), (a * model.head_dim, b * model.head_dim))
            for name, (a, b) in (("q", projector.heads), ("k", kv_heads), ("v", kv_heads))
        )
        packed = context.linear(rank, where, normed, "qkv", tokens, weights, bias=model.qkv_bias)
        _rope(context, where, projector, packed, kv_heads)
        q_names.append(where.name("q"))
        kv_names.append(where.name("kv"))
        q_held.append(Holding(rank, Tile(projector.heads, projector.block)))
        kv_held.append(Holding(rank, Tile(kv_heads, projector.block)))
    return Values(tuple(q_held), tuple(q_names)), Values(tuple(kv_held), tuple(kv_names))


def _rope(context: Context, where: Where, projector: Projector, packed: str, kv_heads: Span) -> None:
    model = context.model
    if not context.builder.keeps(projector.rank):
        return
    context.builder.emit(
        projector.rank,
        p.Rope(
            reads=(packed,),
            writes=(where.name("q"), where.name("kv")),
            layer=where.layer,
            micro_batch=where.micro_batch,
            batch=context.groups.batch,
            block=projector.block,
            num_tokens=context.count(projector.block),
            heads=projector.heads[1] - projector.heads[0],
            kv_heads=kv_heads[1] - kv_heads[0],
            head_dim=model.head_dim,
            theta=model.rope_theta,
            scaling=model.rope_scaling,
            qk_norm=model.qk_norm,
            eps=model.rms_norm_eps,
        ),
    )


def q_layout(context: Context) -> Layout:
    return Layout((), (context.model.head_dim,), context.dtype)


def kv_layout(context: Context) -> Layout:
    return Layout((2,), (context.model.head_dim,), context.dtype)


def spread_queries(context: Context, where: Where, queries: Values, attenders: tuple[Attender, ...]) -> dict[int, str]:
    needs = tuple(Holding(a.rank, Tile(a.heads, a.block)) for a in attenders)
    moves = plan(queries.holdings, needs, context.nodes, "direct", 1)
    names = context.builder.redistribute(moves, queries.names, q_layout(context), where, "q.in")
    return {need.rank: name for need, name in zip(needs, names, strict=True)}


def send_keys(
    context: Context, stage: Stage, where: Where, keys: Values, attenders: tuple[Attender, ...]
) -> list[Moved]:
    """Keys on their way to every attention rank that sees them, within its KV block: one redistribution a piece.

    With ``kv_streams`` the keys travel and are attended to in that many pieces, so that attention on the first
    overlaps the transfer of the next.
    """
    placement = context.placement
    pieces = _pieces(context, where)
    moved = []
    for number, piece in enumerate(pieces):
        needs = tuple(_visible_keys(context, stage, where, attender, piece) for attender in attenders)
        moves = plan(keys.holdings, needs, context.nodes, placement.kv_multicast, placement.transfer_chunks)
        what = "kv.in" if len(pieces) == 1 else f"kv.in.p{number}"
        moved.append(context.builder.move(moves, keys.names, kv_layout(context), where, what))
    return moved


def _visible_keys(context: Context, stage: Stage, where: Where, attender: Attender, piece: Block | None) -> Holding:
    model = context.model
    visible = visible_keys(
        context.groups.batch,
        attender.block,
        model.layers[where.layer].window,
        attender.kv_index,
        stage.grid.kv_blocks,
        causal=model.causal,
    )
    block = visible if piece is None else intersect(visible, piece)
    return Holding(attender.rank, Tile(cover(attender.heads, model.heads_per_kv_head), block))


def _pieces(context: Context, where: Where) -> tuple[Block | None, ...]:
    """Even pieces of every sequence's keys, or the whole (None). A window layer's keys are few: one piece."""
    streams = context.placement.kv_streams
    if streams == 1 or context.model.layers[where.layer].window:
        return (None,)
    return split_block(tuple(((0, group.total),) for group in context.groups.batch), streams)
