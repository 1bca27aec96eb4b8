"""Ring context parallelism's part of the bound: the replicas' race, the last one's kernels, keys that pass a border.

The last replica attends to every block (each step a kernel a query span), so its own stream is a chain; where a whole
replica lies on other nodes than the next, all blocks but one pass those NICs in every layer. Window layers gather.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from planner.bounds.attention import Cells, cells_of, first_heads, prefill_cells, sequence_kernels
from planner.bounds.context import last_tokens, replica_tokens
from planner.bounds.dispatch import dispatched_seconds
from planner.bounds.layer import (
    Base,
    base_layer,
    dense_layer,
    distinct_pairs,
    embed_seconds,
    end_seconds,
    head_seconds,
    layer_kinds,
    micro_batches,
)
from planner.bounds.network import network_of
from planner.bounds.race import LAYERS, REPLICAS
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.ring_race import Rounds, run_rounds
from planner.bounds.shares import Dealt, block_edges, largest_block
from planner.candidate import Table
from planner.question import Question
from simulator.costs.work import LSE_BYTES
from simulator.model import Layer

Edges = tuple[Numbers, ...]
Kind = TypeVar("Kind", bound=np.generic)


def ring_bound(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """The last replica's chain of one micro-batch; its kernels of all; the busiest border. The race of all replicas
    where kernels are predicted: a roofline's bound is only the first of two."""
    replicas = table["replicas"].astype(np.int64)
    last = _edges(question, table, replicas - 1)
    rate = _border_rates(question, table, rates)
    chain, compute, network = np.zeros((3, len(table)))
    for used, dealt, _ in micro_batches(question, table, parts):
        tokens = dealt.total * (last[1] - last[0] + last[3] - last[2])
        through = used * end_seconds(question, table, rates, tokens, 0 * tokens)
        for layer, num in layer_kinds(question).items():
            base = _base(question, table, rates, tokens, layer)
            attention = _attention(question, table, rates, dealt, layer, last)
            kernels = np.where(tokens > 0, base.compute + attention, 0.0)
            through = through + used * num * (kernels + np.where(tokens > 0, 2 * base.reduce, 0.0))
            compute = compute + used * num * kernels
            if not layer.window:
                network = network + used * num * _border_seconds(question, table, rates, dealt.total, rate)
        chain = np.maximum(chain, through)
    if not (rates.roofline or rates.solo) and not any(layer.window for layer in question.model.layers):
        chain = np.maximum(chain, _raced(question, table, rates, parts))
    return np.maximum(chain, np.maximum(compute, network))


