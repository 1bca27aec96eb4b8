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
from dataclasses import dataclass

from simulator import program as p
from simulator.attention_chunks import decode_segments, prefill_segments, visible_keys
from simulator.builder import Layout, Where
from simulator.cache_layout import CacheOwner, cover, head_spans
from simulator.ends_lowering import ONE, hidden_layout
from simulator.errors import InfeasibleError
from simulator.lowering_context import Context, Residual
from simulator.placement import Stage, even_split
from simulator.redistribution import Holding, plan
from simulator.tile import Block, Span, Tile, intersect, is_empty


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


@dataclass(frozen=True, slots=True)
class Values:
    """What ranks hold of q or kv: a tile and a name each."""

    holdings: tuple[Holding, ...]
    names: tuple[str, ...]


def attention(
    context: Context, stage: Stage, where: Where, residual: Residual, owners: tuple[CacheOwner, ...]
) -> Generator[str, None, Residual]:
    """Lower one layer's attention block, with its residual connection."""
    if stage.grid.dim_slices > 1:
        raise InfeasibleError(f"placement {context.placement.name}: dim_slices > 1 is not lowered to a program")
    everywhere = _to_projectors(context, stage, where, residual)
    projectors = projecting_ranks(context, stage, where.micro_batch)
    queries, keys = _project(context, where, everywhere, projectors)
    attenders = attending_ranks(context, stage, where.micro_batch)
    q_names = _spread_queries(context, where, queries, attenders)
    if context.phase == "prefill":
        kv_names, kv_tiles = _spread_keys(context, stage, where, keys, attenders)
        _store_prefill(context, where, keys, attenders, kv_names, kv_tiles, owners)
    else:
        _store_decode(context, where, keys, owners)
        kv_names, kv_tiles = {}, {}
    outputs = [
        _attend(context, stage, where, attender, q_names[attender.rank], kv_names, kv_tiles, owners)
        for attender in attenders
    ]
    collected = _collect(context, stage, where, attenders, outputs)
    yield "attention"
    return (yield from _project_out(context, stage, where, residual, collected))


def projecting_ranks(context: Context, stage: Stage, micro_batch: int) -> tuple[Projector, ...]:
    """Heads and tokens every projecting rank computes q, k and v for."""
    if stage.projections == "attention":
        return tuple(
            Projector(a.rank, a.heads, a.block) for a in attending_ranks(context, stage, micro_batch) if a.kv_index == 0
        )
    own = not stage.separated and len(stage.grid.heads) == stage.tensor_degree
    sizes = stage.grid.heads if own else even_split(context.model.num_attention_heads, stage.tensor_degree)
    heads = head_spans(sizes)
    return tuple(
        Projector(rank, heads[shard], block) for rank, shard, block in context.feed_forward(stage, micro_batch)
    )


def attending_ranks(context: Context, stage: Stage, micro_batch: int) -> tuple[Attender, ...]:
    """Heads and queries of every attention rank that has any in this micro-batch."""
    heads = head_spans(stage.grid.heads)
    blocks = context.token_blocks(stage.grid.query_blocks)
    found = []
    for index, rank in enumerate(stage.attention_ranks):
        head, query, kv, _ = stage.grid.coordinates(index)
        block = context.groups.select(blocks[query], micro_batch=micro_batch)
        if not is_empty(block):
            found.append(Attender(rank, heads[head], block, kv))
    return tuple(found)


def _to_projectors(context: Context, stage: Stage, where: Where, residual: Residual) -> Residual:
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


def _project(
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
            qk_norm=model.qk_norm,
            eps=model.rms_norm_eps,
        ),
    )


def q_layout(context: Context) -> Layout:
    return Layout((), (context.model.head_dim,), context.dtype)


def kv_layout(context: Context) -> Layout:
    return Layout((2,), (context.model.head_dim,), context.dtype)


def _spread_queries(context: Context, where: Where, queries: Values, attenders: tuple[Attender, ...]) -> dict[int, str]:
    needs = tuple(Holding(a.rank, Tile(a.heads, a.block)) for a in attenders)
    moves = plan(queries.holdings, needs, context.nodes, "direct", 1)
    names = context.builder.redistribute(moves, queries.names, q_layout(context), where, "q.in")
    return {need.rank: name for need, name in zip(needs, names, strict=True)}


