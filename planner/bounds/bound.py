"""Bound: a vectorised lower bound on the simulated time of a step, for every candidate of a space at once.

Each of these is at most the simulated time, so their maximum is (tests compare them on random instances):

    chain      one micro-batch through all layers on one rank: its kernels, its collectives alone on their links, and
               the bytes it must receive and send over its own NIC
    compute    all kernels of the base rank (and its wait for the first attention), of the busiest pool rank
    collective all of a rank's all-reduces (they share one stream)
    network    all bytes that leave the base, over all its NICs
    pipeline   first micro-batch to stage i, stage i's work for all of them, the last one to the end

Left out, so the bound stays below: some copies, contention between flows that do not share the base's NICs, fabric
oversubscription, the KV cache's way to the ranks that will decode.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np

from planner.bounds.attention import first_heads, whole_attention
from planner.bounds.context import context_bound
from planner.bounds.dealt import dealt_bound
from planner.bounds.dispatch import dispatched_seconds
from planner.bounds.exits import exit_seconds
from planner.bounds.layer import (
    base_layer,
    dense_layer,
    end_seconds,
    gate_seconds,
    layer_kinds,
    micro_batches,
    moe_seconds,
    store,
)
from planner.bounds.network import network_of, pool_chain
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.ring import border_bound, ring_bound
from planner.bounds.shares import Dealt, block_edges, ceil_div
from planner.bounds.two_level import two_level_bound
from planner.space import Question, Scheme, Table
from simulator.model import Layer
from simulator.placement import even_split

ROUNDING = 1e-6  # the simulator rounds every operation to a picosecond, and none is shorter than a microsecond


CELLS = 100_000  # query blocks bounded at once: their columns stay in the cache
RACED_AS_ONE = 64  # replicas whose race takes no more memory than they themselves, by this count


def chunked_bound(question: Question, table: Table, rates: Rates, *, parts: int | None = None) -> Array:
    """As ``step_bound``, in pieces that keep memory small."""
    if not len(table):
        return np.zeros(0)
    last = np.cumsum(num_cells(table, rates))
    edges = [0, *(np.searchsorted(last, np.arange(CELLS, last[-1], CELLS), side="left") + 1).tolist(), len(table)]
    pieces = [table[a:b] for a, b in pairwise(sorted(set(edges))) if a < b]
    return np.concatenate([step_bound(question, piece, rates, parts=parts) for piece in pieces])


def num_cells(table: Table, rates: Rates) -> Numbers:
    """Query blocks that a bound of each candidate looks at."""
    pooled, replicas = np.isin(table["scheme"], (Scheme.POOL, Scheme.JOINED)), table["replicas"]
    blocks = np.where(pooled & rates.thin, 1, np.maximum(table["queries"], replicas))
    if rates.thin:
        blocks = np.minimum(blocks, 2)
    elif not (rates.roofline or rates.solo):  # a race looks at every pair of replicas
        blocks = blocks * np.maximum(replicas // RACED_AS_ONE, 1)
    return np.asarray(blocks, dtype=np.int64)


def step_bound(question: Question, table: Table, rates: Rates, *, parts: int | None = None) -> Array:
    """Seconds no simulation of a candidate can beat. ``parts``: sequences are dealt into as many (the cache's placement
    decodes them so); None: as the candidate itself would."""
    bound = np.zeros(len(table))
    even, scheme = table["dealing"] == 0, table["scheme"]
    ring = table["ring"] == 1
    for rows, family in (
        (even & (scheme == Scheme.STATIC), _static),
        (even & (scheme == Scheme.CONTEXT) & ~ring, context_bound),
        (even & (scheme == Scheme.CONTEXT) & ring, _thin_ring if rates.thin else ring_bound),
        (even & np.isin(scheme, (Scheme.POOL, Scheme.JOINED)), _pooled),
        (even & (scheme == Scheme.SEPARATED), _separated),
        (even & (scheme == Scheme.TWO_LEVEL), two_level_bound),
        (~even, dealt_bound),
    ):
        chosen = np.flatnonzero(rows)
        if len(chosen):
            bound[chosen] = family(question, table[chosen], rates, parts)
    return bound * (1 - ROUNDING)


def _static(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """One stage: chain, kernels, all-reduces. Several: a micro-batch through all, the others through the busiest."""
    kinds = layer_kinds(question)
    chain, compute, reduce = np.zeros((3, len(table)))
    least = {kind: np.full(len(table), np.inf) for kind in kinds}
    for used, dealt, tokens in micro_batches(question, table, parts):
        through = used * end_seconds(question, table, rates, tokens, dealt.total)
        for kind, num in kinds.items():
            base = base_layer(question, table, rates, tokens, kind)
            kernels = base.compute + whole_attention(question, table, kind, rates, dealt)
            if question.phase == "decode":
                kernels = kernels + store(question, table, rates, dealt.total)
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


def _pooled(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """Chains through the pool; the base rank's stream (it waits for its all-reduces: only attention is a pause); the
    busiest pool rank's kernels; the base's NICs.

    Of the base rank's work only the start of every micro-batch can be done before the first one's attention is back.
    """
    network, first = network_of(question, rates, table), question.model.layers[0]
    chain, before, returned = np.zeros((3, len(table)))
    totals = np.zeros((3, len(table)))
    for index, (used, dealt, tokens) in enumerate(micro_batches(question, table, parts)):
        ends = end_seconds(question, table, rates, tokens, dealt.total)
        through, base_s = ends, ends
        for layer, num in layer_kinds(question).items():
            base = base_layer(question, table, rates, tokens, layer)
            pool = pool_chain(question, table, rates, network, dealt, layer)
            through = through + num * (base.compute + 2 * base.reduce + pool.chain_s)
            base_s = base_s + num * (base.compute + pool.early_s + pool.late_s + 2 * base.reduce)
            totals[1:] += used * num * np.stack((pool.busiest_s, pool.egress_s))
            if layer == first:
                before += used * (pool.early_s if index == 0 else ends + base.before + pool.early_s)
                returned = pool.chain_s - pool.late_s if index == 0 else returned
        totals[0] += used * base_s
        chain = np.maximum(chain, used * through)
    totals[0] += np.maximum(returned - before, 0.0)
    return np.asarray(np.maximum(chain, totals.max(axis=0)))


def _thin_ring(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """As replicas that gather, but for their network: the busiest border."""
    own = context_bound(question, table, rates, parts)
    return np.maximum(own, border_bound(question, table, rates, parts))


def base_bound(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """Of pools, whatever their grid: what the base rank computes beside attention, and its all-reduces, one after the
    other on its stream."""
    total = np.zeros(len(table))
    for used, dealt, tokens in micro_batches(question, table, parts):
        seconds = end_seconds(question, table, rates, tokens, dealt.total)
        for layer, num in layer_kinds(question).items():
            base = base_layer(question, table, rates, tokens, layer)
            seconds = seconds + num * (base.compute + 2 * base.reduce)
        total += used * seconds
    return total * (1 - ROUNDING)


def _separated(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """One micro-batch through attention and experts; all of them on either side."""
    chain, attention, feed_forward = np.zeros((3, len(table)))
    for used, dealt, tokens in micro_batches(question, table, parts):
        through, exits = np.zeros(len(table)), exit_seconds(question, table, rates, tokens)
        for layer, num in layer_kinds(question).items():
            one, two = _separated_layer(question, table, rates, tokens, dealt, layer)
            through += num * (one + two + exits)
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
        # experts' ranks do not attend: tokens are dealt to them in even numbers
        low, high, *_ = block_edges(question.tokens, replicas, rule, np.zeros_like(replicas), causal=False)
        share = dealt.total * (high - low)
    if not layer.routed:
        return attention, dense_layer(question, rates, tensor, share)
    held = ceil_div(model.experts.num_experts if model.experts else 1, np.maximum(tensor, replicas))
    here = gate_seconds(question, rates, share) + moe_seconds(question, rates, share, held, np.ones_like(held))
    return attention, np.where(replicas > 1, dispatched_seconds(question, rates, share, replicas, share), here)
