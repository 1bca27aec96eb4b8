"""The KV cache's owners store their rows: of what they attended to, or fetched from the projecting ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from simulator import program as p
from simulator.cache_layout import CacheOwner
from simulator.lowering.builder import Where
from simulator.lowering.context import Context
from simulator.lowering.inputs import Values, kv_layout
from simulator.lowering.redistribution import Holding, plan
from simulator.tile import Tile, intersect, is_empty


def store_prefill(
    context: Context, where: Where, keys: Values, pieces: list[Values], owners: tuple[CacheOwner, ...]
) -> Iterator[None]:
    """Cache owners keep their shard: of the keys they attended to if those cover it, else from whoever has it.

    Nothing of the step waits for it, so it is spare work: first what is fetched is sent, next all is stored.
    """
    shards = tuple(of_micro_batch(context, where, owner) for owner in owners)
    received = [
        (holding, name) for piece in pieces for holding, name in zip(piece.holdings, piece.names, strict=True) if name
    ]
    arrived: dict[int, list[tuple[Holding, str]]] = {}
    for pair in received:
        arrived.setdefault(pair[0].rank, []).append(pair)
    covered, missing = [], []
    for shard in shards:
        covering = [pair for pair in arrived.get(shard.rank, ()) if _covers(pair[0].tile, shard.tile)]
        if covering and not is_empty(shard.tile.block):
            covered.append((shard, *covering[0]))
        elif not is_empty(shard.tile.block):
            missing.append(shard)
    held = (*keys.holdings, *(holding for holding, _ in received))
    names = (*keys.names, *(name for _, name in received))
    moves = plan(held, tuple(missing), context.nodes, "direct", 1)
    moved = context.builder.move(moves, names, kv_layout(context), where, "kv.keep")
    yield
    for shard, holding, name in covered:
        store(context, where, shard, holding.tile, name)
    for shard, name in zip(missing, context.builder.assemble(moved), strict=True):
        store(context, where, shard, shard.tile, name)


def store_decode(context: Context, where: Where, keys: Values, owners: tuple[CacheOwner, ...]) -> None:
    """The new token's keys go to the rank whose turn it is."""
    shards = tuple(of_micro_batch(context, where, owner) for owner in owners)
    moves = plan(keys.holdings, shards, context.nodes, "direct", 1)
    names = context.builder.redistribute(moves, keys.names, kv_layout(context), where, "kv.in")
    for shard, name in zip(shards, names, strict=True):
        if name:
            store(context, where, shard, shard.tile, name)


def of_micro_batch(context: Context, where: Where, owner: CacheOwner) -> Holding:
    block = context.groups.select(owner.tile.block, micro_batch=where.micro_batch)
    return Holding(owner.rank, replace(owner.tile, block=block))


def _covers(outer: Tile, inner: Tile) -> bool:
    within = outer.columns[0] <= inner.columns[0] and inner.columns[1] <= outer.columns[1]
    return within and intersect(outer.block, inner.block) == inner.block


def store(context: Context, where: Where, shard: Holding, source: Tile, value: str, *, head_dim: int = 0) -> None:
    """Emit the store; ``head_dim`` 0: the model's."""
    if not context.builder.keeps(shard.rank):
        return
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
            head_dim=head_dim or context.model.head_dim,
        ),
    )
