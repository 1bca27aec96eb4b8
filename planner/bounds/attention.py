"""Attention's part of the bound: seconds and bytes of every query block of a candidate's first KV block.

Rows are candidates × query blocks ("cells"), flattened. Heads are those of the first head group, which is the
largest; of the KV blocks the first, which every later query block sees whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.shares import Dealt, block_edges, ceil_div, chunk_rows, deal
from planner.space import Question, Table
from simulator.model import Layer


@dataclass(frozen=True)
class Cells:
    """Candidates × query blocks: ``row`` is the candidate, ``block`` its query block; ``first`` where a row begins.
    ``whole`` False: one block of each stands for all, so the least over them is not known (0)."""

    row: Numbers
    block: Numbers
    first: Numbers
    whole: bool = True

    def most(self, values: Array) -> Array:
        return np.asarray(np.maximum.reduceat(values, self.first))

    def least(self, values: Array) -> Array:
        return np.asarray(np.minimum.reduceat(values, self.first) if self.whole else np.zeros(len(self.first)))

    def total(self, values: Array) -> Array:
        return np.asarray(np.add.reduceat(values, self.first))


def cells_of(queries: Numbers, *, thin: bool = False) -> Cells:
    """One cell a query block; ``thin``: only each candidate's last."""
    if thin:
        every = np.arange(len(queries))
        return Cells(every, queries - 1, every, whole=False)
    first = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(queries)[:-1])).astype(np.int64)
    row = np.repeat(np.arange(len(queries)), queries)
    return Cells(row, np.arange(len(row)) - first[row], first)


def end_cells(question: Question, replicas: Numbers, rule: Numbers) -> Cells:
    """Two cells a candidate: its first replica and the last that has tokens."""
    last = replicas - 1
    if question.phase == "prefill":
        filled = ceil_div(question.tokens, ceil_div(question.tokens, replicas))
        last = np.where(rule == 0, np.minimum(filled - 1, last), last)
    block = np.stack((np.zeros_like(last), last), axis=1).reshape(-1)
    first = 2 * np.arange(len(replicas))
    return Cells(np.repeat(np.arange(len(replicas)), 2), block, first, whole=False)


@dataclass(frozen=True)
class Heads:
    """Query and KV heads of the largest head group, as held and as the kernel sees them."""

    queries: Numbers
    keys: Numbers
    kernel_keys: Numbers


def first_heads(question: Question, groups: Numbers) -> Heads:
    """The first of ``groups`` even head groups (the largest). Repeated KV heads where they do not divide."""
    queries = ceil_div(question.model.num_attention_heads, groups)
    keys = ceil_div(queries, question.model.heads_per_kv_head)
    return Heads(queries, keys, np.where(queries % keys == 0, keys, queries))


def parts_of(table: Table, parts: int | None) -> Numbers:
    """Parts sequences are dealt into: the decoder's, or the candidate's own query blocks or replicas."""
    own = np.maximum(table["queries"], table["replicas"]).astype(np.int64)
    return own if parts is None else np.full(len(table), parts, dtype=np.int64)


@dataclass(frozen=True)
class PrefillWork:
    """Per cell, one layer and micro-batch: seconds of attention, of it the last piece of keys; in how many pieces keys
    are attended to; query and key tokens of all sequences."""

    seconds: Array
    last_s: Array
    pieces: Numbers
    queries: Array
    keys: Array


