"""Attention of one layer: projections, the way to the attention ranks, attention itself, and the way back.

    projecting ranks   Norm · Linear qkv[their heads] · Rope   (cached keys: Recall, where they are kept)
    redistribution     q tile (heads of the group × query block), kv tile (their KV heads × visible keys)
    attention ranks    Store their cache shard · Attention · (lse if KV is split)
    redistribution     o tile → the ranks that multiply W_O; MergeAttention there if KV is split
    W_O ranks          Linear out[their heads' rows] · all-reduce · Add

Projecting ranks are the feed-forward ranks (co-located schemes, FA Pool) or the attention ranks (MA Separation, where
the residual first comes over to them). KV heads that two head groups share are projected by both.
Dimension slices and rings have ways of their own: ``two_level``, ``ring``.
"""

from __future__ import annotations

from collections.abc import Generator

from simulator.cache_layout import CacheOwner
from simulator.errors import InfeasibleError
from simulator.lowering.attending import attend, merged
from simulator.lowering.builder import Moved, Where
from simulator.lowering.cache import store_decode, store_prefill
from simulator.lowering.chunks import decode_segments, prefill_segments
from simulator.lowering.context import Context, Residual
from simulator.lowering.inputs import Values, project, send_keys, spread_queries, to_projectors
from simulator.lowering.outputs import collect, project_out, send_outputs
from simulator.lowering.prefix import with_cached
from simulator.lowering.ring import ring
from simulator.lowering.shares import Attender, attending_ranks, projecting_ranks
from simulator.lowering.two_level import two_level
from simulator.placement import Stage


def attention(
    context: Context, stage: Stage, where: Where, residual: Residual, owners: tuple[CacheOwner, ...]
) -> Generator[str, None, Residual]:
    """Lower one layer's attention block, with its residual connection."""
    if stage.grid.dim_slices > 1:
        return (yield from two_level(context, stage, where, residual, owners))
    everywhere = to_projectors(context, stage, where, residual)
    projectors = projecting_ranks(context, stage, where.micro_batch)
    queries, keys = project(context, where, everywhere, projectors)
    attenders = attending_ranks(context, stage, where.micro_batch)
    q_names = spread_queries(context, where, queries, attenders)
    if context.phase == "prefill":
        keys = with_cached(context, where, keys, owners)
        if context.placement.kv_ring and not context.model.layers[where.layer].window:
            outputs, pieces = ring(context, where, keys, q_names, attenders)
        else:
            moved = send_keys(context, stage, where, keys, attenders)
            outputs, pieces = _attend_pieces(context, stage, where, attenders, q_names, moved)
        context.builder.spare(where, store_prefill(context, where, keys, pieces, owners))
    else:
        store_decode(context, where, keys, owners)
        rows = {owner.rank: owner.rows for owner in owners}
        outputs = [
            _attend_cache(context, stage, where, attender, q_names[attender.rank], rows[attender.rank])
            for attender in attenders
        ]
    sent = send_outputs(context, stage, where, attenders, outputs)
    yield "attention"
    collected = collect(context, stage, where, sent)
    return (yield from project_out(context, stage, where, residual, collected))


def _attend_pieces(
    context: Context,
    stage: Stage,
    where: Where,
    attenders: tuple[Attender, ...],
    queries: dict[int, str],
    moved: list[Moved],
) -> tuple[list[str], list[Values]]:
    """Attention on every piece of keys as it is put together, then merged; returns o's names and the keys held."""
    _check_split(context, stage, where, len(moved))
    lse = stage.grid.kv_blocks > 1 or len(moved) > 1
    partial: dict[int, list[str]] = {attender.rank: [] for attender in attenders}
    pieces = []
    for number, piece in enumerate(moved):
        names = context.builder.assemble(piece)
        pieces.append(Values(piece.plan.needs, names))
        for attender, need, keys in zip(attenders, piece.plan.needs, names, strict=True):
            if not keys and len(moved) > 1:
                continue
            name = "o" if len(moved) == 1 else f"o.p{number}"
            if not context.builder.keeps(attender.rank):
                partial[attender.rank].append(where.name(name))
                continue
            segments = prefill_segments(
                context.groups.batch,
                attender.block,
                need.tile.block,
                context.model.layers[where.layer].window,
                causal=context.model.causal,
            )
            reads = (queries[attender.rank], keys) if keys else (queries[attender.rank],)
            partial[attender.rank].append(attend(context, where, attender, reads, segments, what=name, lse=lse))
    return [merged(context, where, attender, partial[attender.rank]) for attender in attenders], pieces


def _check_split(context: Context, stage: Stage, where: Where, pieces: int) -> None:
    """Keys split over ranks can neither be windowed nor streamed."""
    if stage.grid.kv_blocks == 1:
        return
    if context.model.layers[where.layer].window or pieces > 1:
        reason = "streams its keys" if pieces > 1 else "has a window"
        raise InfeasibleError(
            f"placement {context.placement.name}: layer {where.layer} {reason}; kv_blocks must be 1, not "
            f"{stage.grid.kv_blocks}"
        )


def _attend_cache(
    context: Context, stage: Stage, where: Where, attender: Attender, query: str, rows: tuple[int, ...]
) -> str:
    """Attention of one query a sequence on the rank's cache rows; returns the name of o."""
    _check_split(context, stage, where, 1)
    window = context.model.layers[where.layer].window
    segments = decode_segments(context.groups.batch, attender.block, rows, window)
    reads = (query, f"cache.{where.layer}")
    return attend(context, where, attender, reads, segments, lse=stage.grid.kv_blocks > 1)
