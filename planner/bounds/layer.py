"""One layer's part of the bound: kernels and all-reduces of the first tensor shard, which is the largest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.bounds.attention import first_heads, micro_batch, parts_of
from planner.bounds.rates import Array, Numbers, Rates, least
from planner.bounds.shares import Dealt, ceil_div
from planner.space import Question, Table
from simulator.model import Layer


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
    after += (
        routed_layer(question, rates, tensor, tokens) if layer.routed else dense_layer(question, rates, tensor, tokens)
    )
    return Base(before, after, all_reduce_seconds(question, table, rates, row.astype(float)))


def dense_layer(question: Question, rates: Rates, tensor: Numbers, tokens: Numbers) -> Array:
    model = question.model
    width, matrices = ceil_div(model.intermediate_size, tensor), 2 if model.gated else 1
    seconds = rates.gemm(tokens, width * matrices, model.hidden_size) + rates.gemm(tokens, model.hidden_size, width)
    return seconds + rates.memory("activation", (matrices + 1) * tokens * width * rates.size)


def routed_layer(question: Question, rates: Rates, tensor: Numbers, tokens: Numbers) -> Array:
    """Experts in place: the first rank's (largest) share of all experts on all tokens, and the gate."""
    experts = question.model.experts
    assert experts is not None
    held = ceil_div(experts.num_experts, tensor)
    return gate_seconds(question, rates, tokens) + moe_seconds(question, rates, tokens, held, np.ones_like(tensor))


def gate_seconds(question: Question, rates: Rates, tokens: Numbers) -> Array:
    experts = question.model.experts
    assert experts is not None
    return rates.gemm(tokens, experts.num_experts, question.model.hidden_size)


def moe_seconds(question: Question, rates: Rates, tokens: Numbers, held: Numbers, peers: Numbers) -> Array:
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


def all_reduce_seconds(question: Question, table: Table, rates: Rates, num_bytes: Array) -> Array:
    return collective_seconds(question, table, rates, num_bytes, "all_reduce")


def collective_seconds(
    question: Question, table: Table, rates: Rates, num_bytes: Array, kind: Literal["all_reduce", "all_gather"]
) -> Array:
    """Of the fastest tensor group (groups differ where nodes do)."""
    seconds = np.zeros(len(table))
    for order, tensor in {(int(o), int(t)) for o, t in zip(*distinct_pairs(table), strict=True)}:
        rows = np.flatnonzero((table["order"] == order) & (table["tensor"] == tensor))
        groups = question.tensor_groups(order, tensor)
        seconds[rows] = least([rates.collective(kind, group, num_bytes[rows]) for group in groups])
    return seconds


def distinct_pairs(table: Table) -> tuple[Numbers, Numbers]:
    """The (order, tensor degree) that occur."""
    codes = np.unique(table["order"].astype(np.int64) << 32 | table["tensor"].astype(np.int64))
    return codes >> 32, codes & 0xFFFFFFFF


def end_seconds(question: Question, table: Table, rates: Rates, tokens: Numbers, sequences: Numbers) -> Array:
    """Embedding with its all-reduce, and the logits of the last tokens."""
    return embed_seconds(question, table, rates, tokens) + head_seconds(question, table, rates, sequences)


def embed_seconds(question: Question, table: Table, rates: Rates, tokens: Numbers) -> Array:
    row = tokens * question.model.hidden_size * rates.size
    return rates.memory("embed", 2 * row) + all_reduce_seconds(question, table, rates, row.astype(float))


def head_seconds(question: Question, table: Table, rates: Rates, sequences: Numbers) -> Array:
    """Norm, logits, their all-gather and the sampled tokens."""
    model, tensor = question.model, table["tensor"].astype(np.int64)
    width = ceil_div(model.vocab_size, tensor)
    logits = rates.gemm(sequences, width, model.hidden_size)
    last = rates.memory("norm", 2 * sequences * model.hidden_size * rates.size)
    gathered = (sequences * width * tensor * rates.size).astype(float)
    gather = collective_seconds(question, table, rates, gathered, "all_gather")
    return last + logits + gather + rates.memory("sample", sequences * model.vocab_size * rates.size)


def micro_batches(question: Question, table: Table, parts: int | None) -> Iterator[tuple[Numbers, Dealt, Numbers]]:
    """(1 where a candidate has it, its sequences, its tokens) of every micro-batch number."""
    dealt_parts = parts_of(table, parts)
    for index in range(int(table["micro_batches"].max())):
        dealt = micro_batch(question, table, dealt_parts, index)
        tokens = dealt.total * (question.tokens if question.phase == "prefill" else 1)
        yield (index < table["micro_batches"]).astype(np.int64), dealt, tokens


def store(question: Question, table: Table, rates: Rates, tokens: Numbers) -> Array:
    """A decode step's new keys into the cache of a rank with the first tensor shard's heads."""
    heads = first_heads(question, table["heads"].astype(np.int64))
    return rates.memory("copy", 4 * tokens * heads.keys * question.model.head_dim * rates.size)
