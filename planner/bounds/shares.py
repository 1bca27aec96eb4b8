"""Shares: how many sequences, queries and keys a rank of a candidate gets, vectorised as lowering deals them.

Everything is a column over candidates (or candidates × blocks). ``index`` is a micro-batch: 0 is the fullest, −1 the
emptiest. See ``simulator.groups``, ``simulator.tile.query_cuts``, ``simulator.lowering.chunks``: the same arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def ceil_div(total: npt.ArrayLike, parts: npt.ArrayLike) -> Numbers:
    return np.asarray(-(-np.asarray(total, dtype=np.int64) // np.asarray(parts, dtype=np.int64)))


@dataclass(frozen=True)
class Dealt:
    """A micro-batch's sequences: ``full_parts`` parts have ``full`` of them, ``other_parts`` parts ``other``."""

    full_parts: Numbers
    full: Numbers
    other_parts: Numbers
    other: Numbers

    @property
    def total(self) -> Numbers:
        return self.full_parts * self.full + self.other_parts * self.other


def deal(batch: int, parts: Numbers, micro_batches: Numbers, index: int) -> Dealt:
    """``even_split`` of the batch over parts, then of each part over micro-batches; micro-batch ``index`` of them."""
    full_parts = batch % parts
    full_size, other_size = batch // parts + 1, batch // parts
    number = index % micro_batches
    full = full_size // micro_batches + (number < full_size % micro_batches)
    other = other_size // micro_batches + (number < other_size % micro_batches)
    return Dealt(full_parts, np.where(full_parts > 0, full, 0), parts - full_parts, other)


def block_edges(tokens: int, blocks: Numbers, rule: Numbers, number: Numbers, *, causal: bool) -> tuple[Numbers, ...]:
    """Query spans (a1, b1), (a2, b2) of block ``number``; the second is empty but for zigzag."""
    size = ceil_div(tokens, blocks)
    contiguous = np.minimum(number * size, tokens), np.minimum((number + 1) * size, tokens)
    if not causal:
        even = number * tokens // blocks, (number + 1) * tokens // blocks
        pick = [np.where(rule == 0, c, e) for c, e in zip(contiguous, even, strict=True)]
        return pick[0], pick[1], np.zeros_like(pick[0]), np.zeros_like(pick[0])
    root = np.rint(tokens * (number / blocks) ** 0.5), np.rint(tokens * ((number + 1) / blocks) ** 0.5)
    low, high = blocks - 1 - number, blocks + number
    zigzag = [part * tokens // (2 * blocks) for part in (low, low + 1, high, high + 1)]
    touching = zigzag[1] == zigzag[2]
    first = np.choose(rule, [contiguous[0], zigzag[0], root[0].astype(np.int64)])
    last = np.choose(rule, [contiguous[1], np.where(touching, zigzag[3], zigzag[1]), root[1].astype(np.int64)])
    two = (rule == 1) & ~touching
    return first, last, np.where(two, zigzag[2], 0), np.where(two, zigzag[3], 0)


def largest_block(tokens: int, blocks: Numbers, rule: Numbers, *, causal: bool) -> Numbers:
    """Tokens that no block has more of."""
    even, halves = ceil_div(tokens, blocks), 2 * ceil_div(tokens, 2 * blocks)
    root = np.ceil(tokens / np.sqrt(blocks)).astype(np.int64) + 1
    return np.select([rule == 0, (rule == 1) | (not causal)], [even, halves], root)


def chunk_rows(
    span: tuple[Numbers, Numbers], keys: tuple[Numbers, Numbers], window: int, *, causal: bool
) -> tuple[tuple[Numbers, Numbers, int], ...]:
    """(queries, keys, causal) of the kernels that run queries [a, b) against keys [start, stop); 0 queries: none."""
    (a, b), (start, stop) = span, keys
    held = np.maximum(stop - start, 0)
    if not causal:
        return ((np.where(held > 0, b - a, 0), held, 0),)
    low, high = np.maximum(a, start), np.minimum(b, stop)
    inside = np.where(held > 0, np.maximum(high - low, 0), 0)
    reach = np.minimum(high - start, high - low + window - 1) if window else high - start
    after = np.where(held > 0, np.maximum(b - np.maximum(a, stop), 0), 0)
    return (inside, np.where(inside > 0, reach, 0), 1), (after, np.where(after > 0, held, 0), 0)
