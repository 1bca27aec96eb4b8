"""The documents' own predictor, built as written, and the same network on a table's raw columns.

Document 003 section 3.3: five features (sequence_length, hidden_dimension, num_active_experts = top-k · batch,
gpu_utilization, memory_bandwidth), Linear 5→64, ReLU, 64→32, ReLU, 32→2 for [T_attention, T_moe]. The tables
time attention and experts apart, so a sample is a pair that serves the same tokens: batch·sequence = tokens and
heads·head_dim = hidden, one key head a query head, experts unsharded. Utilisation is 1 on every row (kernels are
timed alone) and bandwidth is the device's: both are constant on one GPU, as the documents' own setting makes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from calibration.rows import Table
from simulator.costs.physics import Array

FEATURES = ("sequence_length", "hidden_dimension", "num_active_experts", "gpu_utilization", "memory_bandwidth")
HIDDEN_LAYERS = (64, 32)
MAX_EPOCHS = 400
TARGETS = ("T_attention", "T_moe")


def paired_samples(attention: Table, moe: Table, bytes_per_s: float) -> tuple[Array, Array]:
    """(features [n, 5], log seconds [n, 2]) of every attention row and routed-expert row of the same tokens."""
    experts: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for row, seconds in zip(moe.x.tolist(), moe.seconds.tolist(), strict=True):
        tokens, hidden, _, topk, _, tp, ep, _, _ = row
        if tp == 1.0 and ep == 1.0:
            experts.setdefault((tokens, hidden), []).append((topk, seconds))
    features, targets = [], []
    for row, seconds in zip(attention.x.tolist(), attention.seconds.tolist(), strict=True):
        batch, seq_q, seq_kv, heads, kv_heads, head_dim, causal, window = row
        if seq_q != seq_kv or heads != kv_heads or not causal or window:
            continue
        for topk, moe_seconds in experts.get((batch * seq_q, heads * head_dim), []):
            features.append((seq_q, heads * head_dim, topk * batch, 1.0, bytes_per_s))
            targets.append((np.log(seconds), np.log(moe_seconds)))
    return np.array(features).reshape(-1, len(FEATURES)), np.array(targets).reshape(-1, len(TARGETS))


def train_predictor(features: Array, log_seconds: Array, seed: int = 0) -> Callable[[Array], Array]:
    """A 64→32 ReLU network on standardised ``features`` [n, F] → log seconds [n, T], standardised inside."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0.0, scale, 1.0)
    offset, spread = log_seconds.mean(axis=0), log_seconds.std(axis=0)
    network = MLPRegressor(
        hidden_layer_sizes=HIDDEN_LAYERS, activation="relu", learning_rate_init=3e-3, max_iter=MAX_EPOCHS, tol=1e-6,
        early_stopping=len(features) > 500, n_iter_no_change=40, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # MAX_EPOCHS are what it gets, converged or not
        network.fit((features - mean) / scale, (log_seconds - offset) / spread)

    def predict(x: Array) -> Array:
        return np.asarray(np.exp(network.predict((x - mean) / scale) * spread + offset))

    return predict


def raw_features(table: Table) -> Array:
    """log2(1 + column): the table's own columns, with no physics."""
    return np.log2(table.x + 1.0)


def raw_predictor(table: Table, seed: int = 0) -> Callable[[Table], Array]:
    """The documents' layers on raw columns → seconds, trained on ``table``."""
    predict = train_predictor(raw_features(table), np.log(table.seconds), seed)
    return lambda other: predict(raw_features(other))