def _spread_keys(
    context: Context, stage: Stage, where: Where, keys: Values, attenders: tuple[Attender, ...]
) -> tuple[dict[int, str], dict[int, Tile]]:
    """Every attention rank gets the keys its queries see, within its KV block."""
    model = context.model
    window = model.layers[where.layer].window
    needs = []
    for attender in attenders:
        visible = visible_keys(
            context.groups.batch,
            attender.block,
            window,
            attender.kv_index,
            stage.grid.kv_blocks,
            causal=model.causal,
        )
        needs.append(Holding(attender.rank, Tile(cover(attender.heads, model.heads_per_kv_head), visible)))
    placement = context.placement
    moves = plan(keys.holdings, tuple(needs), context.nodes, placement.kv_multicast, placement.transfer_chunks)
    names = context.builder.redistribute(moves, keys.names, kv_layout(context), where, "kv.in")
    return (
        {need.rank: name for need, name in zip(needs, names, strict=True)},
        {need.rank: need.tile for need in needs},
    )


def _store_prefill(
    context: Context,
    where: Where,
    keys: Values,
    attenders: tuple[Attender, ...],
    kv_names: dict[int, str],
    kv_tiles: dict[int, Tile],
    owners: tuple[CacheOwner, ...],
) -> None:
    """Cache owners keep their shard: of the keys they attended to if those cover it, else from the projectors."""
    shards = [_of_micro_batch(context, where, owner) for owner in owners]
    missing = [shard for shard in shards if shard.rank not in kv_tiles or not _covers(kv_tiles[shard.rank], shard.tile)]
    moves = plan(keys.holdings, tuple(missing), context.nodes, "direct", 1)
    fetched = context.builder.redistribute(moves, keys.names, kv_layout(context), where, "kv.keep")
    came = {shard.rank: name for shard, name in zip(missing, fetched, strict=True)}
    for shard in shards:
        if is_empty(shard.tile.block):
            continue
        if shard.rank in came:
            store(context, where, shard, shard.tile, came[shard.rank])
        else:
            store(context, where, shard, kv_tiles[shard.rank], kv_names[shard.rank])


def _store_decode(context: Context, where: Where, keys: Values, owners: tuple[CacheOwner, ...]) -> None:
    """The new token's keys go to the rank whose turn it is."""
    shards = tuple(_of_micro_batch(context, where, owner) for owner in owners)
    moves = plan(keys.holdings, shards, context.nodes, "direct", 1)
    names = context.builder.redistribute(moves, keys.names, kv_layout(context), where, "kv.in")
    for shard, name in zip(shards, names, strict=True):
        if name:
            store(context, where, shard, shard.tile, name)


def _of_micro_batch(context: Context, where: Where, owner: CacheOwner) -> Holding:
    block = context.groups.select(owner.tile.block, micro_batch=where.micro_batch)
    return Holding(owner.rank, Tile(owner.tile.columns, block))


def _covers(outer: Tile, inner: Tile) -> bool:
    within = outer.columns[0] <= inner.columns[0] and inner.columns[1] <= outer.columns[1]
    return within and intersect(outer.block, inner.block) == inner.block


def store(context: Context, where: Where, shard: Holding, source: Tile, value: str) -> None:
    context.builder.emit(
        shard.rank,
        p.Store(
            reads=(value,),
            writes=(f"cache.{where.layer}",),
            layer=where.layer,
            micro_batch=where.micro_batch,
            batch=context.groups.batch,
            source=source,
            target=shard.tile,
            num_tokens=context.count(shard.tile.block),
            head_dim=context.model.head_dim,
        ),
    )


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


def out_ranks(context: Context, stage: Stage, micro_batch: int) -> tuple[Projector, ...]:
    """The ranks that multiply W_O: the projectors, or with MA Separation's M:N exit the feed-forward ranks."""
    if stage.projections == "attention" and stage.separated and context.placement.exit == "all_to_all":
        heads = head_spans(even_split(context.model.num_attention_heads, stage.tensor_degree))
        return tuple(
            Projector(rank, heads[shard], block) for rank, shard, block in context.feed_forward(stage, micro_batch)
        )
    return projecting_ranks(context, stage, micro_batch)


