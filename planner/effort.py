"""Effort: how much work a candidate's simulation is, so that a limit on simulations is one on work.

Counted before anything is lowered: operations of the ranks that a fold leaves, messages of an attention layer between
them, and how many of those share links, as the max-min fair rates of n flows take longer than n times one. Constants
are seconds of one core of this project's machine when others use it too, rounded from context-parallel prefills of 16
to 42 replicas (within a third; rings that repeat take less); the same inputs always give the same effort.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from planner.bounds.rates import Array, Numbers
from planner.candidate import Scheme, Table, num_gpus
from planner.depth import DEPTHS
from planner.question import Question

OPERATION_S, MESSAGE_S = 20e-6, 150e-6
CROWD = 2000.0  # flows at a time from which their number matters
OPERATIONS = 15  # of a rank in a layer, beside messages
ORDINARY_S = 0.3  # what counts as one simulation


def effort(question: Question, table: Table) -> Array:
    """Ordinary simulations that each candidate's counts as; 1 at least."""
    return np.maximum(seconds(question, table) / ORDINARY_S, 1.0)


def seconds(question: Question, table: Table) -> Array:
    """Of one core, for each candidate's simulation."""
    layers, micro = _layers(question, table), table["micro_batches"].astype(np.float64)
    blocks = _blocks(question, table)
    messages, flows = _messages(question, table, blocks)
    ranks = num_gpus(table) / blocks
    layer_s = ranks * OPERATIONS * OPERATION_S + messages * MESSAGE_S * (1 + (flows / CROWD) ** 2)
    return np.asarray(layers * micro * layer_s)


def _layers(question: Question, table: Table) -> Numbers:
    """Layers played: few where they repeat (``depth.py``). Replicas that prefill drift apart; pipelines are whole."""
    whole = ((table["scheme"] == Scheme.CONTEXT) & (question.phase == "prefill")) | (table["stages"] > 1)
    layers = question.model.num_layers
    return np.where(whole, layers, min(layers, max(DEPTHS)))


def _blocks(question: Question, table: Table) -> Numbers:
    """Blocks that a fold of even head cuts leaves one of; pipelines and separated experts do not fold, nor do pools
    whose base is wider than a node."""
    model = question.model
    foldable = (table["stages"] == 1) & (table["scheme"] != Scheme.SEPARATED) & (table["scheme"] != Scheme.TWO_LEVEL)
    alike = gcd(model.num_attention_heads, model.num_key_value_heads)
    pooled = np.isin(table["scheme"], (Scheme.POOL, Scheme.JOINED))
    foldable &= ~(pooled & (table["tensor"] > question.node_gpus))
    cut = np.where(pooled, np.gcd(table["tensor"], table["heads"]), table["tensor"]).astype(np.int64)
    return np.where(foldable & (table["dealing"] == 0), np.gcd(cut, alike), 1)


def _messages(question: Question, table: Table, blocks: Numbers) -> tuple[Array, Array]:
    """(messages, those that share links at a time) of one layer and micro-batch, of one block."""
    column = {name: table[name].astype(np.float64) for name in ("tensor", "replicas", "heads", "queries", "keys")}
    pairs = column["replicas"] * (column["replicas"] - 1) * column["tensor"] / blocks
    gathered = np.where(question.model.causal & (table["rule"] != 1), pairs / 2, pairs)
    grids = 3 * np.maximum(column["heads"], column["tensor"]) * column["queries"] * column["keys"] / blocks
    exchanged = 2 * column["heads"] * np.maximum(table["experts"], 1)
    prefill = question.phase == "prefill"
    messages = np.select(
        [
            (table["scheme"] == Scheme.CONTEXT) & (table["ring"] == 1),
            table["scheme"] == Scheme.CONTEXT,
            np.isin(table["scheme"], (Scheme.POOL, Scheme.JOINED)),
            table["scheme"] == Scheme.SEPARATED,
        ],
        [3 * pairs * prefill, gathered * prefill, grids, exchanged],
        0.0,
    )
    return messages * table["streams"], np.where(table["ring"] == 1, 0.0, messages)
