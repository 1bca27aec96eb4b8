"""Unevenly dealt heads' part of the bound: every head group's own kernels on its own device; the slowest counts.

The sum over head groups (or the way back to the base) waits for all of them, so a layer takes at least its slowest
group, then the feed-forward of the first shard and the all-reduces. A group's rank is the one of the last query block
and the first KV block. Left out: all transfers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.bounds.attention import Heads, sequence_kernels
from planner.bounds.layer import (
    all_reduce_seconds,
    base_layer,
    dense_layer,
    end_seconds,
    gate_seconds,
    layer_kinds,
    micro_batches,
)
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.shares import Dealt, block_edges, chunk_rows
from planner.candidate import Scheme, Table
from planner.dealing import dealt_heads
from planner.placing import attending_ranks
from planner.question import Question
from simulator.cache_layout import cover, head_spans
from simulator.model import Layer


@dataclass(frozen=True)
class Grouped:
    """Candidates × stages × head groups, flattened: ``row`` the candidate, ``device`` its number; ``stage_first`` where
    a stage begins, ``row_first`` which of those is a candidate's first."""

    row: Numbers
    heads: Heads
    device: Numbers
    stage_first: Numbers
    row_first: Numbers

    def slowest(self, values: Array) -> Array:
        """Of the stage where the slowest group is fastest."""
        return np.asarray(np.minimum.reduceat(np.maximum.reduceat(values, self.stage_first), self.row_first))


