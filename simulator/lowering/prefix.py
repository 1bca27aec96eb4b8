"""Prefix: a prefill's keys that are cached already, read back by the ranks that keep them.

What a rank holds of the first ``past`` tokens, laid out as the decoding placement keeps it (``cache_layout``), becomes
a value like the new keys, and goes with them wherever it is seen: chunked prefill and prefix caching are this.
What it ignores: kernels that read the cache in place (a page table instead of the copy).
"""

from __future__ import annotations

from simulator import program as p
from simulator.cache_layout import CacheOwner
from simulator.errors import InfeasibleError
from simulator.lowering.builder import Where
from simulator.lowering.context import Context
from simulator.lowering.inputs import Values
from simulator.lowering.redistribution import Holding
from simulator.placement import Placement
from simulator.tile import Block, Tile, intersect, is_empty, num_tokens
from simulator.workload import Step


def check_prefix(placement: Placement, step: Step) -> None:
    """Rings and dimension slices begin with empty caches."""
    if step.phase == "decode" or not any(group.past for group in step.batch):
        return
    sliced = any(stage.grid.dim_slices > 1 for stage in placement.stages)
    if sliced or placement.kv_ring:
        what = "dim_slices > 1" if sliced else "kv_ring"
        raise InfeasibleError(
            f"placement {placement.name}: {what} cannot prefill on top of cached tokens; give sequences with past = 0, "
            "or a placement without"
        )


def with_cached(context: Context, where: Where, keys: Values, owners: tuple[CacheOwner, ...]) -> Values:
    """``keys`` and, of the cached ones, those that new tokens see."""
    if not any(group.past for group in context.groups.batch):
        return keys
    held, names = list(keys.holdings), list(keys.names)
    seen = _seen(context, where)
    for owner in owners:
        here = context.groups.select(owner.before, micro_batch=where.micro_batch)
        target = Tile(owner.tile.columns, intersect(here, seen))
        if is_empty(target.block):
            continue
        held.append(Holding(owner.rank, target))
        names.append(where.name("kv.cached"))
        context.builder.emit(
            owner.rank,
            p.Recall(
                reads=(f"cache.{where.layer}",),
                writes=(where.name("kv.cached"),),
                layer=where.layer,
                micro_batch=where.micro_batch,
                batch=context.groups.batch,
                source=Tile(owner.tile.columns, owner.before),
                target=target,
                num_tokens=num_tokens(target.block, context.groups.batch),
                head_dim=context.model.head_dim,
            ),
        )
    return Values(tuple(held), tuple(names))


def _seen(context: Context, where: Where) -> Block:
    """Cached positions that some new token attends to: all, or a window before the first."""
    window = context.model.layers[where.layer].window
    return tuple(
        ((max(0, group.past - window + 1) if window else 0, group.past),) if group.past else ()
        for group in context.groups.batch
    )
