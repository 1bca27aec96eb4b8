"""Training items of MA Separation: memory by hand, bytes of each compression, and the engine's time for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.documents import separation
from planner.documents.placements import ma_separation
from planner.documents.training import Compression, dispatched_bytes, sync_bytes, sync_seconds, training_step
from simulator import presets
from simulator.fabric import collectives as forms
from tests.hand_made import cluster

HOW: tuple[Compression, ...] = ("fp16", "int8", "top_k")


def test_memory_of_a_training_step_by_hand() -> None:
    # 1 M parameters: 2 MB weights, 2 MB gradients, 12 MB Adam; 34·(tokens 100·hidden 4096)·4 layers / 2 shards
    memory = separation.training_memory(10**6, 100, 4096, 4, 2)
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * 10**6, 2 * 10**6, 12 * 10**6)
    assert memory.activations == 34 * 100 * 4096 * 4 // 2
    assert memory.total == 16 * 10**6 + memory.activations


def test_bytes_of_each_synchronisation_by_hand() -> None:
    # 4 replicas, 1000 parameters: 2·3/4·2000; 2·3/4·1004 (with a scale); 3·(100 values of 2 B, 100 indices of 4 B)
    assert [sync_bytes(1000, 4, how) for how in HOW] == [3000, 1506, 1800]


def test_top_ten_per_cent_moves_more_than_a_dense_ring_from_seven_replicas_on() -> None:
    """Gathered entries grow with the replicas: (p − 1)·0.6·N against at most 4·N."""
    dense, sparse = ([sync_bytes(10**6, p, how) for p in range(2, 10)] for how in ("fp16", "top_k"))
    assert [p for p, (a, b) in enumerate(zip(dense, sparse, strict=True), 2) if b > a] == [7, 8, 9]


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 10**9), st.integers(2, 16))
def test_int8_sends_half_of_fp16_but_for_its_scale(parameters: int, replicas: int) -> None:
    share = 2 * (replicas - 1) / replicas
    assert sync_bytes(parameters, replicas, "int8") == pytest.approx(
        sync_bytes(parameters, replicas, "fp16") / 2 + 4 * share
    )


def test_the_engine_takes_the_closed_form_of_each_synchronisation() -> None:
    machine, n, ranks = cluster(4, link=1e9, latency_s=1e-6), 10**6, (0, 1, 2, 3)
    whole = {how: sync_seconds(n, ranks, how, machine) for how in HOW}
    assert whole["fp16"] == pytest.approx(
        min(forms.ring_all_reduce_s(4, 2e6, 1e-6, 1e9), forms.tree_all_reduce_s(4, 2e6, 1e-6, 1e9)), rel=1e-9
    )
    exchanged = forms.all_to_all_s(4, n + 4, 1e-6, 1e9) + forms.ring_half_s(4, n + 4, 1e-6, 1e9)
    assert whole["int8"] == pytest.approx(exchanged, rel=1e-9)
    assert whole["top_k"] == pytest.approx(forms.ring_half_s(4, 4 * 600_000, 1e-6, 1e9), rel=1e-9)


def test_a_training_step_has_memory_bytes_and_seconds() -> None:
    model, machine = presets.model("ma-separation"), cluster(4, link=1e9)
    found = training_step(model, 10**6, 64, (0, 1), "int8", machine)
    assert found.memory.optimizer == 12 * 10**6
    # two replicas: 2·1/2·(N + 4) bytes at 1 GB/s
    assert (found.sync_bytes, found.sync_s) == (10**6 + 4, pytest.approx((10**6 + 4) / 1e9))


def test_expert_dropout_drops_its_share_of_the_traffic_and_keeps_the_mean() -> None:
    model = presets.model("ma-separation")
    (stage,) = ma_separation(model).stages
    # 1000 tokens to 2 experts each, all on other GPUs, 4096 wide, 2 bytes
    assert dispatched_bytes(model, stage, 1000) == 1000 * 2 * 4096 * 2
    assert dispatched_bytes(model, stage, 1000, dropout=0.25) == 0.75 * 1000 * 2 * 4096 * 2
    ones = np.ones((4000, 2), dtype=np.float32)
    kept = separation.expert_dropout(ones, 0.25, np.random.default_rng(0), training=True)
    assert kept.mean() == pytest.approx(1.0, abs=0.03)  # 3.6 standard errors of 4000 draws
    assert np.unique(kept).tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (separation.expert_dropout(ones, 0.25, np.random.default_rng(0), training=False) == ones).all()
