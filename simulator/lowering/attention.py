"""Attention of one layer: projections, the way to the attention ranks, attention itself, and the way back.

    projecting ranks   Norm · Linear qkv[their heads] · Rope
    redistribution     q tile (heads of the group × query block), kv tile (their KV heads × visible keys)
    attention ranks    Store their cache shard · Attention · (lse if KV is split)
    redistribution     o tile → the ranks that multiply W_O; MergeAttention there if KV is split
    W_O ranks          Linear out[their heads' rows] · all-reduce · Add

Projecting ranks are the feed-forward ranks (co-located schemes, FA Pool) or the attention ranks (MA Separation, where
the residual first comes over to them). KV heads that two head groups share are projected by both.
"""

from __future__ import annotations

from collections.abc import Generator

from simulator import program as p
from simulator.cache_layout import CacheOwner, cover
from simulator.errors import InfeasibleError
from simulator.lowering.builder import Where
from simulator.lowering.cache import store_decode, store_prefill
from simulator.lowering.chunks import decode_segments, prefill_segments
from simulator.lowering.context import Context, Residual
from simulator.lowering.inputs import project, spread_keys, spread_queries, to_projectors
from simulator.lowering.outputs import collect, project_out
from simulator.lowering.shares import Attender, attending_ranks, projecting_ranks
from simulator.placement import Stage
from simulator.tile import Tile


def attention(
    context: Context, stage: Stage, where: Where, residual: Residual, owners: tuple[CacheOwner, ...]
) -> Generator[str, None, Residual]:
    """Lower one layer's attention block, with its residual connection."""
    if stage.grid.dim_slices > 1:
        raise InfeasibleError(f"placement {context.placement.name}: dim_slices > 1 is not lowered to a program")
    everywhere = to_projectors(context, stage, where, residual)
    projectors = projecting_ranks(context, stage, where.micro_batch)
    queries, keys = project(context, where, everywhere, projectors)
    attenders = attending_ranks(context, stage, where.micro_batch)
    q_names = spread_queries(context, where, queries, attenders)
    if context.phase == "prefill":
        kv_names, kv_tiles = spread_keys(context, stage, where, keys, attenders)
        store_prefill(context, where, keys, attenders, kv_names, kv_tiles, owners)
    else:
        store_decode(context, where, keys, owners)
        kv_names, kv_tiles = {}, {}
    outputs = [
        _attend(context, stage, where, attender, q_names[attender.rank], kv_names, kv_tiles, owners)
        for attender in attenders
    ]
    collected = collect(context, stage, where, attenders, outputs)
    yield "attention"
    return (yield from project_out(context, stage, where, residual, collected))


def _attend(
    context: Context,
    stage: Stage,
    where: Where,
    attender: Attender,
    query: str,
    kv_names: dict[int, str],
    kv_tiles: dict[int, Tile],
    owners: tuple[CacheOwner, ...],
) -> str:
    """The attention operation of one rank; returns the name of o (its lse is ``<name>.lse``)."""
    model, rank, batch = context.model, attender.rank, context.groups.batch
    window = model.layers[where.layer].window
    split = stage.grid.kv_blocks > 1
    if window and split:
        raise InfeasibleError(
            f"placement {context.placement.name}: layer {where.layer} has a window; kv_blocks must be 1"
        )
    if context.phase == "decode":
        rows = next(owner.rows for owner in owners if owner.rank == rank)
        segments, keys = decode_segments(batch, attender.block, rows, window), f"cache.{where.layer}"
    else:
        segments = prefill_segments(batch, attender.block, kv_tiles[rank].block, window, causal=model.causal)
        keys = kv_names[rank]
    name = where.name("o")
    context.builder.emit(
        rank,
        p.Attention(
            reads=(query, keys) if keys else (query,),
            writes=(name, f"{name}.lse") if split else (name,),
            layer=where.layer,
            micro_batch=where.micro_batch,
            segments=segments,
            num_tokens=context.count(attender.block),
            heads=attender.heads,
            kv_heads=cover(attender.heads, model.heads_per_kv_head),
            group_size=model.heads_per_kv_head,
            head_dim=model.head_dim,
            window=window,
            decode=context.phase == "decode",
        ),
    )
    return name