def border_bound(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """The busiest border alone."""
    rate = _border_rates(question, table, rates)
    passing = sum(num for layer, num in layer_kinds(question).items() if not layer.window)
    each = (
        used * _border_seconds(question, table, rates, dealt.total, rate)
        for used, dealt, _ in micro_batches(question, table, parts)
    )
    return np.asarray(passing * sum(each, np.zeros(len(table))))


def _edges(question: Question, table: Table, number: Numbers) -> Edges:
    replicas, rule = table["replicas"].astype(np.int64), table["rule"].astype(np.int64)
    return block_edges(question.tokens, replicas, rule, number, causal=question.model.causal)


def _base(question: Question, table: Table, rates: Rates, tokens: Numbers, layer: Layer) -> Base:
    """Routed layers of replicas exchange tokens: each computes its experts on all of them."""
    base = base_layer(question, table, rates, tokens, Layer(window=layer.window))
    if not layer.routed:
        return base
    dense = dense_layer(question, rates, table["tensor"].astype(np.int64), tokens)
    routed = dispatched_seconds(question, rates, tokens, table["replicas"].astype(np.int64), tokens)
    return Base(base.before, base.after - dense + routed, base.reduce)


def _attention(question: Question, table: Table, rates: Rates, dealt: Dealt, layer: Layer, last: Edges) -> Array:
    """The last replica's kernels, step by step, and the merge of what they give."""
    replicas = table["replicas"].astype(np.int64)
    cells = cells_of(replicas)
    if layer.window:
        seconds = prefill_cells(question, table, cells, layer, rates, dealt).seconds
        return np.asarray(seconds[cells.first + replicas - 1])
    turns = _turns(question, table, rates, dealt, cells.row, (replicas - 1)[cells.row], cells.block)
    merged = np.add.reduceat(turns.sees.astype(np.int64), cells.first)
    width = dealt.total * (last[1] - last[0] + last[3] - last[2])
    return np.asarray(cells.total(turns.seconds) + _merge_seconds(question, table, rates, width, merged))


@dataclass(frozen=True)
class _Turns:
    """Replicas' steps, flat: seconds of attention; whether the queries see any of the block."""

    seconds: Array
    sees: npt.NDArray[np.bool_]


def _turns(
    question: Question, table: Table, rates: Rates, dealt: Dealt, row: Numbers, replica: Numbers, step: Numbers
) -> _Turns:
    """Attention of ``replica`` of candidate ``row`` on the block that ``step`` brings."""
    heads, wide = first_heads(question, table["heads"].astype(np.int64)), table[row]
    held = _edges(question, wide, (replica - step) % wide["replicas"].astype(np.int64))
    chunks = _chunks(_edges(question, wide, replica), held, step == 0, causal=question.model.causal)
    sees = np.logical_or.reduce([(keys > 0) & (queries > 0) for queries, keys, _ in chunks])
    used = [(np.where(keys > 0, queries, 0), keys, causal) for queries, keys, causal in chunks]
    seconds = sequence_kernels(question, rates, heads, row, dealt, used, 0)
    return _Turns(seconds, sees)


def _merge_seconds(question: Question, table: Table, rates: Rates, tokens: Numbers, merged: Numbers) -> Array:
    """Of ``merged`` partial outputs of ``tokens`` queries."""
    heads = first_heads(question, table["heads"].astype(np.int64))
    row = (merged + 1) * question.model.head_dim * rates.size + merged * LSE_BYTES
    return rates.memory("merge", np.where(merged > 1, tokens * heads.queries * row, 0))


def _raced(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """Candidates run their first layers side by side (``ring_race``), a micro-batch each."""
    raced = np.zeros(len(table))
    rows = np.flatnonzero(table["replicas"] <= REPLICAS)
    for used, dealt, _ in micro_batches(question, table[rows], parts) if len(rows) else ():
        raced[rows] = np.maximum(raced[rows], used * _through(question, table[rows], rates, dealt))
    return raced


def _through(question: Question, table: Table, rates: Rates, dealt: Dealt) -> Array:
    """Seconds of one micro-batch through all layers and the last replica's logits."""
    cells = cells_of(table["replicas"].astype(np.int64))
    wide = table[cells.row]
    tokens = replica_tokens(question, table, cells, dealt)
    head = head_seconds(question, wide, rates, last_tokens(question, wide, cells, dealt, tokens))
    ends = embed_seconds(question, wide, rates, tokens)
    rounds = {
        layer: _rounds(question, table, rates, dealt, layer, cells, tokens) for layer in set(question.model.layers)
    }
    for layer in question.model.layers[:LAYERS]:
        ends = run_rounds(ends, rounds[layer])
    rest = sum((_least_layer(rounds[layer], cells) for layer in question.model.layers[LAYERS:]), np.zeros(len(table)))
    first, last = np.minimum.reduceat(ends, cells.first), np.maximum.reduceat(ends + head, cells.first)
    return np.asarray(np.where(rest > 0, first + rest, last))


def _least_layer(rounds: Rounds, cells: Cells) -> Array:
    seconds = rounds.before + rounds.attention.sum(axis=1) + rounds.after
    return np.asarray(np.minimum.reduceat(seconds, cells.first))


def _rounds(
    question: Question, table: Table, rates: Rates, dealt: Dealt, layer: Layer, cells: Cells, tokens: Numbers
) -> Rounds:
    wide = table[cells.row]
    replicas = wide["replicas"].astype(np.int64)
    every = np.arange(len(tokens))
    cell, step = np.repeat(every, replicas), cells_of(replicas).block
    row, replica = cells.row[cell], cells.block[cell]
    turns = _turns(question, table, rates, dealt, row, replica, step)
    base = _base(question, wide, rates, tokens, layer)
    merged = np.bincount(cell, weights=turns.sees, minlength=len(tokens)).astype(np.int64)
    after = base.after + 2 * base.reduce + _merge_seconds(question, wide, rates, tokens, merged)
    brought = tokens[cells.first[row] + (replica - step) % replicas[cell]]
    hop_s = _hop_seconds(question, table, rates, row, replica, brought)

    def by_step(values: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
        filled = np.zeros((len(tokens), int(replicas.max())), dtype=values.dtype)
        filled[cell, step] = values
        return filled

    return Rounds(
        np.where(cells.block > 0, every - 1, every + replicas - 1),
        np.where(tokens > 0, base.before, 0.0),
        np.where(tokens > 0, after, 0.0),
        by_step(turns.seconds),
        by_step(hop_s),
        by_step(turns.sees),
        by_step(brought > 0),
    )


def _hop_seconds(
    question: Question, table: Table, rates: Rates, row: Numbers, replica: Numbers, tokens: Numbers
) -> Array:
    """One rank's block of ``tokens`` keys and values from the replica before, through a NIC of its own; 0 in a node."""
    network, away = network_of(question, rates, table), np.zeros((len(table), int(table["replicas"].max())), dtype=bool)
    for number, one in enumerate(table):
        replicas = int(one["replicas"])
        away[number, :replicas] = _from_afar(question, int(one["order"]), int(one["tensor"]), replicas)
    held = first_heads(question, table["heads"].astype(np.int64)).keys[row]
    num_bytes = tokens * held * 2 * question.model.head_dim * rates.size
    seconds = network.latency_s + num_bytes / network.nic_bytes_per_s
    return np.asarray(np.where(away[row, replica] & (tokens > 0), seconds, 0.0))


def _from_afar(question: Question, order: int, tensor: int, replicas: int) -> list[bool]:
    """Whether a replica's first rank has the one before it on another node."""
    ranks, nodes = question.orders[order], question.nodes
    first = [ranks[place * tensor] for place in range(replicas)]
    return [nodes[first[place]] != nodes[first[place - 1]] for place in range(replicas)]


def _chunks(
    spans: Edges, held: Edges, own: npt.NDArray[np.bool_], *, causal: bool
) -> list[tuple[Numbers, Numbers, Numbers]]:
    """(queries, keys, causal) of both query spans, as ``lowering.chunks.ring_segments``."""
    everything = held[1] - held[0] + held[3] - held[2]
    found = []
    for start, stop in (spans[:2], spans[2:]):
        before = everything
        if causal:
            first = np.where(held[1] <= start, held[1] - held[0], 0)
            before = first + np.where(held[3] <= start, held[3] - held[2], 0)
        keys = before + np.where(own & causal, stop - start, 0)
        found.append((stop - start, np.where(stop > start, keys, 0), (own & causal).astype(np.int64)))
    return found


def _border_seconds(question: Question, table: Table, rates: Rates, sequences: Numbers, rate: Array) -> Array:
    """All blocks but one (the largest) over the NICs of a replica that shares no node with the one before it."""
    keys = first_heads(question, table["heads"].astype(np.int64))
    least = question.model.num_attention_heads // table["heads"].astype(np.int64)
    columns = np.minimum(-(-least // question.model.heads_per_kv_head), keys.keys)
    replicas, rule = (table[name].astype(np.int64) for name in ("replicas", "rule"))
    largest = largest_block(question.tokens, replicas, rule, causal=question.model.causal)
    tokens = np.maximum(question.tokens - largest, 0)
    num_bytes = sequences * tokens * columns * 2 * question.model.head_dim * rates.size * table["tensor"]
    return np.asarray(num_bytes / rate)


def _border_rates(question: Question, table: Table, rates: Rates) -> Array:
    """Bytes/s into the slowest replica whose ranks all receive from other nodes; infinite where there is none."""
    found = np.full(len(table), np.inf)
    for order, tensor in zip(*distinct_pairs(table), strict=True):
        rows = np.flatnonzero((table["order"] == order) & (table["tensor"] == tensor))
        replicas = table["replicas"][rows].astype(np.int64)
        found[rows] = slowest_borders(question, rates, int(order), int(tensor), int(replicas.max()))[replicas]
    return found


def slowest_borders(question: Question, rates: Rates, order: int, tensor: int, most: int) -> Array:
    """[replicas]: bytes/s into the slowest replica of rings of 0 to ``most`` replicas, of those whose ranks all receive
    from other nodes. The first receives from the last, others from the one before them."""
    ranks, nodes = question.orders[order], question.homes[order, : tensor * most].reshape(most, tensor)
    beyond = np.concatenate((np.zeros(1, dtype=np.bool_), (nodes[1:] != nodes[:-1]).all(axis=1)))
    around = (nodes != nodes[0]).all(axis=1)
    first, later = np.full((2, most), np.inf)
    for place in (0, *np.flatnonzero(beyond)) if around.any() else np.flatnonzero(beyond):
        links = {rates.topology.nic_of(rank).into for rank in ranks[place * tensor : (place + 1) * tensor]}
        (later if place else first)[place] = sum(rates.topology.resources[k].bandwidth_bytes_per_s for k in links)
    slowest = np.minimum(np.minimum.accumulate(later), np.where(around, first[0], np.inf))
    return np.concatenate((np.full(1, np.inf), slowest))
