"""Copies' part of the bound: slices, concatenations, stores and merges on the way through a pool.

Heads of the first head group lie on ``shards`` base ranks, a base rank's heads in ``groups`` head groups: a value that
comes from several ranks is concatenated, one that goes to several is sliced; a slice of whole rows is a view and free.
Each is a kernel of its own, in the order lowering issues them. Only what the rank of the first head group and KV block,
and the first base rank, cannot do without is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.bounds.attention import Cells, first_heads
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.shares import ceil_div
from planner.space import Question, Table
from simulator.costs.work import LSE_BYTES


@dataclass(frozen=True)
class Copies:
    """Seconds per cell, one layer: ``sliced``: one slice of the base's queries; ``pool``: what the first KV block's
    rank copies; of it for any KV block's rank: ``joined``: its queries, ``output``: the first slice of its output,
    ``outputs``: all of those and of its sums; ``base``: the base's joining and merging."""

    sliced: Array
    pool: Array
    joined: Array
    output: Array
    outputs: Array
    base: Array


def copies_of(question: Question, table: Table, rates: Rates, cells: Cells, queries: Array, keys: Array) -> Copies:
    """Base's query slices, pool's concatenations, store and output slices, base's merge."""
    row, head = cells.row, question.model.head_dim * rates.size
    group, shard = (first_heads(question, table[name].astype(np.int64)) for name in ("heads", "tensor"))
    shards = ceil_div(group.queries, shard.queries)[row]
    groups = ceil_div(shard.queries, group.queries)[row]
    narrow = np.minimum(group.queries, shard.queries)[row]
    several, split = shards > 1, table["keys"][row] > 1
    sliced = rates.memory("copy", np.where(groups > 1, 2 * queries * narrow * head, 0))
    joined = rates.memory("copy", np.where(several, 2 * queries * group.queries[row] * head, 0))
    # every slice is for another base rank, but the first may have more heads than the rest
    output = rates.memory("copy", np.where(several, 2 * queries * head, 0))
    sums = rates.memory("copy", np.where(several & split, 2 * queries * LSE_BYTES, 0))
    outputs = shards * (output + sums)
    parts = several & (ceil_div(group.keys, shard.keys)[row] > 1)  # a KV head that shards share comes from one of them
    arrived = parts & (table["streams"][row] == 1)
    pool = joined + outputs + rates.memory("copy", np.where(arrived, 4 * keys * group.keys[row] * head, 0))
    if question.phase == "decode":
        rows = 4 * queries * group.keys[row] * head
        pool = pool + rates.memory("copy", rows) + rates.memory("copy", np.where(parts, rows, 0))
    base = _at_base(question, table, rates, cells, queries, groups, shard.queries)
    return Copies(sliced, pool, joined, output, outputs, base)


def _at_base(
    question: Question,
    table: Table,
    rates: Rates,
    cells: Cells,
    queries: Array,
    groups: Numbers,
    heads: Numbers,
) -> Array:
    """The first base rank joins head groups and query blocks of every KV block, then merges the KV blocks."""
    row, head_dim = cells.row, question.model.head_dim
    tokens = cells.total(queries)
    keys = table["keys"].astype(np.int64)
    joined = (cells.total((queries > 0).astype(float)) > 1) | (groups[cells.first] > 1)
    width = tokens * heads
    once = rates.memory("copy", np.where(joined, 2 * width * head_dim * rates.size, 0))
    sums = rates.memory("copy", np.where(joined & (keys > 1), 2 * width * LSE_BYTES, 0))
    merge = width * ((keys + 1) * head_dim * rates.size + keys * LSE_BYTES)
    return np.asarray((keys * (once + sums) + rates.memory("merge", np.where(keys > 1, merge, 0)))[row])
