"""Context parallelism's part of the bound: replicas that each hold a share of the tokens and all of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.bounds.attention import (
    Cells,
    PrefillWork,
    cells_of,
    decode_seconds,
    end_cells,
    first_heads,
    prefill_cells,
)
from planner.bounds.dispatch import dispatched_seconds
from planner.bounds.layer import (
    base_layer,
    dense_layer,
    embed_seconds,
    head_seconds,
    layer_kinds,
    micro_batches,
    store,
)
from planner.bounds.network import Network, network_of
from planner.bounds.race import LAYERS, REPLICAS, Leg, needed_tokens, run_leg
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.shares import Dealt, block_edges, largest_block
from planner.space import Question, Table
from simulator.costs.work import LSE_BYTES
from simulator.model import Layer


def context_bound(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """Every replica's own stream; the race of all; the busiest NIC. Thin: two replicas' streams, rings' too, as far as
    they are those of replicas that gather.

    A rank need not be done with the layer before to receive its keys, but no rank sends before it has projected them:
    the earliest end of a layer, F, grows at least by the least projection + the least, over ranks, of (keys' arrival,
    attention, the rest of the layer).
    """
    network, replicas = network_of(question, rates, table), table["replicas"].astype(np.int64)
    cells = end_cells(question, replicas, table["rule"]) if rates.thin else cells_of(replicas)
    chain, totals, wide = np.zeros(len(table)), np.zeros((3, len(cells.row))), table[cells.row]
    for used, dealt, _ in micro_batches(question, table, parts):
        tokens = replica_tokens(question, table, cells, dealt)
        ends = cells.least(embed_seconds(question, wide, rates, tokens))
        head = head_seconds(question, wide, rates, last_tokens(question, wide, cells, dealt, tokens))
        own, raced, works = head.copy(), ends, {}
        for layer, num in layer_kinds(question).items():
            work = works[layer] = _replica_layer(question, table, rates, network, cells, dealt, layer, tokens)
            own = own + num * (work.before + work.attention + work.after)
            hop_s = np.where(work.inbound > 0, network.latency_s, 0.0)
            arrives = hop_s + work.inbound + np.where(wide["streams"] > 1, work.last, work.attention)
            rest = np.maximum(arrives, work.attention) + work.after
            raced = raced + num * (cells.least(work.before) + cells.least(rest))
            totals += used[cells.row] * num * np.stack((work.compute, work.inbound, work.outbound))
        if question.phase == "prefill" and cells.whole and not rates.solo:
            raced = np.maximum(raced, ends + _raced(question, table, rates, network, cells, dealt, works, head))
        chain = np.maximum(chain, used * np.maximum(ends + cells.most(own), raced))
    return np.maximum(chain, cells.most(totals.max(axis=0)))


def _raced(
    question: Question,
    table: Table,
    rates: Rates,
    network: Network,
    cells: Cells,
    dealt: Dealt,
    works: dict[Layer, ReplicaWork],
    head: Array,
) -> Array:
    """Candidates with equally many replicas run their first layers together (``race``)."""
    raced = np.zeros(len(table))
    kinds = set(question.model.layers)
    if any(layer.window for layer in kinds):
        return raced
    for replicas in np.unique(table["replicas"][table["replicas"] <= REPLICAS]):
        rows = np.flatnonzero(table["replicas"] == replicas)
        at = cells.first[rows][:, None] + np.arange(replicas)
        some, sequences = table[rows], dealt.total[rows]
        legs = {kind: _leg(question, some, rates, network, sequences, works[kind], at) for kind in kinds}
        ends = np.zeros(at.shape)
        for layer in question.model.layers[:LAYERS]:
            ends = run_leg(ends, legs[layer])
        rest = sum((_least_layer(works[layer], at) for layer in question.model.layers[LAYERS:]), np.zeros(len(rows)))
        raced[rows] = np.where(rest > 0, ends.min(axis=1) + rest, (ends + head[at]).max(axis=1))
    return raced


def _least_layer(work: ReplicaWork, at: Numbers) -> Array:
    return np.asarray((work.before + work.attention + work.after)[at].min(axis=1))


def _leg(
    question: Question, table: Table, rates: Rates, network: Network, sequences: Numbers, work: ReplicaWork, at: Numbers
) -> Leg:
    replicas = np.full(at.shape, at.shape[1], dtype=np.int64)
    number = np.broadcast_to(np.arange(at.shape[1]), at.shape)
    rule = np.broadcast_to(table["rule"].astype(np.int64)[:, None], at.shape)
    edges = block_edges(question.tokens, replicas, rule, number, causal=question.model.causal)
    tokens = needed_tokens((edges[0], edges[1], edges[2], edges[3]), causal=question.model.causal)
    home = number // network.near(question, table)[:, None]
    away = (home[:, :, None] != home[:, None, :]) & (network.latency_s > 0)
    held = first_heads(question, table["heads"].astype(np.int64)).keys
    row_s = sequences * 2 * held * question.model.head_dim * rates.size / network.nic_bytes_per_s
    others = ~np.eye(at.shape[1], dtype=np.bool_)
    return Leg(
        work.before[at],
        work.attention[at],
        work.last[at],
        work.after[at],
        np.where(away, tokens * row_s[:, None, None], 0.0),
        (others & (tokens > 0)).astype(float),
        np.where(away, network.latency_s, 0.0),
        (table["streams"] > 1).astype(float),
    )


def replica_tokens(question: Question, table: Table, cells: Cells, dealt: Dealt) -> Numbers:
    """Tokens of every replica: its query block of all sequences, or all of its sequences."""
    if question.phase == "decode":
        full = cells.block < dealt.full_parts[cells.row]
        return np.where(full, dealt.full[cells.row], dealt.other[cells.row])
    rule, replicas = (table[name].astype(np.int64)[cells.row] for name in ("rule", "replicas"))
    edges = block_edges(question.tokens, replicas, rule, cells.block, causal=question.model.causal)
    return dealt.total[cells.row] * (edges[1] - edges[0] + edges[3] - edges[2])


def last_tokens(question: Question, wide: Table, cells: Cells, dealt: Dealt, tokens: Numbers) -> Numbers:
    """Sequences whose last token a replica has, as far as known: decoding all of its own; prefilling, the last replica
    all of them, where it has tokens."""
    if question.phase == "decode":
        return tokens
    last = (cells.block == wide["replicas"] - 1) & (tokens > 0)
    return np.asarray(np.where(last, dealt.total[cells.row], 0))


@dataclass(frozen=True)
class ReplicaWork:
    """Per replica, one layer and micro-batch: seconds before, of and after attention (after: with both all-reduces), of
    the last piece of it, of kernels alone, and for its keys' way in and out of its node."""

    before: Array
    attention: Array
    last: Array
    after: Array
    compute: Array
    inbound: Array
    outbound: Array


