"""Alike: whether messages are the same in every block of a fold."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.fold import Fold, UnfoldableError
from simulator.lowering.redistribution import Plan
from simulator.tile import Block, Span, Tile

Place = tuple[int, int, int, Span, Block]
Step = tuple[int, int, Place]


def check_alike(plan: Plan, fold: Fold) -> None:
    """UnfoldableError unless every move stays within its block and each block makes block 0's moves in its order.

    Parts must lie in their values as block 0's do: the same tokens, columns and slices as far from the value's first.
    """
    moves: list[list[Step]] = [[] for _ in range(fold.blocks)]
    for move in plan.moves:
        holding = plan.holdings[move.source]
        (block, source), (other, to) = fold.place[holding.rank], fold.place[move.to]
        if block != other:
            raise UnfoldableError(f"a message from rank {holding.rank} to rank {move.to} leaves its block")
        moves[block].append((source, to, _within(move.part, holding.tile)))
    parts: list[list[Step]] = [[] for _ in range(fold.blocks)]
    for need, pieces in zip(plan.needs, plan.parts, strict=True):
        block, rank = fold.place[need.rank]
        for source, part in pieces:
            parts[block].append((rank, len(pieces), _within(part, plan.holdings[source].tile)))
    if any(one != moves[0] for one in moves) or any(one != parts[0] for one in parts):
        raise UnfoldableError("blocks redistribute in different ways")


def check_pairs(pairs: Sequence[tuple[int, int]], fold: Fold) -> None:
    """UnfoldableError unless messages (from, to) stay within their blocks and are the same in each, in order."""
    messages: list[list[tuple[int, int]]] = [[] for _ in range(fold.blocks)]
    for source, to in pairs:
        (block, kept), (other, like) = fold.place[source], fold.place[to]
        if block != other:
            raise UnfoldableError(f"a message from rank {source} to rank {to} leaves its block")
        messages[block].append((kept, like))
    if any(one != messages[0] for one in messages):
        raise UnfoldableError("blocks send different messages")


def _within(part: Tile, whole: Tile) -> Place:
    start = whole.columns[0]
    return (part.columns[0] - start, part.columns[1] - start, whole.columns[1] - start, part.dims, part.block)
