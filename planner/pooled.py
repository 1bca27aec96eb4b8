"""Pooled: FA Pool candidates, hybrids included, as columns: on thousands of GPUs there are a million of them.

A pool's grid depends on how many ranks attend and on nothing else, so its columns are made once for each such number
and repeated for every base.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from planner.candidate import ROW, Scheme, Table, rows
from planner.counts import cuts, is_allotment, tensor_degrees
from planner.question import Question

FINE_POOL_RANKS = 64  # every pool size up to here; beyond, whole nodes
GRID = ("heads", "queries", "keys", "rule", "micro_batches", "streams", "multicast")
Columns = npt.NDArray[np.int32]


def bases(question: Question) -> tuple[int, ...]:
    """Ranks of a base."""
    found = tensor_degrees(question) if question.base_gpus is None else (question.base_gpus,)
    return tuple(base for base in found if base <= question.model.num_attention_heads)


def pooled(question: Question, order: int, *, joined: bool, only: int | None = None) -> Table:
    """Every base (or ``only`` one) × pool size × grid × cut × multicast, in this order. ``joined``: the base attends
    too."""
    scheme = Scheme.JOINED if joined else Scheme.POOL
    found = [np.empty(0, dtype=ROW)]
    block = cache(lambda ranks: _block(question, ranks))
    for base in bases(question) if only is None else (only,):
        blocks = [block(pool + base if joined else pool) for pool in pool_sizes(question, base)]
        if blocks:
            columns = dict(zip(GRID, np.concatenate(blocks).T, strict=True))
            found.append(rows(scheme, len(columns["heads"]), order=order, tensor=base, **columns))
    return np.concatenate(found)


def pool_counts(question: Question, *, joined: bool) -> dict[int, int]:
    """How many candidates each base has in one order of the ranks."""
    count = cache(lambda ranks: len(_block(question, ranks)))
    return {
        base: sum(count(pool + base if joined else pool) for pool in pool_sizes(question, base))
        for base in bases(question)
    }


def pool_sizes(question: Question, base: int) -> tuple[int, ...]:
    """Pool GPUs beside a base."""
    most = question.max_gpus - base
    fine = range(1, min(most, FINE_POOL_RANKS) + 1)
    sizes = (*fine, *range(FINE_POOL_RANKS + question.node_gpus, most + 1, question.node_gpus))
    return tuple(size for size in sizes if is_allotment(question, size))


def _block(question: Question, ranks: int) -> Columns:
    """[candidates, GRID] of ``ranks`` attending ranks: every grid with all its cuts, each with all its multicasts."""
    grid = grids(question, ranks)
    kinds = 4 * (grid[:, 1] > 1) + 2 * (grid[:, 2] == 1) + (grid[:, 1] * grid[:, 2] > 1)
    options = {int(kind): _options(question, grid[kinds == kind][0]) for kind in np.unique(kinds)}
    count = np.array([len(options[int(kind)]) for kind in kinds], dtype=np.int64)
    chosen = [options[int(kind)] for kind in kinds]
    return np.hstack((np.repeat(grid, count, axis=0), np.concatenate([np.empty((0, 4), dtype=np.int32), *chosen])))


def _options(question: Question, grid: Columns) -> Columns:
    """[options, (rule, micro-batches, streams, multicast)] of a grid."""
    _, queries, keys = (int(size) for size in grid)
    casts = _multicasts(question, queries * keys)
    return np.array([(*cut, cast) for cut in cuts(question, queries, keys) for cast in casts], dtype=np.int32)


def grids(question: Question, ranks: int) -> Columns:
    """[grids, (head groups, query blocks, KV blocks)] whose product is ``ranks``, head groups first."""
    windowed = any(layer.window for layer in question.model.layers)
    num_heads, found = question.model.num_attention_heads, [np.empty((0, 3), dtype=np.int32)]
    most = min(question.tokens, question.batch) if question.phase == "decode" else question.tokens
    for heads in range(1, min(ranks, num_heads) + 1):
        if ranks % heads or (num_heads % heads and not question.fine):
            continue
        blocks = np.arange(1, ranks // heads + 1, dtype=np.int32)
        queries = blocks[(ranks // heads) % blocks == 0]
        keys = ranks // heads // queries
        fits = (queries <= most) & (keys <= (1 if windowed else question.tokens))
        found.append(np.stack((np.full_like(queries, heads), queries, keys), axis=1)[fits])
    return np.concatenate(found)


def _multicasts(question: Question, receivers: int) -> tuple[int, ...]:
    """Tree and chain differ from direct where several ranks want the same heads' keys, on other nodes."""
    if question.phase == "decode" or receivers == 1 or question.max_gpus <= question.node_gpus:
        return (0,)
    return (0, 1, 2)
