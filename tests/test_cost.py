"""Predictions from shipped profiles: bounds, order, extrapolation, collectives by hand, refusals, speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.costs.collective_curve import curve_seconds
from simulator.costs.columns import rows_of
from simulator.costs.cost import PHYSICAL_MODELS, device_of, predict, predict_rows
from simulator.costs.learned import apply_residual
from simulator.errors import ProfileError, SpecError
from simulator.kernel import (
    AttentionDecode,
    AttentionPrefill,
    Gemm,
    GroupCollective,
    Kernel,
    Memory,
    Moe,
    flops,
    memory_bytes,
)
from simulator.profile import CollectiveCurve, load_profile
from tests.timed_sample import timed_rows

A100 = load_profile("a100-sxm4-80gb")
A100_BF16_FLOP_PER_S = 312e12  # dense; datasheet
A100_BYTES_PER_S = 2.039e12  # datasheet
# of processor time: two idle cores make 1.5e6 a second of it; a test shares them with whatever else runs
MIN_PREDICTIONS_PER_S = 2e5

SIZES = st.integers(1, 20000)
KERNELS = st.one_of(
    st.builds(Gemm, SIZES, SIZES, SIZES),
    st.builds(
        lambda b, q, past, kv, group: AttentionPrefill(b, q, q + past, kv * group, kv, 128),
        st.integers(1, 8),
        SIZES,
        st.integers(0, 100000),
        st.integers(1, 8),
        st.integers(1, 8),
    ),
    st.builds(
        lambda b, context, kv, group: AttentionDecode(b, context, kv * group, kv, 128),
        st.integers(1, 512),
        SIZES,
        st.integers(1, 8),
        st.integers(1, 8),
    ),
)


@settings(max_examples=150, deadline=None)
@given(KERNELS)
def test_no_prediction_beats_the_roofline(kernel: Kernel) -> None:
    prediction = predict([kernel], A100)
    bound = max(flops(kernel) / A100_BF16_FLOP_PER_S, memory_bytes(kernel) / A100_BYTES_PER_S)
    assert prediction.seconds[0] >= bound * (1 - 1e-9)
    assert prediction.p05_s[0] <= prediction.seconds[0] <= prediction.p95_s[0]


def test_predictions_keep_the_order_of_mixed_kernels() -> None:
    kernels: list[Kernel] = [
        Gemm(512, 512, 512),
        Memory("norm", 10**6),
        AttentionPrefill(1, 512, 512, 8, 8, 128),
        GroupCollective("all_reduce", 2**20, 8),
        Gemm(64, 4096, 4096),
        Moe(64, 4096, 14336, 2, 8, routing="power_law_1.2"),
    ]
    together = predict(kernels, A100)
    alone = [predict([kernel], A100).seconds[0] for kernel in kernels]
    assert together.seconds == pytest.approx(alone, rel=1e-6)  # float32 sums of different batch sizes


def test_no_kernels_give_no_predictions() -> None:
    assert len(predict([], A100).seconds) == 0


def test_shipped_a100_profile_reproduces_its_tables_within_the_published_error() -> None:
    # In-sample (the profile was fitted on all rows); docs/accuracy.md has the held-out errors.
    rows = timed_rows()
    predicted = predict([row.kernel for row in rows], A100)
    errors = np.abs(predicted.seconds / np.array([row.seconds for row in rows]) - 1.0)
    limits = {Gemm: 0.05, AttentionPrefill: 0.03, AttentionDecode: 0.03, Moe: 0.06}
    for kind, limit in limits.items():
        chosen = [isinstance(row.kernel, kind) for row in rows]
        assert errors[chosen].mean() < limit
    inside = (predicted.p05_s <= [r.seconds for r in rows]) & ([r.seconds for r in rows] <= predicted.p95_s)
    assert inside.mean() > 0.85
    assert predicted.inside.all()


def test_query_blocks_against_prefixes_cost_what_the_prompt_costs() -> None:
    # FA pool: 8 blocks of a 16384-token prompt, 32 heads; each launches alone, none has a shorter chain
    blocks: list[Kernel] = [AttentionPrefill(1, 2048, 2048 * (i + 1), 32, 32, 128) for i in range(8)]
    parts = predict(blocks, A100)
    whole = predict([AttentionPrefill(1, 16384, 16384, 32, 32, 128)], A100)
    assert parts.seconds.sum() == pytest.approx(whole.seconds[0], rel=0.12)
    assert np.all(np.diff(parts.seconds) > 0.0)
    assert parts.inside.tolist() == [True] + [False] * 7  # the table holds no prefixes, and the answer says so


def test_an_interval_widens_with_the_distance_from_the_calibrated_range() -> None:
    contexts = (131072, 2 * 131072, 8 * 131072)
    prediction = predict([AttentionDecode(8, c, 32, 8, 128) for c in contexts], A100)
    width = np.log(prediction.p95_s / prediction.p05_s)
    assert prediction.inside.tolist() == [True, False, False]
    assert width[0] < width[1] < width[2]
    assert prediction.tag.tolist() == ["fitted", "assumed", "assumed"]


def test_fp16_is_priced_as_bf16() -> None:
    pair = predict([Gemm(512, 4096, 4096, "bf16"), Gemm(512, 4096, 4096, "fp16")], A100)
    assert pair.seconds[0] == pair.seconds[1]


def test_a_dtype_without_rows_and_an_unknown_one_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"gemm has no 'fp8' rows; known dtypes: bf16"):
        predict([Gemm(1, 1, 1, "fp8")], A100)
    with pytest.raises(SpecError, match=r"dtype: unknown 'bf17'; known: fp32, bf16"):
        predict([Gemm(1, 1, 1, "bf17")], A100)


def test_an_unknown_routing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"unknown 'zipf'; known: balanced, power_law_A"):
        predict([Moe(1, 4096, 14336, 2, 8, routing="zipf")], A100)


CURVE = CollectiveCurve(
    kind="all_reduce", gpus=8, bytes=(1e3, 1e5, 1e7), seconds=(1e-5, 1e-4, 1e-3), tag="measured", source="hand-made"
)


def test_beyond_the_timed_widths_a_correction_is_the_mean_of_the_shapes_own_and_the_nearest_timed_ones() -> None:
    model = A100.model("gemm", "bf16")
    widest = model.calibrated["n"].high
    rows = rows_of([Gemm(64, int(2 * widest), 4096), Gemm(64, int(widest), 4096)])
    shape = PHYSICAL_MODELS["gemm"](rows, model.coefficients, device_of(model, A100.gpu))
    own, nearest = apply_residual(shape, model.residual) / shape.base_s
    assert own != nearest
    predicted = predict_rows(rows, model, A100.gpu)
    assert predicted.seconds == pytest.approx(shape.base_s * [np.sqrt(own * nearest), nearest])
    assert predicted.inside.tolist() == [False, True]


def test_a_curve_is_log_log_between_points_linear_beyond_and_flat_below() -> None:
    # 1e4 lies half-way in log bytes between 1e-5 s and 1e-4 s: sqrt(1e-9) = 3.162e-5 s.
    # Slope of the tail: 9.9e-4 s / 9.999e6 B through three points; 1e7 B beyond the end add 9.901e-4 s.
    seconds = curve_seconds(np.array([10.0, 1e4, 2e7]), CURVE)
    assert seconds == pytest.approx([1e-5, 3.1623e-5, 1e-3 + 9.901e-4], rel=1e-4)


def test_gpu_counts_between_measured_ones_are_interpolated_and_say_so() -> None:
    many = predict([GroupCollective("all_reduce", 2**26, gpus) for gpus in (4, 6, 8)], A100)
    low, high = sorted((many.seconds[0], many.seconds[2]))
    assert low <= many.seconds[1] <= high
    assert many.inside.tolist() == [True, False, True]


def test_one_gpu_has_nothing_to_exchange_and_more_than_a_node_is_refused() -> None:
    assert predict([GroupCollective("all_reduce", 2**20, 1)], A100).seconds[0] == 0.0
    with pytest.raises(ProfileError, match="no curve for all_reduce on 16 GPUs of one node"):
        predict([GroupCollective("all_reduce", 2**20, 16)], A100)
    with pytest.raises(ProfileError, match="no curve for gossip"):
        predict([GroupCollective("gossip", 2**20, 8)], A100)


def test_a_memory_kernel_is_a_launch_plus_its_bytes() -> None:
    # assumed: 3 µs + 1e9 B / (0.8 * 2.039e12 B/s) = 3 µs + 613.05 µs
    prediction = predict([Memory("norm", 10**9)], A100)
    assert prediction.seconds[0] == pytest.approx(616.05e-6, rel=1e-4)
    assert prediction.tag[0] == "assumed"
    bare = A100.model_copy(update={"memory": ()})
    with pytest.raises(ProfileError, match=r"no memory kernel 'norm' \(it has: none\)"):
        predict([Memory("norm", 1)], bare)


@pytest.mark.parametrize("kernel", ["gemm", "attention_prefill", "attention_decode"])
def test_arrays_of_predictions_are_fast(kernel: str) -> None:
    model = A100.model(kernel, "bf16")
    examples: dict[str, Kernel] = {
        "gemm": Gemm(512, 4096, 4096),
        "attention_prefill": AttentionPrefill(1, 512, 4096, 8, 8, 128),
        "attention_decode": AttentionDecode(8, 4096, 32, 8, 128),
    }
    rows = np.repeat(rows_of([examples[kernel]]), 100_000, axis=0)
    rows[:, 1] = np.arange(1, len(rows) + 1) % 4096 + 1
    start = time.process_time()
    predict_rows(rows, model, A100.gpu)
    assert len(rows) / (time.process_time() - start) > MIN_PREDICTIONS_PER_S
