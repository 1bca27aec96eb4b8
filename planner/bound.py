"""Bound: a vectorised lower bound on the simulated time of a step, for every candidate of a space at once.

Each of these is at most the simulated time, so their maximum is (tests compare them on random instances):

    chain      one micro-batch through all layers on one rank: its kernels, its collectives alone on their links, and
               the bytes it must receive and send over its own NIC
    compute    all kernels of the base rank, of the busiest pool rank; micro-batches may overlap nothing else
    collective all of a rank's all-reduces (they share one stream)
    network    all bytes that leave the base, over all its NICs
    pipeline   first micro-batch to stage i, stage i's work for all of them, the last one to the end

Left out, so the bound stays below: copies (slices, concatenations, merges), latencies but one a hop, contention
between flows, fabric oversubscription.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.bound_attention import (
    Cells,
    cells_of,
    decode_seconds,
    first_heads,
    micro_batch,
    parts_of,
    prefill_cells,
    whole_attention,
)
from planner.bound_network import Network, network_of, pool_chain
from planner.bound_race import LAYERS, REPLICAS, Leg, needed_tokens, run_leg
from planner.rates import Array, Numbers, Rates
from planner.shares import Dealt, block_edges, ceil_div
from planner.space import Question, Scheme, Table
from simulator.model import Layer
from simulator.placement import even_split

ROUNDING = 1e-6  # the simulator rounds every operation to a picosecond, and none is shorter than a microsecond


def step_bound(question: Question, table: Table, rates: Rates, *, parts: int | None = None) -> Array:
    """Seconds no simulation of a candidate can beat. ``parts``: sequences are dealt into as many (the cache's placement
    decodes them so); None: as the candidate itself would."""
    bound = np.zeros(len(table))
    for schemes, family in (
        ((Scheme.STATIC,), _static),
        ((Scheme.CONTEXT,), _context),
        ((Scheme.POOL, Scheme.JOINED), _pooled),
        ((Scheme.SEPARATED,), _separated),
    ):
        chosen = np.flatnonzero(np.isin(table["scheme"], schemes))
        if len(chosen):
            bound[chosen] = family(question, table[chosen], rates, parts)
    return bound * (1 - ROUNDING)


def layer_kinds(question: Question) -> dict[Layer, int]:
    """Distinct layers and how many there are of each."""
    return dict(Counter(question.model.layers))


@dataclass(frozen=True)
class Base:
    """Per candidate: seconds of a rank's kernels before and after one layer's attention, and one all-reduce."""

    before: Array
    after: Array
    reduce: Array

    @property
    def compute(self) -> Array:
        return self.before + self.after


def base_layer(question: Question, table: Table, rates: Rates, tokens: Numbers, layer: Layer) -> Base:
    """The first tensor shard (the largest) on ``tokens`` tokens a candidate."""
    model, size = question.model, rates.size
    tensor = table["tensor"].astype(np.int64)
    heads = first_heads(question, tensor)
    width = (heads.queries + 2 * heads.keys) * model.head_dim
    row = tokens * model.hidden_size * size
    norm, add = rates.memory("norm", 2 * row), rates.memory("add", 3 * row)
    before = norm + rates.gemm(tokens, width, model.hidden_size) + rates.memory("rope", 2 * tokens * width * size)
    after = rates.gemm(tokens, model.hidden_size, heads.queries * model.head_dim) + 2 * add + norm
    after += _routed(question, rates, tensor, tokens) if layer.routed else _dense(question, rates, tensor, tokens)
    return Base(before, after, _all_reduce(question, table, rates, row.astype(float)))


def _dense(question: Question, rates: Rates, tensor: Numbers, tokens: Numbers) -> Array:
    model = question.model
    width, matrices = ceil_div(model.intermediate_size, tensor), 2 if model.gated else 1
    seconds = rates.gemm(tokens, width * matrices, model.hidden_size) + rates.gemm(tokens, model.hidden_size, width)
    return seconds + rates.memory("activation", (matrices + 1) * tokens * width * rates.size)


def _routed(question: Question, rates: Rates, tensor: Numbers, tokens: Numbers) -> Array:
    """Experts in place: the first rank's (largest) share of all experts on all tokens, and the gate."""
    experts = question.model.experts
    assert experts is not None
    held = ceil_div(experts.num_experts, tensor)
    return _gate(question, rates, tokens) + _moe(question, rates, tokens, held, np.ones_like(tensor))


def _gate(question: Question, rates: Rates, tokens: Numbers) -> Array:
    experts = question.model.experts
    assert experts is not None
    return rates.gemm(tokens, experts.num_experts, question.model.hidden_size)