def dealt_bound(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """One micro-batch through all layers; one group's attention of all of them."""
    devices = _devices(question, rates)
    grouped = _grouped(question, table, [gpu for gpu, _ in devices])
    joint = np.isin(table["scheme"], (Scheme.STATIC, Scheme.POOL, Scheme.JOINED))
    chain, busy = np.zeros(len(table)), np.zeros(len(grouped.row))
    for used, dealt, tokens in micro_batches(question, table, parts):
        through = np.where(joint, end_seconds(question, table, rates, tokens, dealt.total), 0.0)
        for layer, num in layer_kinds(question).items():
            groups = np.zeros(len(grouped.row))
            for number, (_, device) in enumerate(devices):
                own = _group_seconds(question, table, grouped, device, dealt, layer)
                groups = np.where(grouped.device == number, own, groups)
            slowest = grouped.slowest(groups)
            through = through + num * (slowest + np.where(joint, _rest(question, table, rates, tokens, layer), 0.0))
            busy = busy + used[grouped.row] * num * groups
        chain = np.maximum(chain, used * through)
    return np.maximum(chain, np.where(table["stages"] == 1, grouped.slowest(busy), 0.0))


def _devices(question: Question, rates: Rates) -> list[tuple[tuple[str, float], Rates]]:
    """((GPU, slowdown), its rates) of every kind of node."""
    kinds = dict.fromkeys((node.gpu, node.slowdown) for node in question.cluster.nodes)
    found = []
    for gpu, slowdown in kinds:
        nodes = tuple(node for node in rates.cluster.nodes if (node.gpu, node.slowdown) == (gpu, slowdown))[:1]
        found.append(((gpu, slowdown), replace(rates, cluster=rates.cluster.model_copy(update={"nodes": nodes}))))
    return found


def _grouped(question: Question, table: Table, devices: list[tuple[str, float]]) -> Grouped:
    places, group_size = question.cluster.rank_nodes(), question.model.heads_per_kv_head
    rows: list[int] = []
    heads, device = [], []
    stage_first: list[int] = []
    row_first = []
    for number, candidate in enumerate(table):
        row_first.append(len(stage_first))
        for ranks in attending_ranks(question, candidate):
            stage_first.append(len(rows))
            spans = head_spans(dealt_heads(question, candidate, ranks))
            size = len(ranks) // len(spans)
            last = size - int(candidate["keys"])
            for group, span in enumerate(spans):
                node = places[ranks[group * size + last]][2]
                first, stop = cover(span, group_size)
                num, keys = span[1] - span[0], stop - first
                even = (span[0] % group_size == 0 or keys == 1) and num % keys == 0
                rows.append(number)
                heads.append((num, keys, keys if even else num))
                device.append(devices.index((node.gpu, node.slowdown)))
    columns = np.array(heads, dtype=np.int64).T
    numbers = [np.array(values, dtype=np.int64) for values in (rows, device, stage_first, row_first)]
    return Grouped(numbers[0], Heads(columns[0], columns[1], columns[2]), numbers[1], numbers[2], numbers[3])


def _group_seconds(
    question: Question, table: Table, grouped: Grouped, rates: Rates, dealt: Dealt, layer: Layer
) -> Array:
    """Attention of one group's rank; where that rank projects too, its projections and its part of W_O."""
    wide, row, heads = table[grouped.row], grouped.row, grouped.heads
    if question.phase == "decode":
        attention, tokens = _decode(question, wide, heads, rates, _pick(dealt, row), layer)
    else:
        attention, tokens = _prefill(question, wide, heads, rates, _pick(dealt, row), layer)
    width = (heads.queries + 2 * heads.keys) * question.model.head_dim
    projected = rates.gemm(tokens, width, question.model.hidden_size)
    own = np.isin(wide["scheme"], (Scheme.STATIC, Scheme.CONTEXT, Scheme.SEPARATED)) & (wide["keys"] == 1)
    out = rates.gemm(tokens, question.model.hidden_size, heads.queries * question.model.head_dim)
    out = np.where(np.isin(wide["scheme"], (Scheme.STATIC, Scheme.CONTEXT)), out, 0.0)
    return np.asarray(attention + np.where(own, projected + out, 0.0))


def _pick(dealt: Dealt, row: Numbers) -> Dealt:
    return Dealt(dealt.full_parts[row], dealt.full[row], dealt.other_parts[row], dealt.other[row])


def _prefill(
    question: Question, wide: Table, heads: Heads, rates: Rates, dealt: Dealt, layer: Layer
) -> tuple[Array, Numbers]:
    """(seconds, query tokens) of the last query block against the first KV block."""
    tokens, model = question.tokens, question.model
    queries, keys, rule = (wide[name].astype(np.int64) for name in ("queries", "keys", "rule"))
    edges = block_edges(tokens, queries, rule, queries - 1, causal=model.causal)
    end = np.maximum(edges[1], edges[3]) if model.causal else np.full(len(wide), tokens)
    begin = np.maximum(edges[0] - layer.window + 1, 0) if layer.window else np.zeros(len(wide), dtype=np.int64)
    visible = begin, np.minimum(end, tokens // keys)
    plain = (wide["streams"] == 1) & (wide["ring"] == 0)
    number = np.arange(len(wide))
    spans = (edges[0], edges[1]), (edges[2], edges[3])
    chunks = [chunk for span in spans for chunk in chunk_rows(span, visible, layer.window, causal=model.causal)]
    exact, pieces = (
        sequence_kernels(question, kind, heads, number, dealt, chunks, layer.window)
        for kind in (rates, rates.as_roofline())
    )
    seconds = np.where(plain, exact, pieces)
    return seconds, dealt.total * (edges[1] - edges[0] + edges[3] - edges[2])


def _decode(
    question: Question, wide: Table, heads: Heads, rates: Rates, dealt: Dealt, layer: Layer
) -> tuple[Array, Numbers]:
    """(seconds, sequences) of the last part of the sequences, or of all of them where they are not dealt to ranks."""
    rows = question.tokens // wide["keys"].astype(np.int64) + 1
    rows = np.minimum(rows, layer.window) if layer.window else rows
    cut = wide["queries"] > 1
    total = np.zeros(len(wide))
    for parts, count in ((dealt.full_parts, dealt.full), (dealt.other_parts, dealt.other)):
        columns = (np.where(parts > 0, count, 0), rows, heads.queries, heads.kernel_keys, question.model.head_dim, 0)
        total += np.where(cut, 0, parts) * rates.decode(columns)
    last = np.where(dealt.other_parts > 0, dealt.other, dealt.full)
    columns = (last, rows, heads.queries, heads.kernel_keys, question.model.head_dim, 0)
    return np.where(cut, rates.decode(columns), total), np.where(cut, last, dealt.total)


def _rest(question: Question, table: Table, rates: Rates, tokens: Numbers, layer: Layer) -> Array:
    """Both all-reduces, and what does not depend on the heads of this candidate."""
    size, hidden = rates.size, question.model.hidden_size
    row = tokens * hidden * size
    reduces = 2 * all_reduce_seconds(question, table, rates, row.astype(float))
    pooled = np.isin(table["scheme"], (Scheme.POOL, Scheme.JOINED))
    base = base_layer(question, table, rates, tokens, layer).compute
    tensor = table["tensor"].astype(np.int64)
    fed = gate_seconds(question, rates, tokens) if layer.routed else dense_layer(question, rates, tensor, tokens)
    fed = fed + 2 * rates.memory("norm", 2 * row) + 2 * rates.memory("add", 3 * row)
    return np.asarray(reduces + np.where(pooled, base, fed))