def prefill_cells(
    question: Question, table: Table, cells: Cells, layer: Layer, rates: Rates, dealt: Dealt
) -> PrefillWork:
    """One layer's attention of every query block on the first KV block's keys."""
    model, tokens = question.model, question.tokens
    column = {name: table[name].astype(np.int64)[cells.row] for name in ("queries", "keys", "rule", "streams")}
    edges = block_edges(tokens, column["queries"], column["rule"], cells.block, causal=model.causal)
    heads = first_heads(question, table["heads"].astype(np.int64))
    end = np.maximum(edges[1], edges[3]) if model.causal else np.full(len(cells.row), tokens)
    begin = np.maximum(edges[0] - layer.window + 1, 0) if layer.window else np.zeros(len(cells.row), dtype=np.int64)
    visible = begin, np.minimum(end, tokens // column["keys"])
    seconds, last_s = np.zeros((2, len(cells.row)))
    pieces = np.zeros(len(cells.row), dtype=np.int64)
    most = int(column["streams"].max()) if not layer.window else 1
    for piece in range(most):
        used = piece < column["streams"]
        low = np.where(used, piece * tokens // column["streams"], 0)
        high = np.where(used, (piece + 1) * tokens // column["streams"], 0)
        keys = np.maximum(visible[0], low), np.minimum(visible[1], high)
        keys = visible if most == 1 else keys
        spans = (edges[0], edges[1]), (edges[2], edges[3])
        chunks = [chunk for span in spans for chunk in chunk_rows(span, keys, layer.window, causal=model.causal)]
        of_piece = sequence_kernels(question, rates, heads, cells.row, dealt, chunks, layer.window)
        seconds, pieces = seconds + of_piece, pieces + (keys[1] > keys[0])
        last_s = np.where(keys[1] > keys[0], of_piece, last_s)
    num = dealt.total[cells.row]
    query_tokens = num * (edges[1] - edges[0] + edges[3] - edges[2])
    key_tokens = num * np.maximum(visible[1] - visible[0], 0)
    return PrefillWork(seconds, last_s, pieces, query_tokens.astype(float), key_tokens.astype(float))


def sequence_kernels(
    question: Question,
    rates: Rates,
    heads: Heads,
    row: Numbers,
    dealt: Dealt,
    chunks: Sequence[tuple[Numbers, Numbers, Numbers | int]],
    window: int,
) -> Array:
    """Of all chunks (queries, keys, causal) of cells of candidates ``row``: both sizes of part, their number times the
    kernels of their sequences."""
    total = np.zeros(len(row))
    chunks = [chunk for chunk in chunks if chunk[0].any()]
    if not chunks:
        return total
    queries, keys, causal = (np.stack([row * 0 + chunk[side] for chunk in chunks]) for side in (0, 1, 2))
    for parts, count in ((dealt.full_parts, dealt.full), (dealt.other_parts, dealt.other)):
        if not (parts * count).any():
            continue
        columns = (
            count[row], queries, keys, heads.queries[row], heads.kernel_keys[row], question.model.head_dim, causal,
            np.where(window < keys, window, 0),
        )  # fmt: skip
        total += parts[row] * rates.prefill(columns).sum(axis=0)
    return total


def decode_seconds(
    question: Question, table: Table, layer: Layer, rates: Rates, sequences: Numbers, *, stored: int = 1
) -> tuple[Array, Numbers]:
    """Seconds of one layer's decode attention of ``sequences`` on the first KV block, and its cached rows. ``stored``:
    new tokens among them (the first block keeps it)."""
    heads = first_heads(question, table["heads"].astype(np.int64))
    rows = question.tokens // table["keys"].astype(np.int64) + stored
    seen = np.minimum(rows, layer.window) if layer.window else rows
    columns = (sequences, seen, heads.queries, heads.kernel_keys, question.model.head_dim, 0)
    return rates.decode(columns), rows


def whole_decode(question: Question, table: Table, layer: Layer, rates: Rates, dealt: Dealt) -> Array:
    """Seconds of one layer's decode attention of all sequences of a micro-batch, part by part."""
    total = np.zeros(len(table))
    for parts, count in ((dealt.full_parts, dealt.full), (dealt.other_parts, dealt.other)):
        total += parts * decode_seconds(question, table, layer, rates, np.where(parts > 0, count, 0))[0]
    return total


def whole_attention(question: Question, table: Table, layer: Layer, rates: Rates, dealt: Dealt) -> Array:
    """Seconds of one layer's attention where only heads are cut."""
    if question.phase == "decode":
        return whole_decode(question, table, layer, rates, dealt)
    cells = cells_of(np.ones(len(table), dtype=np.int64))
    return prefill_cells(question, table, cells, layer, rates, dealt).seconds


def micro_batch(question: Question, table: Table, parts: Numbers, index: int) -> Dealt:
    """Micro-batch ``index`` of every candidate."""
    return deal(question.batch, parts, table["micro_batches"].astype(np.int64), index)
