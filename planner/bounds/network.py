"""The network's part of the bound: bytes that must pass a NIC, over its rate, where a rank's node holds no sender.

A pool rank on a node without base ranks takes all its queries and keys through its own NIC (multicast: the queries, and
the keys once a node) and returns its output there. Whatever the base sends to such ranks passes the base's NICs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.bounds.attention import Cells, cells_of, decode_seconds, first_heads, prefill_cells
from planner.bounds.copies import Copies, copies_of
from planner.bounds.layer import distinct_pairs
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.shares import Dealt, ceil_div
from planner.space import Question, Scheme, Table
from simulator.costs.work import LSE_BYTES
from simulator.model import Layer


@dataclass(frozen=True)
class Network:
    """Per candidate: position (in its order) of the first rank on a node without base ranks, the fastest NIC of the
    cluster, all NICs of a node (the most), all of the base, and the least latency between nodes."""

    remote: Numbers
    nic_bytes_per_s: float
    node_bytes_per_s: float
    base_bytes_per_s: Array
    latency_s: float

    def keys_seconds(
        self, question: Question, table: Table, rates: Rates, keys: Array, most: Array, cells: Cells
    ) -> Array:
        """Seconds for the keys that a replica's rank sees and no replica of its node has, through its NIC, without
        latency: others send while one waits for it. ``most``: query tokens that no replica has more of."""
        held = first_heads(question, table["heads"].astype(np.int64)).keys
        near = self.near(question, table) * most
        remote = np.maximum(keys - near[cells.row], 0.0)
        num_bytes = remote * 2 * held[cells.row] * question.model.head_dim * rates.size
        return np.asarray(num_bytes / self.nic_bytes_per_s)

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
    """Per candidate, one layer and micro-batch: ``chain_s``: the base's slices, the way to the pool, attention, the way
    back, the base's merge. ``early_s``, ``late_s``: what of it the first base rank computes before and after attention
    returns (where it attends too, that is early). ``busiest_s``: a pool rank's kernels; ``egress_s``: the base's NICs.
    """

    chain_s: Array
    early_s: Array
    late_s: Array
    busiest_s: Array
    egress_s: Array


def network_of(question: Question, rates: Rates, table: Table) -> Network:
    """NICs of every candidate's base."""
    remote, total = np.zeros(len(table), dtype=np.int64), np.full(len(table), np.inf)
    several = len(set(question.nodes)) > 1
    for order, base in zip(*distinct_pairs(table), strict=True):
        ranks = question.orders[order]
        rows = (table["order"] == order) & (table["tensor"] == base)
        remote[rows] = question.leaves[order, base - 1]
        if several:
            nics = {rates.topology.nic_of(rank).out for rank in ranks[:base]}
            total[rows] = sum(rates.topology.resources[nic].bandwidth_bytes_per_s for nic in nics)
    if not several:
        return Network(remote, np.inf, np.inf, total, 0.0)
    return Network(remote, rates.nics.fastest_bytes_per_s, rates.nics.node_bytes_per_s, total, rates.nics.latency_s)


@dataclass(frozen=True)
class _Pool:
    """Cells of pool candidates: attention of the first KV block's rank, least attention of any rank on a node without
    base ranks (0: unknown), queries and keys, copies; ``away``: such ranks, ``keyed``: with the first KV block."""

    cells: Cells
    seconds: Array
    least: Array
    queries: Array
    keys: Array
    copies: Copies
    begin: Numbers
    away: Numbers
    keyed: Numbers
    last: Array


def pool_chain(
    question: Question, table: Table, rates: Rates, network: Network, dealt: Dealt, layer: Layer
) -> PoolTimes:
    """Lower bounds on one layer's attention in a pool."""
    pool = _pool_of(question, table, rates, network, dealt, layer)
    cells, copies = pool.cells, pool.copies
    joined = table["scheme"] == Scheme.JOINED
    heads = first_heads(question, table["heads"].astype(np.int64))
    element = question.model.head_dim * rates.size
    q_in = pool.queries * heads.queries[cells.row] * element / network.nic_bytes_per_s
    direct = pool.keys * heads.keys[cells.row] * 2 * element / network.nic_bytes_per_s
    kv_in = direct
    if table["multicast"].any():
        once = _node_keys_seconds(question, table, rates, network, pool)
        kv_in = np.where(table["multicast"][cells.row] == 0, direct, once)
    far = pool.begin >= network.remote[cells.row]
    streamed = table["streams"][cells.row] > 1
    arrives = np.where(streamed, np.maximum(kv_in + pool.last, pool.seconds), kv_in + pool.seconds)
    # the output goes back slice by slice, a base rank's at a time: only the last one's bytes come after all kernels
    shard = question.model.num_attention_heads // table["tensor"][cells.row].astype(np.int64)
    back = q_in * np.minimum(shard / heads.queries[cells.row], 1.0)
    sums = pool.queries * _narrow(question, table, cells) * LSE_BYTES / network.nic_bytes_per_s
    back = np.where(table["keys"][cells.row] > 1, np.minimum(sums, back), back)  # of a split, the sums come last
    there = np.where(far, 2 * network.latency_s + q_in + back + arrives, pool.seconds)
    there = there + (cells.block + 1) * copies.sliced + copies.pool + copies.base
    busy = (pool.queries > 0) & (pool.seconds > 0)
    egress_s, away_s = _away_chain(question, table, rates, network, pool, busy)
    chain = np.maximum(cells.most(np.where(busy, there, 0.0)), away_s)
    own = np.where(joined & cells.whole, (pool.seconds + copies.pool)[cells.first], 0.0)
    return PoolTimes(
        np.maximum(chain, own),
        cells.total(copies.sliced) + own,
        copies.base[cells.first],
        cells.most(pool.seconds + copies.pool),
        egress_s,
    )


