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
from simulator.lowering.inputs import Values, project, spread_keys, spread_queries, to_projectors
from simulator.lowering.outputs import collect, merge, project_out
from simulator.lowering.shares import Attender, attending_ranks, projecting_ranks
from simulator.placement import Stage


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
        pieces = spread_keys(context, stage, where, keys, attenders)
        outputs = [
            _attend_pieces(context, stage, where, attender, q_names[attender.rank], index, pieces)
            for index, attender in enumerate(attenders)
        ]
        store_prefill(context, where, keys, pieces, owners)
    else:
        store_decode(context, where, keys, owners)
        rows = {owner.rank: owner.rows for owner in owners}
        outputs = [
            _attend_cache(context, stage, where, attender, q_names[attender.rank], rows[attender.rank])
            for attender in attenders
        ]
    collected = collect(context, stage, where, attenders, outputs)
    yield "attention"
    return (yield from project_out(context, stage, where, residual, collected))


def _attend_pieces(
    context: Context, stage: Stage, where: Where, attender: Attender, query: str, index: int, pieces: list[Values]
) -> str:
    """Attention on every piece of keys in turn, merged at the end; returns the name of o."""
    batch, window = context.groups.batch, context.model.layers[where.layer].window
    split = stage.grid.kv_blocks > 1
    if split and (len(pieces) > 1 or window):
        reason = "has a window" if window else f"streams its keys in {len(pieces)} pieces"
        raise InfeasibleError(
            f"placement {context.placement.name}: layer {where.layer} {reason}; kv_blocks must be 1, not "
            f"{stage.grid.kv_blocks}"
        )
    seen = [(piece.holdings[index].tile.block, piece.names[index]) for piece in pieces]
    if len(seen) > 1:
        seen = [(block, name) for block, name in seen if name]
    partial: list[str] = []
    for number, (block, keys) in enumerate(seen):
        segments = prefill_segments(batch, attender.block, block, window, causal=context.model.causal)
        name = "o" if len(seen) == 1 else f"o.p{number}"
        reads = (query, keys) if keys else (query,)
        partial.append(_emit(context, where, attender, reads, segments, name, lse=split or len(seen) > 1))
    if len(partial) == 1:
        return partial[0]
    values = [value for name in partial for value in (name, f"{name}.lse")]
    return merge(context, where, attender.rank, attender.heads, attender.block, values, "o")


def _attend_cache(
    context: Context, stage: Stage, where: Where, attender: Attender, query: str, rows: tuple[int, ...]
) -> str:
    """Attention of one query a sequence on the rank's cache rows; returns the name of o."""
    window, split = context.model.layers[where.layer].window, stage.grid.kv_blocks > 1
    if window and split:
        raise InfeasibleError(
            f"placement {context.placement.name}: layer {where.layer} has a window; kv_blocks must be 1, not "
            f"{stage.grid.kv_blocks}"
        )
    segments = decode_segments(context.groups.batch, attender.block, rows, window)
    return _emit(context, where, attender, (query, f"cache.{where.layer}"), segments, "o", lse=split)


def _emit(
    context: Context,
    where: Where,
    attender: Attender,
    reads: tuple[str, ...],
    segments: tuple[p.Segment, ...],
    what: str,
    *,
    lse: bool,
) -> str:
    """One attention operation; its lse, if wanted, is named ``<name>.lse``."""
    model, name = context.model, where.name(what)
    return context.builder.emit(
        attender.rank,
        p.Attention(
            reads=reads,
            writes=(name, f"{name}.lse") if lse else (name,),
            layer=where.layer,
            micro_batch=where.micro_batch,
            segments=segments,
            num_tokens=context.count(attender.block),
            heads=attender.heads,
            kv_heads=cover(attender.heads, model.heads_per_kv_head),
            group_size=model.heads_per_kv_head,
            head_dim=model.head_dim,
            window=model.layers[where.layer].window,
            decode=context.phase == "decode",
        ),
    )
