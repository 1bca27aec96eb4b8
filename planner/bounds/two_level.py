"""Two-level partitioning's part of the bound: the first rank's kernels, its all-reduces, and the scores' all-reduce.

The rank of the first head group (the largest) and its slice: projections of all its heads on a slice, what its form
computes in between, its part of W_O. Left out: what slices send each other in gather_qk and all_to_all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.bounds.attention import first_heads
from planner.bounds.layer import (
    all_reduce_seconds,
    dense_layer,
    end_seconds,
    layer_kinds,
    micro_batches,
    routed_layer,
)
from planner.bounds.rates import Array, Numbers, Rates
from planner.bounds.shares import Dealt, ceil_div
from planner.candidate import MODES, Table
from planner.question import Question
from simulator.model import Layer

GATHER, EXCHANGE, SUM, SLICE = (MODES.index(mode) for mode in ("gather_qk", "all_to_all", "score_sum", "per_slice"))


def two_level_bound(question: Question, table: Table, rates: Rates, parts: int | None) -> Array:
    """One micro-batch through all layers; all kernels; all all-reduces."""
    chain, compute, reduce = np.zeros((3, len(table)))
    for used, dealt, tokens in micro_batches(question, table, parts):
        through = used * end_seconds(question, table, rates, tokens, dealt.total)
        for layer, num in layer_kinds(question).items():
            kernels, reduces = _layer(question, table, rates, tokens, dealt, layer)
            through = through + used * num * (kernels + reduces)
            compute, reduce = compute + used * num * kernels, reduce + used * num * reduces
        chain = np.maximum(chain, through)
    return np.maximum(chain, np.maximum(compute, reduce))


@dataclass(frozen=True)
class Sliced:
    """Per candidate: heads and KV heads of the first group, width of a slice, heads and KV heads that attend whole."""

    queries: Numbers
    keys: Numbers
    kernel_keys: Numbers
    width: Numbers
    own: Numbers
    own_keys: Numbers


def _sliced(question: Question, table: Table) -> Sliced:
    model, slices = question.model, table["slices"].astype(np.int64)
    heads = first_heads(question, table["heads"].astype(np.int64))
    own = np.maximum(heads.queries // slices, 1)
    own_keys = ceil_div(own, model.heads_per_kv_head)
    return Sliced(
        heads.queries,
        heads.keys,
        heads.kernel_keys,
        model.head_dim // slices,
        own,
        np.where(own % own_keys == 0, own_keys, own),
    )


def _layer(
    question: Question, table: Table, rates: Rates, tokens: Numbers, dealt: Dealt, layer: Layer
) -> tuple[Array, Array]:
    """(kernels, all-reduces) of one layer and micro-batch."""
    model, size, sliced = question.model, rates.size, _sliced(question, table)
    tensor = table["tensor"].astype(np.int64)
    width = (sliced.queries + 2 * sliced.keys) * sliced.width
    row = tokens * model.hidden_size * size
    norm, add = rates.memory("norm", 2 * row), rates.memory("add", 3 * row)
    kernels = 2 * norm + 2 * add + rates.memory("rope", 2 * tokens * width * size)
    kernels = kernels + rates.gemm(tokens, width, model.hidden_size)
    kernels = kernels + rates.gemm(tokens, model.hidden_size, sliced.queries * sliced.width)
    kernels = kernels + (
        routed_layer(question, rates, tensor, tokens) if layer.routed else dense_layer(question, rates, tensor, tokens)
    )
    attention, scores = np.zeros((2, len(table)))
    for mode in np.unique(table["mode"]):
        rows = np.flatnonzero(table["mode"] == mode)
        attention[rows], scores[rows] = _attention(question, table, rates, dealt, layer, (int(mode), rows))
    reduces = 2 * all_reduce_seconds(question, table, rates, row.astype(float)) + scores
    return kernels + attention, reduces


def _attention(
    question: Question, table: Table, rates: Rates, dealt: Dealt, layer: Layer, of: tuple[int, Numbers]
) -> tuple[Array, Array]:
    """(kernels, the scores' all-reduce) between the projections of the rows of one mode."""
    mode, rows = of
    sliced, some = _sliced(question, table[rows]), table[rows]
    kernels, pairs = np.zeros((2, len(rows)))
    for part, count in ((dealt.full_parts, dealt.full), (dealt.other_parts, dealt.other)):
        number, sequences = part[rows], count[rows]
        seen = question.tokens + (question.phase == "decode")
        seen = min(seen, layer.window) if layer.window and question.phase == "decode" else seen
        pairs = pairs + number * sequences * seen * (question.tokens if question.phase == "prefill" else 1)
        sequences = np.where(number > 0, sequences, 0)
        kernels = kernels + number * _kernels(question, rates, sliced, sequences, layer, (mode, seen))
    if mode != SUM:
        return kernels, np.zeros(len(rows))
    num_bytes = pairs * sliced.queries * rates.size
    groups = some.copy()
    groups["tensor"] = some["slices"]
    reduced = all_reduce_seconds(question, groups, rates, num_bytes.astype(float))
    return kernels, reduced


def _kernels(
    question: Question, rates: Rates, sliced: Sliced, sequences: Numbers, layer: Layer, of: tuple[int, int]
) -> Array:
    """Of all sequences of one part."""
    mode, seen = of
    whole = mode in (GATHER, EXCHANGE)
    heads = sliced.own if mode == EXCHANGE else sliced.queries
    keys = sliced.own_keys if mode == EXCHANGE else sliced.kernel_keys
    dim = question.model.head_dim if whole else sliced.width
    if mode == SUM:
        return _summed(question, rates, sliced, sequences, seen)
    if question.phase == "decode":
        return rates.decode((sequences, seen, heads, keys, dim, 0))
    window = layer.window if layer.window < question.tokens else 0
    tokens, causal = question.tokens, int(question.model.causal)
    return rates.prefill((sequences, tokens, tokens, heads, keys, dim, causal, window))


def _summed(question: Question, rates: Rates, sliced: Sliced, sequences: Numbers, seen: int) -> Array:
    """Scores, softmax over all of them, values: ``work.score_kernels`` and ``work.weighing_kernels``."""
    size, tokens = rates.size, question.tokens
    if question.phase == "decode":
        scores = sequences * sliced.queries * seen
        cached = sequences * seen * sliced.kernel_keys * sliced.width
        read = cached + scores + sequences * sliced.queries * sliced.width
        both = rates.memory("copy", (cached + scores) * size) + rates.memory("copy", read * size)
        return both + rates.memory("activation", 2 * scores * size)
    rows = sequences * sliced.queries * tokens
    masked = rates.memory("activation", (4 if question.model.causal else 2) * rows * tokens * size)
    products = rates.gemm(rows, tokens, sliced.width) + rates.gemm(rows, sliced.width, tokens)
    return np.asarray(masked + products)
