"""Context parallelism as a ring: every head group's KV blocks go round its ranks in as many steps as there are.

In each step a rank passes on the block at hand and attends to it while it travels and the next one arrives (sends,
receives and compute are streams of their own); the partial results are merged by log-sum-exp at the end. Every rank
sends c − 1 blocks. With zigzag blocks each step is half masked on every rank alike: those pairs are left out.
Window layers see few keys and gather them instead. Source: Liu et al. 2023, Ring Attention; zigzag: Llama 3's
context parallelism and others.
"""

from __future__ import annotations

from simulator.cache_layout import cover
from simulator.errors import InfeasibleError
from simulator.lowering.attending import attend, merged
from simulator.lowering.builder import Message, Where
from simulator.lowering.chunks import ring_segments
from simulator.lowering.context import Context
from simulator.lowering.inputs import Values, kv_layout
from simulator.lowering.redistribution import Holding
from simulator.lowering.shares import Attender
from simulator.placement import Placement, Stage
from simulator.tile import Tile


def check_ring(placement: Placement, stage: Stage, place: str) -> None:
    """A ring needs every rank to project the very queries and keys it starts with."""
    grid = stage.grid
    replicas, shards = grid.query_blocks, len(grid.heads)
    expected = tuple(rank for head in range(shards) for rank in stage.feed_forward_ranks[head::shards])
    if grid.kv_blocks > 1 or grid.dim_slices > 1:
        problem = "cuts queries and heads only; kv_blocks and dim_slices must be 1"
    elif stage.tensor_degree != shards or stage.token_replicas != replicas or stage.attention_ranks != expected:
        problem = f"needs {shards} tensor shards × {replicas} token replicas on the ranks {list(expected)} that attend"
    elif placement.kv_streams > 1:
        problem = f"already passes its keys in pieces; kv_streams must be 1, not {placement.kv_streams}"
    else:
        return
    raise InfeasibleError(f"{place}: kv_ring {problem}")


def ring(
    context: Context, where: Where, keys: Values, queries: dict[int, str], attenders: tuple[Attender, ...]
) -> tuple[list[str], list[Values]]:
    """o's name on every attender, in order, and the keys each has held."""
    names = {holding.rank: name for holding, name in zip(keys.holdings, keys.names, strict=True)}
    outputs: dict[int, str] = {}
    held: list[tuple[Holding, str]] = []
    for heads in dict.fromkeys(attender.heads for attender in attenders):
        members = [attender for attender in attenders if attender.heads == heads]
        held += _round(context, where, members, names, queries, outputs)
    pieces = Values(tuple(holding for holding, _ in held), tuple(name for _, name in held))
    return [outputs[attender.rank] for attender in attenders], [pieces]


def _round(
    context: Context,
    where: Where,
    members: list[Attender],
    names: dict[int, str],
    queries: dict[int, str],
    outputs: dict[int, str],
) -> list[tuple[Holding, str]]:
    """One head group's ring; returns what its ranks received."""
    at_hand = [names[member.rank] for member in members]
    partial: list[list[str]] = [[] for _ in members]
    received = []
    for step in range(len(members)):
        coming = list(at_hand)
        if step + 1 < len(members):
            coming = _pass_on(context, where, members, at_hand, step)
        for place, member in enumerate(members):
            block = members[place - step]
            if step:
                received.append((Holding(member.rank, _keys(context, block)), at_hand[place]))
            name = _attend(context, where, member, block, (queries[member.rank], at_hand[place]), step)
            partial[place] += [name] if name else []
        at_hand = coming
    for member, parts in zip(members, partial, strict=True):
        outputs[member.rank] = merged(context, where, member, parts)
    return received


def _keys(context: Context, owner: Attender) -> Tile:
    """The KV tile a rank starts with: of the tokens it projects."""
    return Tile(cover(owner.heads, context.model.heads_per_kv_head), owner.block)


def _pass_on(context: Context, where: Where, members: list[Attender], at_hand: list[str], step: int) -> list[str]:
    """Every rank's block to the next rank; returns the names of what arrives, by receiver."""
    coming = list(at_hand)
    for place, member in enumerate(members):
        to = (place + 1) % len(members)
        shape = kv_layout(context).shape(_keys(context, members[place - step]), context.groups.batch)
        message = Message(member.rank, members[to].rank, at_hand[place])
        coming[to] = context.builder.message(message, shape, context.dtype, where, f"kv.r{step + 1}")
    return coming


def _attend(
    context: Context, where: Where, member: Attender, block: Attender, reads: tuple[str, ...], step: int
) -> str | None:
    """Attention of a rank's queries on the block at hand, or None if all of it is masked."""
    if not context.builder.keeps(member.rank):
        return where.name(f"o.r{step}")
    segments = ring_segments(context.groups.batch, member.block, block.block, causal=context.model.causal)
    if not any(chunk.kv_stop for segment in segments for chunk in segment.chunks):
        return None
    return attend(context, where, member, reads, segments, what=f"o.r{step}", lse=True)