def _node_keys_seconds(question: Question, table: Table, rates: Rates, network: Network, pool: _Pool) -> Array:
    """Multicast: the KV heads of a query block's ranks on one node enter it once, by all its NICs. Of the first two
    nodes of those ranks, the one with more of them."""
    row, heads = pool.cells.row, table["heads"].astype(np.int64)
    leave, order, stop = question.leaves, table["order"][row], pool.begin + heads[row]
    width = leave.shape[1]
    first = np.minimum(leave[order, pool.begin], stop)
    second = np.minimum(leave[order, np.minimum(first, width - 1)], stop)
    together = np.maximum(first - pool.begin, np.maximum(second - first, 0))
    fewest = question.model.num_attention_heads // heads[row]
    held = ceil_div(together * fewest, question.model.heads_per_kv_head)
    return np.asarray(pool.keys * held * 2 * question.model.head_dim * rates.size / network.node_bytes_per_s)


def _away_chain(
    question: Question, table: Table, rates: Rates, network: Network, pool: _Pool, busy: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    """(seconds of the base's NICs, chain through the rank on another node that they serve last): its queries come when
    all bytes have left, then it attends and returns its part of the output, and its sums after it (one stream)."""
    even = _even(question, table)
    cells, element = pool.cells, question.model.head_dim * rates.size
    fewest = question.model.num_attention_heads // table["heads"][cells.row].astype(np.int64)
    covered = ceil_div(fewest, question.model.heads_per_kv_head)
    direct = table["multicast"][cells.row] == 0
    sent = pool.away * pool.queries * fewest + np.where(direct, pool.keyed * pool.keys * 2 * covered, 0.0)
    egress_s = cells.total(sent * element) / network.base_bytes_per_s
    narrow = _narrow(question, table, cells)
    back = network.latency_s + pool.queries * narrow * element / network.nic_bytes_per_s
    sums = network.latency_s + pool.queries * narrow * LSE_BYTES / network.nic_bytes_per_s
    copies = pool.copies
    split = np.maximum(copies.outputs + sums, copies.output + back + sums)
    rest = np.where(table["keys"][cells.row] > 1, split, copies.outputs + back)
    rest = pool.least + np.where(even[cells.row], np.where(pool.least > 0, copies.joined, 0.0) + rest, 0.0)
    least = cells.least(np.where(busy & (pool.away > 0), rest, np.inf))
    chain = network.latency_s + egress_s + np.where(np.isfinite(least), least, 0.0) + copies.base[cells.first]
    return egress_s, np.where(egress_s > 0, chain, 0.0)


def _pool_of(question: Question, table: Table, rates: Rates, network: Network, dealt: Dealt, layer: Layer) -> _Pool:
    cells = cells_of(table["queries"].astype(np.int64), thin=rates.thin)
    split, streamed = table["keys"][cells.row] > 1, table["streams"][cells.row] > 1
    if question.phase == "prefill":
        work = prefill_cells(question, table, cells, layer, rates, dealt)
        seconds, queries, keys, last = work.seconds, work.queries, work.keys, work.last_s
        least = np.where(split | streamed, 0.0, seconds)
    else:
        seconds, queries, least = _decode_cells(question, table, rates, dealt, layer, cells)
        keys, last = np.zeros((2, len(seconds)))
    copies = copies_of(question, table, rates, cells, queries, keys)
    least = np.where(_even(question, table)[cells.row], least, 0.0)
    begin, away, keyed = _remote_ranks(table, network, cells)
    return _Pool(cells, seconds, least, queries, keys, copies, begin, away, keyed, last)


def _narrow(question: Question, table: Table, cells: Cells) -> Numbers:
    """Heads of the smallest part of an output that goes to one base rank."""
    groups = np.maximum(table["heads"], table["tensor"]).astype(np.int64)
    return np.asarray((question.model.num_attention_heads // groups)[cells.row])


def _even(question: Question, table: Table) -> npt.NDArray[np.bool_]:
    """Whether all head groups are alike, and all tensor shards."""
    heads = question.model.num_attention_heads
    return np.asarray((heads % table["heads"] == 0) & (heads % table["tensor"] == 0))


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
) -> tuple[Array, Array, Array]:
    """Decode: a query block is a part of the sequences. Of every cell: seconds on its first KV block, which stores the
    new tokens; its sequences; the least seconds of any KV block."""
    is_full = cells.block < dealt.full_parts[cells.row]

    def of_cells(stored: int) -> Array:
        full, other = (
            decode_seconds(question, table, layer, rates, sequences, stored=stored)[0]
            for sequences in (dealt.full, dealt.other)
        )
        return np.where(is_full, full[cells.row], other[cells.row])

    seconds = of_cells(1)
    least = np.where(table["keys"][cells.row] > 1, np.minimum(seconds, of_cells(0)), seconds)
    sequences = np.where(is_full, dealt.full[cells.row], dealt.other[cells.row])
    return seconds, sequences.astype(float), least
