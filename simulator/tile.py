"""Tiles: which part of an activation a rank holds, and what two ranks have in common.

An activation of a step is a matrix of tokens × columns (columns are heads, KV heads or the one hidden vector), and a
column is cut in equal dimension slices where two-level partitioning asks for it.
A *block* says which token positions of every sequence group, a *tile* adds which columns and slices. Redistribution,
gathering and slicing are intersections of tiles: every scheme's communication comes out of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from simulator.placement import BlockRule
from simulator.workload import Sequences

Span = tuple[int, int]
"""Positions [start, stop) of a sequence."""

Block = tuple[tuple[Span, ...], ...]
"""For every sequence group of a batch: ascending, disjoint, non-empty spans."""

Batch = tuple[Sequences, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """Columns [first, last) of the tokens in ``block``, and of each of them the slices ``dims`` (whole: (0, 1)).
    A value's rows are packed group by group, sequence by sequence, span by span; slices lie in its last axis."""

    columns: Span
    block: Block
    dims: Span = (0, 1)

    @property
    def num_columns(self) -> int:
        return self.columns[1] - self.columns[0]

    @property
    def num_cells(self) -> int:
        """Column slices of a token."""
        return self.num_columns * (self.dims[1] - self.dims[0])


def num_tokens(block: Block, batch: Batch) -> int:
    """Rows of a value that holds ``block``."""
    total = 0
    for spans, group in zip(block, batch, strict=True):
        for start, stop in spans:
            total += group.count * (stop - start)
    return total


def new_tokens(batch: Batch) -> Block:
    """The block of every token a step computes."""
    return tuple(((group.past, group.total),) for group in batch)


def intersect_spans(left: tuple[Span, ...], right: tuple[Span, ...]) -> tuple[Span, ...]:
    """Positions in both, ascending."""
    found = []
    for a, b in left:
        for c, d in right:
            start, stop = a if a > c else c, b if b < d else d  # a third of the time of max and min
            if start < stop:
                found.append((start, stop))
    return tuple(found)


def subtract_spans(left: tuple[Span, ...], right: tuple[Span, ...]) -> tuple[Span, ...]:
    """Positions of ``left`` that are not in ``right``, ascending."""
    for cut_start, cut_stop in right:
        kept = []
        for start, stop in left:
            if start < min(stop, cut_start):
                kept.append((start, min(stop, cut_start)))
            if max(start, cut_stop) < stop:
                kept.append((max(start, cut_stop), stop))
        left = tuple(kept)
    return left


def merge_spans(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """The same positions with touching or overlapping spans joined."""
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)


def intersect(left: Block, right: Block) -> Block:
    if left == right:
        return left
    return tuple(
        [(a if a == b else intersect_spans(a, b)) if a and b else () for a, b in zip(left, right, strict=True)]
    )


def subtract(left: Block, right: Block) -> Block:
    return tuple(subtract_spans(a, b) for a, b in zip(left, right, strict=True))


def union(blocks: list[Block]) -> Block:
    return tuple(
        merge_spans(tuple(span for block in blocks for span in block[index])) for index in range(len(blocks[0]))
    )


def is_empty(block: Block) -> bool:
    return not any(block)


def intersect_columns(left: Span, right: Span) -> Span | None:
    (a, b), (c, d) = left, right
    start, stop = a if a > c else c, b if b < d else d
    return (start, stop) if start < stop else None


def intersect_tiles(left: Tile, right: Tile) -> Tile | None:
    """What both tiles hold, or None."""
    columns = intersect_columns(left.columns, right.columns)
    dims = intersect_columns(left.dims, right.dims)
    if columns is None or dims is None:
        return None
    block = intersect(left.block, right.block)
    return None if is_empty(block) else Tile(columns, block, dims)


def split_block(block: Block, parts: int) -> tuple[Block, ...]:
    """``block`` in ``parts`` consecutive pieces of equal size in every sequence; empty pieces are left out."""
    pieces: list[list[tuple[Span, ...]]] = [[] for _ in range(parts)]
    for spans in block:
        total = sum(stop - start for start, stop in spans)
        for index in range(parts):
            low, high = index * total // parts, (index + 1) * total // parts
            pieces[index].append(_take(spans, low, high))
    return tuple(tuple(piece) for piece in pieces if any(piece))


def _take(spans: tuple[Span, ...], low: int, high: int) -> tuple[Span, ...]:
    """The positions numbered [low, high) within ``spans``."""
    taken, seen = [], 0
    for start, stop in spans:
        begin, end = max(start, start + low - seen), min(stop, start + high - seen)
        if begin < end:
            taken.append((begin, end))
        seen += stop - start
    return tuple(taken)


def query_cuts(num: int, parts: int, rule: BlockRule, *, causal: bool, past: int = 0) -> tuple[tuple[Span, ...], ...]:
    """Positions [0, num) in ``parts`` blocks; one tuple of spans a block (empty if num < parts).

    contiguous: the documents' b = ceil(n/p); causal work is then up to 2 − 1/p times the mean.
    zigzag: 2p chunks, block i takes chunks p−1−i and p+i, so every pair sums to the same work.
    sqrt: contiguous cuts t_i = n·sqrt(i/p): causal work grows with t², so every block has n²/2p of it. On top of c
    cached tokens work grows with (c+t)² − c²: t_i = sqrt(c² + i/p·((c+n)² − c²)) − c.
    Without a causal mask work is even already and sqrt and zigzag become even contiguous cuts.
    """
    if rule == "contiguous":
        size = -(-num // parts)
        edges = [min(index * size, num) for index in range(parts + 1)]
    elif not causal:
        edges = [index * num // parts for index in range(parts + 1)]
    elif rule == "sqrt":
        whole = (past + num) ** 2 - past**2
        edges = [round((past**2 + index / parts * whole) ** 0.5 - past) for index in range(parts + 1)]
    else:
        chunk = [index * num // (2 * parts) for index in range(2 * parts + 1)]
        pairs = [(parts - 1 - index, parts + index) for index in range(parts)]
        return tuple(
            merge_spans(tuple((chunk[k], chunk[k + 1]) for k in pair if chunk[k] < chunk[k + 1])) for pair in pairs
        )
    return tuple(((a, b),) if a < b else () for a, b in pairwise(edges))


def query_blocks(batch: Batch, parts: int, rule: BlockRule, *, causal: bool) -> tuple[Block, ...]:
    """A step's new tokens in ``parts`` blocks, each sequence cut by the same rule."""
    cuts = [query_cuts(group.new, parts, rule, causal=causal, past=group.past) for group in batch]
    return tuple(
        tuple(
            tuple((group.past + start, group.past + stop) for start, stop in cut[index])
            for cut, group in zip(cuts, batch, strict=True)
        )
        for index in range(parts)
    )