def _replica_layer(
    question: Question,
    table: Table,
    rates: Rates,
    network: Network,
    cells: Cells,
    dealt: Dealt,
    layer: Layer,
    tokens: Numbers,
) -> ReplicaWork:
    """Routed layers of replicas exchange tokens (tensor degree 1): each computes its experts on all of them."""
    wide = table[cells.row]
    base = base_layer(question, wide, rates, tokens, Layer(window=layer.window))
    after = base.after
    if layer.routed:
        most = np.maximum.reduceat(tokens, cells.first)[cells.row]
        after = after - dense_layer(question, rates, wide["tensor"].astype(np.int64), tokens)
        after = after + dispatched_seconds(question, rates, tokens, wide["replicas"].astype(np.int64), most)
    inbound, outbound, last = np.zeros((3, len(tokens)))
    if question.phase == "decode":
        attention = decode_seconds(question, wide, layer, rates, tokens)[0] + store(question, wide, rates, tokens)
    else:
        work = prefill_cells(question, table, cells, layer, rates, dealt)
        joined, merged = _piece_copies(question, wide, rates, cells, work)
        attention, last = work.seconds + joined, work.last_s
        after = after + merged
        held = _most_queries(question, table, cells, dealt, work.queries)
        inbound = network.keys_seconds(question, table, rates, work.keys, held, cells)
        inbound = np.where(wide["ring"] == 0, inbound, 0.0)
        first = (cells.block == 0) & (wide["ring"] == 0) & (not layer.window)
        outbound = np.where(first, network.sent_seconds(question, table, rates, work.queries, cells), 0.0)
    used = tokens > 0
    compute = np.where(used, base.before + after + attention, 0.0)
    after = np.where(used, after + 2 * base.reduce, 0.0)
    return ReplicaWork(np.where(used, base.before, 0.0), attention, last, after, compute, inbound, outbound)


def _most_queries(question: Question, table: Table, cells: Cells, dealt: Dealt, queries: Array) -> Array:
    """Query tokens that no replica of a candidate has more of."""
    if cells.whole:
        return cells.most(queries)
    replicas, rule = (table[name].astype(np.int64) for name in ("replicas", "rule"))
    block = largest_block(question.tokens, replicas, rule, causal=question.model.causal)
    return (dealt.total * block).astype(np.float64)


def _piece_copies(
    question: Question, wide: Table, rates: Rates, cells: Cells, work: PrefillWork
) -> tuple[Array, Array]:
    """Seconds to join the keys of several replicas, where they come as one piece, and to merge what pieces gave."""
    heads = first_heads(question, wide["heads"].astype(np.int64))
    num_bytes = 4 * work.keys * heads.keys * question.model.head_dim * rates.size
    foreign = (wide["streams"] == 1) & (wide["ring"] == 0) & (work.keys > work.queries)
    joined = rates.memory("copy", np.where(foreign, num_bytes, 0))
    parts = work.pieces
    row = (parts + 1) * question.model.head_dim * rates.size + parts * LSE_BYTES
    return joined, rates.memory("merge", np.where(parts > 1, work.queries * heads.queries * row, 0))
