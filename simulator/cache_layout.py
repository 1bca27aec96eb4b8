"""Cache layout: which rank keeps which KV heads and token positions of the cache while decoding.

With ``kv_blocks`` c, the first ``prompt`` tokens of a sequence are cut evenly in c, and later token number j goes to
block j mod c, so that shards stay equal. Rows of a shard are in the order of their positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from simulator.groups import Groups
from simulator.model import Model
from simulator.placement import Stage
from simulator.tile import Block, Span, Tile
from simulator.workload import Phase, Sequences


@dataclass(frozen=True, slots=True)
class CacheOwner:
    """Rank ``rank`` stores ``tile`` in this step (prefill: its shard; decode: the new tokens that fall to it) and has
    ``rows[i]`` cache rows a sequence of group i afterwards. ``slices``: dimension slices of a head, of which the tile
    says those kept."""

    rank: int
    tile: Tile
    rows: tuple[int, ...]
    slices: int = 1


def cover(heads: Span, group_size: int) -> Span:
    """The KV heads that query heads ``heads`` use."""
    return (heads[0] // group_size, (heads[1] - 1) // group_size + 1)


def head_spans(heads: tuple[int, ...]) -> tuple[Span, ...]:
    """Sizes to absolute ranges: (3, 2) → (0, 3), (3, 5)."""
    edges = [0]
    for size in heads:
        edges.append(edges[-1] + size)
    return tuple(pairwise(edges))


def cache_owners(model: Model, stage: Stage, groups: Groups, phase: Phase) -> tuple[CacheOwner, ...]:
    """Every attention rank's share of a layer's cache when ``stage`` decodes."""
    spans = head_spans(stage.grid.heads)
    owners = []
    for index, rank in enumerate(stage.attention_ranks):
        head, query, kv, _ = stage.grid.coordinates(index)
        part = query if stage.grid.query_blocks > 1 else None
        stored = [_stored(group, kv, stage.grid.kv_blocks, phase) for group in groups.batch]
        block: Block = groups.select(tuple(span for span, _ in stored), part=part)
        mine = [part is None or groups.part[i] == part for i in range(len(groups.batch))]
        rows = tuple(count if held else 0 for (_, count), held in zip(stored, mine, strict=True))
        owners.append(CacheOwner(rank, Tile(cover(spans[head], model.heads_per_kv_head), block), rows))
    return tuple(owners)


def _stored(group: Sequences, kv: int, kv_blocks: int, phase: Phase) -> tuple[tuple[Span, ...], int]:
    """(positions block ``kv`` stores in this step, rows it then holds a sequence)."""
    if phase == "prefill":
        start, stop = kv * group.total // kv_blocks, (kv + 1) * group.total // kv_blocks
        return (((start, stop),) if start < stop else ()), stop - start
    prompt = group.past if group.prompt is None else group.prompt
    appended = group.past - prompt
    held = (kv + 1) * prompt // kv_blocks - kv * prompt // kv_blocks
    held += appended // kv_blocks + (appended % kv_blocks > kv)
    if appended % kv_blocks == kv:
        return ((group.past, group.past + 1),), held + 1
    return (), held