def _collect(
    context: Context, stage: Stage, where: Where, attenders: tuple[Attender, ...], outputs: list[str]
) -> dict[int, str]:
    """o of every W_O rank's heads and tokens, merged over KV blocks."""
    targets = out_ranks(context, stage, where.micro_batch)
    needs = tuple(Holding(target.rank, Tile(target.heads, target.block)) for target in targets)
    lse = Layout((), (), "fp32")
    parts: dict[int, list[str]] = {target.rank: [] for target in targets}
    for kv in range(stage.grid.kv_blocks):
        chosen = [(a, name) for a, name in zip(attenders, outputs, strict=True) if a.kv_index == kv]
        held = tuple(Holding(a.rank, Tile(a.heads, a.block)) for a, _ in chosen)
        moves = plan(held, needs, context.nodes, "direct", 1)
        names = tuple(name for _, name in chosen)
        came = context.builder.redistribute(moves, names, q_layout(context), where, f"o.in{kv}")
        for target, name in zip(targets, came, strict=True):
            parts[target.rank].append(name)
        if stage.grid.kv_blocks > 1:
            sums = tuple(f"{name}.lse" for name in names)
            came = context.builder.redistribute(moves, sums, lse, where, f"lse.in{kv}")
            for target, name in zip(targets, came, strict=True):
                parts[target.rank].append(name)
    if stage.grid.kv_blocks == 1:
        return {rank: names[0] for rank, names in parts.items()}
    return {target.rank: _merge(context, where, target, parts[target.rank]) for target in targets}


def _merge(context: Context, where: Where, target: Projector, values: list[str]) -> str:
    return context.builder.emit(
        target.rank,
        p.MergeAttention(
            reads=tuple(values),
            writes=(where.name("o.merged"),),
            layer=where.layer,
            micro_batch=where.micro_batch,
            num_tokens=context.count(target.block),
            heads=target.heads[1] - target.heads[0],
            head_dim=context.model.head_dim,
            parts=len(values) // 2,
        ),
    )


def _project_out(
    context: Context, stage: Stage, where: Where, residual: Residual, outputs: dict[int, str]
) -> Generator[str, None, Residual]:
    """W_O, the sum over head shards, and the residual connection, on the feed-forward ranks."""
    model = context.model
    targets = out_ranks(context, stage, where.micro_batch)
    names, blocks = {}, {}
    for target in targets:
        a, b = target.heads
        rows = (a * model.head_dim, b * model.head_dim)
        weight = p.WeightSlice(f"layers.{where.layer}.attention.o", rows, (0, model.hidden_size))
        tokens = context.count(target.block)
        names[target.rank] = context.linear(target.rank, where, outputs[target.rank], "attention", tokens, (weight,))
        blocks[target.rank] = target.block
    if set(names) <= set(residual.names):
        names = yield from context.all_reduce(stage, where, names, blocks, "attention")
    else:
        names = yield from _exit_by_broadcast(context, stage, where, names, blocks)
    summed = {
        rank: context.add(rank, where, residual.names[rank], name, "x.mid", context.count(residual.blocks[rank]))
        for rank, name in names.items()
    }
    return Residual(summed, residual.blocks)


def _exit_by_broadcast(
    context: Context, stage: Stage, where: Where, names: dict[int, str], blocks: dict[int, Block]
) -> Generator[str, None, dict[int, str]]:
    """MA Separation as written: all-reduce over the attention ranks, then the sum goes to every feed-forward rank."""
    ranks = tuple(names)
    if len(set(blocks.values())) > 1:
        raise InfeasibleError(
            f"placement {context.placement.name}: exit all_reduce_broadcast sums over heads; query_blocks must be 1"
        )
    if len(ranks) > 1:
        shape = (context.count(blocks[ranks[0]]), context.model.hidden_size)
        names = context.collective("all_reduce", ranks, where, names, "attention.sum", shape)
        yield "reduce"
    held = tuple(Holding(rank, Tile(ONE, blocks[rank])) for rank in ranks)
    needs = tuple(Holding(rank, Tile(ONE, block)) for rank, _, block in context.feed_forward(stage, where.micro_batch))
    moves = plan(held, needs, context.nodes, "tree", 1)
    came = context.builder.redistribute(
        moves, tuple(names[rank] for rank in ranks), hidden_layout(context), where, "attention.out"
    )
    return {need.rank: name for need, name in zip(needs, came, strict=True)}
