"""Cache layout: which rank keeps which KV heads and token positions of the cache while decoding.

With ``kv_blocks`` c, the first ``prompt`` tokens of a sequence are cut evenly in c, and later token number j goes to
block j mod c, so that shards stay equal. Rows of a shard are in the order of their positions. A prefill on top of
cached tokens finds the first ``past`` of them laid out so, and deals its own in the same turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from simulator.groups import Groups
from simulator.model import Model
from simulator.placement import Stage
from simulator.tile import Block, Span, Tile, merge_spans
from simulator.workload import Phase, Sequences


@dataclass(frozen=True, slots=True)
class CacheOwner:
    """Rank ``rank`` stores ``tile`` in this step (prefill: its shard; decode: the new tokens that fall to it) and has
    ``rows[i]`` cache rows a sequence of group i afterwards. ``slices``: dimension slices of a head, of which the tile
    says those kept. ``before``: the positions it holds already when a prefill begins."""

    rank: int
    tile: Tile
    rows: tuple[int, ...]
    slices: int = 1
    before: Block = ()


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
        rows = tuple(count if here else 0 for (_, count), here in zip(stored, mine, strict=True))
        before: Block = ()
        if phase == "prefill" and any(group.past for group in groups.batch):
            before = groups.select(tuple(_held(g, kv, stage.grid.kv_blocks) for g in groups.batch), part=part)
        tile = Tile(cover(spans[head], model.heads_per_kv_head), block)
        owners.append(CacheOwner(rank, tile, rows, before=before))
    return tuple(owners)


def _stored(group: Sequences, kv: int, kv_blocks: int, phase: Phase) -> tuple[tuple[Span, ...], int]:
    """(positions block ``kv`` stores in this step, rows it then holds a sequence)."""
    if phase == "prefill" and group.past:
        spans = _turns(group.past, group.total, _prompt(group), kv, kv_blocks)
        return spans, sum(stop - start for start, stop in (*_held(group, kv, kv_blocks), *spans))
    if phase == "prefill":
        start, stop = kv * group.total // kv_blocks, (kv + 1) * group.total // kv_blocks
        return (((start, stop),) if start < stop else ()), stop - start
    prompt = _prompt(group)
    appended = group.past - prompt
    held = (kv + 1) * prompt // kv_blocks - kv * prompt // kv_blocks
    held += appended // kv_blocks + (appended % kv_blocks > kv)
    if appended % kv_blocks == kv:
        return ((group.past, group.past + 1),), held + 1
    return (), held


def _prompt(group: Sequences) -> int:
    return group.past if group.prompt is None else group.prompt


def _held(group: Sequences, kv: int, kv_blocks: int) -> tuple[Span, ...]:
    """Positions of block ``kv`` among the tokens cached before the step."""
    prompt = _prompt(group)
    start, stop = kv * prompt // kv_blocks, (kv + 1) * prompt // kv_blocks
    turns = _turns(prompt, group.past, prompt, kv, kv_blocks)
    return merge_spans((((start, stop),) if start < stop else ()) + turns)


def _turns(start: int, stop: int, prompt: int, kv: int, kv_blocks: int) -> tuple[Span, ...]:
    """Positions of [start, stop) that are dealt to block ``kv``."""
    if kv_blocks == 1:
        return ((start, stop),) if start < stop else ()
    first = start + (kv - (start - prompt)) % kv_blocks
    return tuple((position, position + 1) for position in range(first, stop, kv_blocks))
