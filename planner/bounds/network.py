"""The network's part of the bound: bytes that must pass a NIC, over its rate, where a rank's node holds no sender.

A pool rank on a node without base ranks takes all its queries and keys through its own NIC (multicast: the queries, and
the keys once a node) and returns its output there. Whatever the base sends to such ranks passes the base's NICs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.bounds.attention import Cells, cells_of, decode_seconds, first_heads, prefill_cells
from planner.bounds.copies import copy_seconds
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.shares import Dealt, ceil_div
from planner.space import Question, Scheme, Table
from simulator.model import Layer


@dataclass(frozen=True)
class Network:
    """Per candidate: position (in its order) of the first rank on a node without base ranks, the fastest NIC of the
    cluster, all NICs of the base, and the least latency between nodes."""

    remote: Numbers
    nic_bytes_per_s: float
    base_bytes_per_s: Array
    latency_s: float

    def keys_seconds(
        self, question: Question, table: Table, rates: Rates, keys: Array, queries: Array, cells: Cells
    ) -> Array:
        """Seconds for the keys that a replica's rank sees and no replica of its node has, through its NIC."""
        held = first_heads(question, table["heads"].astype(np.int64)).keys
        near = self.near(question, table) * cells.most(queries)
        remote = np.maximum(keys - near[cells.row], 0.0)
        num_bytes = remote * 2 * held[cells.row] * question.model.head_dim * rates.size
        if self.latency_s == 0.0:
            return np.zeros(len(cells.row))
        return np.where(remote > 0, self.latency_s, 0.0) + num_bytes / self.nic_bytes_per_s

    def sent_seconds(self, question: Question, table: Table, rates: Rates, queries: Array, cells: Cells) -> Array:
        """Seconds for the first block's keys, which every other replica needs, to leave for other nodes one by one."""
        held = first_heads(question, table["heads"].astype(np.int64)).keys
        others = np.maximum(table["replicas"] - self.near(question, table), 0)
        num_bytes = (others * held)[cells.row] * queries * 2 * question.model.head_dim * rates.size
        return np.asarray(num_bytes / self.nic_bytes_per_s)

    @staticmethod
    def near(question: Question, table: Table) -> Numbers:
        """Replicas of one node, at most."""
        return np.maximum(question.node_gpus // table["tensor"].astype(np.int64), 1)


@dataclass(frozen=True)
class PoolTimes:
    """Per candidate, one layer and micro-batch: the way to the pool, attention and back; its parts."""

    chain_s: Array
    first_s: Array
    busiest_s: Array
    egress_s: Array


def network_of(question: Question, rates: Rates, table: Table) -> Network:
    """NICs of every candidate's base."""
    nodes, cluster = question.nodes, rates.cluster
    remote, total = np.zeros(len(table), dtype=np.int64), np.full(len(table), np.inf)
    several = len(set(nodes)) > 1
    for order, base in {(int(o), int(t)) for o, t in zip(table["order"], table["tensor"], strict=True)}:
        ranks = question.orders[order]
        home = {nodes[rank] for rank in ranks[:base]}
        first = next((at for at, rank in enumerate(ranks) if nodes[rank] not in home), len(ranks))
        rows = (table["order"] == order) & (table["tensor"] == base)
        remote[rows] = first
        if several:
            nics = {rates.topology.nic_of(rank).out for rank in ranks[:base]}
            total[rows] = sum(rates.topology.resources[nic].bandwidth_bytes_per_s for nic in nics)
    if not several:
        return Network(remote, np.inf, total, 0.0)
    fastest = max(
        rates.topology.resources[rates.topology.nic_of(r).out].bandwidth_bytes_per_s for r in range(len(nodes))
    )
    latency = min(node.nics.latency_s for node in cluster.nodes if node.nics is not None)
    return Network(remote, fastest, total, latency + cluster.fabric.latency_s)


def pool_chain(
    question: Question, table: Table, rates: Rates, network: Network, dealt: Dealt, layer: Layer
) -> PoolTimes:
    """Lower bounds on one layer's attention in a pool."""
    cells = cells_of(table["queries"].astype(np.int64))
    if question.phase == "prefill":
        seconds, queries, keys = prefill_cells(question, table, cells, layer, rates, dealt)
    else:
        seconds, queries = _decode_cells(question, table, rates, dealt, layer, cells)
        keys = np.zeros(len(seconds))
    heads = first_heads(question, table["heads"].astype(np.int64))
    element = question.model.head_dim * rates.size
    q_in = queries * heads.queries[cells.row] * element / network.nic_bytes_per_s
    kv_in = keys * heads.keys[cells.row] * 2 * element / network.nic_bytes_per_s
    kv_in = np.where(table["multicast"][cells.row] == 0, kv_in, 0.0)
    begin, away, keyed = _remote_ranks(table, network, cells)
    far = begin >= network.remote[cells.row]
    hop = np.where(far, network.latency_s, 0.0)
    streamed = table["streams"][cells.row] > 1
    arrives = np.where(streamed, np.maximum(kv_in, seconds), kv_in + seconds)
    busy = (queries > 0) & (seconds > 0)
    copies = copy_seconds(question, table, rates, cells, queries, keys)
    there = np.where(far, 2 * hop + 2 * q_in + arrives, seconds) + copies
    chain = cells.most(np.where(busy, there, 0.0))
    fewest = question.model.num_attention_heads // table["heads"][cells.row].astype(np.int64)
    covered = ceil_div(fewest, question.model.heads_per_kv_head)
    direct = table["multicast"][cells.row] == 0
    sent = away * queries * fewest + np.where(direct, keyed * keys * 2 * covered, 0.0)
    egress_s = cells.total(sent * element) / network.base_bytes_per_s
    least = cells.least(np.where(busy & ~streamed, seconds, np.where(busy, 0.0, np.inf)))
    least = np.where(np.isfinite(least) & (table["keys"] == 1), least, 0.0)
    chain = np.maximum(chain, np.where(egress_s > 0, 2 * network.latency_s + egress_s + least, 0.0))
    return PoolTimes(chain, seconds[cells.first], cells.most(seconds), egress_s)


def _remote_ranks(table: Table, network: Network, cells: Cells) -> tuple[Numbers, Numbers, Numbers]:
    """Of a query block: its first rank's position; how many of its ranks (head groups × KV blocks) lie on nodes without
    base ranks, and how many of those with the first KV block."""
    heads, keys = table["heads"].astype(np.int64)[cells.row], table["keys"].astype(np.int64)[cells.row]
    first = np.where(table["scheme"] == Scheme.POOL, table["tensor"], 0)[cells.row]
    begin = first + cells.block * keys * heads
    from_here = np.maximum(begin, network.remote[cells.row])
    away = np.clip(begin + heads * keys - from_here, 0, None)
    return begin, away, np.clip(begin + heads - from_here, 0, None)


def _decode_cells(
    question: Question, table: Table, rates: Rates, dealt: Dealt, layer: Layer, cells: Cells
) -> tuple[Array, Array]:
    """Decode: a query block is a part of the sequences. (seconds, query tokens) of every cell."""
    full, _ = decode_seconds(question, table, layer, rates, dealt.full)
    other, _ = decode_seconds(question, table, layer, rates, dealt.other)
    is_full = cells.block < dealt.full_parts[cells.row]
    seconds = np.where(is_full, full[cells.row], other[cells.row])
    sequences = np.where(is_full, dealt.full[cells.row], dealt.other[cells.row])
    return seconds, sequences.astype(float)