def _moe(question: Question, rates: Rates, tokens: Numbers, held: Numbers, peers: Numbers) -> Array:
    """``work.moe_kernel`` for ``held`` experts and ``tokens`` tokens of each of ``peers`` ranks."""
    experts, model = question.model.experts, question.model
    assert experts is not None
    if experts.capacity_factor is None:
        rows = ceil_div(tokens * experts.top_k * held, experts.num_experts)
    else:
        slots = np.ceil(experts.capacity_factor * tokens * experts.top_k / experts.num_experts).astype(np.int64)
        rows = held * np.minimum(tokens, slots)
    rows = rows * peers
    ep = np.where(experts.num_experts % held == 0, experts.num_experts // held, 1)
    num = np.where(ep > 1, experts.num_experts, held)
    top_k = np.minimum(experts.top_k, num)
    before_top_k = np.where(tokens > 0, np.maximum(ceil_div(rows * ep, top_k), 1), 0)
    columns = (before_top_k, model.hidden_size, experts.intermediate_size, top_k, num, 1, ep, 0, int(model.gated))
    return rates.moe(columns)


def _all_reduce(question: Question, table: Table, rates: Rates, num_bytes: Array) -> Array:
    """Of the fastest tensor group (groups differ where nodes do)."""
    seconds = np.zeros(len(table))
    for order, tensor in {(int(o), int(t)) for o, t in zip(*distinct_pairs(table), strict=True)}:
        rows = np.flatnonzero((table["order"] == order) & (table["tensor"] == tensor))
        groups = tensor_groups(question, order, tensor)
        seconds[rows] = np.minimum.reduce([rates.all_reduce(group, num_bytes[rows]) for group in groups])
    return seconds


def distinct_pairs(table: Table) -> tuple[Numbers, Numbers]:
    """The (order, tensor degree) that occur."""
    codes = np.unique(table["order"].astype(np.int64) << 32 | table["tensor"].astype(np.int64))
    return codes >> 32, codes & 0xFFFFFFFF


def tensor_groups(question: Question, order: int, tensor: int) -> list[tuple[int, ...]]:
    """One group of consecutive ranks of every kind: which devices, on how many nodes."""
    ranks, places = question.orders[order], question.cluster.rank_nodes()
    found: dict[tuple[object, ...], tuple[int, ...]] = {}
    for first in range(0, len(ranks) - tensor + 1, tensor):
        group = ranks[first : first + tensor]
        kind = (
            tuple(places[rank][2].gpu for rank in group),
            tuple(places[rank][0] - places[group[0]][0] for rank in group),
        )
        found.setdefault(kind, group)
    return list(found.values())


def _ends(question: Question, table: Table, rates: Rates, tokens: Numbers, sequences: Numbers) -> Array:
    """Embedding with its all-reduce, and the logits of the last tokens."""
    model, tensor = question.model, table["tensor"].astype(np.int64)
    row = tokens * model.hidden_size * rates.size
    embed = rates.memory("embed", 2 * row) + _all_reduce(question, table, rates, row.astype(float))
    logits = rates.gemm(sequences, ceil_div(model.vocab_size, tensor), model.hidden_size)
    last = rates.memory("norm", 2 * sequences * model.hidden_size * rates.size)
    return embed + last + logits + rates.memory("sample", sequences * model.vocab_size * rates.size)


def _micro_batches(question: Question, table: Table, parts: int | None) -> Iterator[tuple[Numbers, Dealt, Numbers]]:
    """(1 where a candidate has it, its sequences, its tokens) of every micro-batch number."""
    dealt_parts = parts_of(table, parts)
    for index in range(int(table["micro_batches"].max())):
        dealt = micro_batch(question, table, dealt_parts, index)
        tokens = dealt.total * (question.tokens if question.phase == "prefill" else 1)
        yield (index < table["micro_batches"]).astype(np.int64), dealt, tokens


def _static(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """One stage: chain, kernels, all-reduces. Several: a micro-batch through all, the others through the busiest."""
    kinds = layer_kinds(question)
    chain, compute, reduce = np.zeros((3, len(table)))
    least = {kind: np.full(len(table), np.inf) for kind in kinds}
    for used, dealt, tokens in _micro_batches(question, table, parts):
        through = used * _ends(question, table, rates, tokens, dealt.total)
        for kind, num in kinds.items():
            base = base_layer(question, table, rates, tokens, kind)
            kernels = base.compute + whole_attention(question, table, kind, rates, dealt)
            if question.phase == "decode":
                kernels = kernels + _store(question, table, rates, dealt.total)
            layer_s = kernels + 2 * base.reduce
            least[kind] = np.where(used > 0, np.minimum(least[kind], layer_s), least[kind])
            through = through + used * num * layer_s
            compute, reduce = compute + used * num * kernels, reduce + used * num * 2 * base.reduce
        chain = np.maximum(chain, through)
    stage = _busiest_stage(question, table, least)
    through = sum((num * least[kind] for kind, num in kinds.items()), np.zeros(len(table)))
    pipeline = through + (table["micro_batches"] - 1) * stage
    return np.where(table["stages"] == 1, np.maximum(chain, np.maximum(compute, reduce)), np.maximum(chain, pipeline))


def _busiest_stage(question: Question, table: Table, layer_s: dict[Layer, Array]) -> Array:
    """Seconds of one micro-batch's layers in the largest stage."""
    most = np.zeros(len(table))
    for stages in np.unique(table["stages"]):
        first = 0
        for size in even_split(question.model.num_layers, int(stages)):
            kinds = Counter(question.model.layers[first : first + size])
            seconds = sum((n * layer_s[kind] for kind, n in kinds.items()), np.zeros(len(table)))
            most = np.where(table["stages"] == stages, np.maximum(most, seconds), most)
            first += size
    return most


def _context(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """Every replica's own stream; the race of all; the busiest NIC.

    A rank need not be done with the layer before to receive its keys, but no rank sends before it has projected them:
    the earliest end of a layer, F, grows at least by the least projection + the least, over ranks, of (keys' arrival,
    attention, the rest of the layer).
    """
    network, cells = network_of(question, rates, table), cells_of(table["replicas"].astype(np.int64))
    chain, totals = np.zeros(len(table)), np.zeros((3, len(cells.row)))
    for used, dealt, _ in _micro_batches(question, table, parts):
        tokens = _replica_tokens(question, table, cells, dealt)
        ends = cells.least(_ends(question, table[cells.row], rates, tokens, 0 * tokens))
        own, raced, works = np.zeros(len(cells.row)), ends, {}
        for layer, num in layer_kinds(question).items():
            work = works[layer] = _replica_layer(question, table, rates, network, cells, dealt, layer, tokens)
            own = own + num * (work.before + work.attention + work.after)
            arrives = work.inbound + np.where(table["streams"][cells.row] > 1, 0.0, work.attention)
            rest = np.maximum(arrives, work.attention) + work.after
            raced = raced + num * (cells.least(work.before) + cells.least(rest))
            totals += used[cells.row] * num * np.stack((work.compute, work.inbound, work.outbound))
        if question.phase == "prefill":
            raced = np.maximum(raced, ends + _raced(question, table, rates, network, cells, dealt, works))
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
) -> Array:
    """Candidates with equally many replicas run their first layers together (``bound_race``)."""
    raced = np.zeros(len(table))
    kinds = set(question.model.layers)
    if any(layer.window for layer in kinds):
        return raced
    for replicas in np.unique(table["replicas"][table["replicas"] <= REPLICAS]):
        rows = np.flatnonzero(table["replicas"] == replicas)
        at = cells.first[rows][:, None] + np.arange(replicas)
        legs = {kind: _leg(question, table[rows], rates, network, dealt.total[rows], works[kind], at) for kind in kinds}
        ends = np.zeros(at.shape)
        for layer in question.model.layers[:LAYERS]:
            ends = run_leg(ends, legs[layer])
        rest = sum((_least_layer(works[layer], at) for layer in question.model.layers[LAYERS:]), np.zeros(len(rows)))
        raced[rows] = np.where(rest > 0, ends.min(axis=1) + rest, ends.max(axis=1))
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
        work.after[at],
        np.where(away, tokens * row_s[:, None, None], 0.0),
        (others & (tokens > 0)).astype(float),
        np.where(away, network.latency_s, 0.0),
        (table["streams"] > 1).astype(float),
    )


def _replica_tokens(question: Question, table: Table, cells: Cells, dealt: Dealt) -> Numbers:
    """Tokens of every replica: its query block of all sequences, or all of its sequences."""
    if question.phase == "decode":
        full = cells.block < dealt.full_parts[cells.row]
        return np.where(full, dealt.full[cells.row], dealt.other[cells.row])
    rule, replicas = (table[name].astype(np.int64)[cells.row] for name in ("rule", "replicas"))
    edges = block_edges(question.tokens, replicas, rule, cells.block, causal=question.model.causal)
    return dealt.total[cells.row] * (edges[1] - edges[0] + edges[3] - edges[2])


@dataclass(frozen=True)
class ReplicaWork:
    """Per replica, one layer and micro-batch: seconds before, of and after attention (after: with both all-reduces),
    of kernels alone, and for its keys' way in and out of its node."""

    before: Array
    attention: Array
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
    """Routed layers of replicas exchange tokens (tensor degree 1): no fewer kernels than the gate's."""
    wide = table[cells.row]
    base = base_layer(question, wide, rates, tokens, Layer(window=layer.window))
    after = base.after
    if layer.routed:
        after = (
            after - _dense(question, rates, wide["tensor"].astype(np.int64), tokens) + _gate(question, rates, tokens)
        )
    inbound, outbound = np.zeros((2, len(tokens)))
    if question.phase == "decode":
        attention = decode_seconds(question, wide, layer, rates, tokens)[0] + _store(question, wide, rates, tokens)
    else:
        attention, queries, keys = prefill_cells(question, table, cells, layer, rates, dealt)
        inbound = network.keys_seconds(question, table, rates, keys, queries, cells)
        first = (cells.block == 0) & (not layer.window)
        outbound = np.where(first, network.sent_seconds(question, table, rates, queries, cells), 0.0)
    used = tokens > 0
    compute = np.where(used, base.before + after + attention, 0.0)
    after = np.where(used, after + 2 * base.reduce, 0.0)
    return ReplicaWork(np.where(used, base.before, 0.0), attention, after, compute, inbound, outbound)


def _store(question: Question, table: Table, rates: Rates, tokens: Numbers) -> Array:
    """A decode step's new keys into the cache of a rank with the first tensor shard's heads."""
    heads = first_heads(question, table["heads"].astype(np.int64))
    return rates.memory("copy", 4 * tokens * heads.keys * question.model.head_dim * rates.size)


def _pooled(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """Chains through the pool; the base rank's stream (it waits for its all-reduces: only attention is a pause); the
    busiest pool rank's kernels; the base's NICs."""
    network, joined = network_of(question, rates, table), table["scheme"] == Scheme.JOINED
    chain, totals = np.zeros(len(table)), np.zeros((3, len(table)))
    for used, dealt, tokens in _micro_batches(question, table, parts):
        through = _ends(question, table, rates, tokens, dealt.total)
        for layer, num in layer_kinds(question).items():
            base = base_layer(question, table, rates, tokens, layer)
            pool = pool_chain(question, table, rates, network, dealt, layer)
            own = np.where(joined, pool.first_s, 0.0)
            through = through + num * (base.compute + 2 * base.reduce + np.maximum(pool.chain_s, own))
            rows = (base.compute + own + 2 * base.reduce, pool.busiest_s, pool.egress_s)
            totals += used * num * np.stack(rows)
        chain = np.maximum(chain, used * through)
    return np.asarray(np.maximum(chain, totals.max(axis=0)))


def _separated(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """One micro-batch through attention and experts; all of them on either side."""
    chain, attention, feed_forward = np.zeros((3, len(table)))
    for used, dealt, tokens in _micro_batches(question, table, parts):
        through = np.zeros(len(table))
        for layer, num in layer_kinds(question).items():
            one, two = _separated_layer(question, table, rates, tokens, dealt, layer)
            through += num * (one + two)
            attention, feed_forward = attention + used * num * one, feed_forward + used * num * two
        chain = np.maximum(chain, used * through)
    return np.maximum(chain, np.maximum(attention, feed_forward))


def _separated_layer(
    question: Question, table: Table, rates: Rates, tokens: Numbers, dealt: Dealt, layer: Layer
) -> tuple[Array, Array]:
    """(attention rank's, first expert rank's) kernels."""
    model, replicas = question.model, table["replicas"].astype(np.int64)
    heads, tensor = first_heads(question, table["heads"].astype(np.int64)), table["tensor"].astype(np.int64)
    width = (heads.queries + 2 * heads.keys) * model.head_dim
    attention = whole_attention(question, table, layer, rates, dealt) + rates.gemm(tokens, width, model.hidden_size)
    rule = table["rule"].astype(np.int64)
    if question.phase == "decode":
        share = np.where(replicas == 1, dealt.total, np.where(dealt.full_parts > 0, dealt.full, dealt.other))
    else:
        low, high, *_ = block_edges(question.tokens, replicas, rule, np.zeros_like(replicas), causal=model.causal)
        share = dealt.total * (high - low)
    if not layer.routed:
        return attention, _dense(question, rates, tensor, share)
    gate = _gate(question, rates, share)
    held = ceil_div(model.experts.num_experts if model.experts else 1, np.maximum(tensor, replicas))
    return attention, np.where(replicas > 1, gate, gate + _moe(question, rates, share, held, np.ones_like(held)))
