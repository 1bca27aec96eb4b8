"""Fitting: recovers what made the data, says how sure it is, and is the same twice."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.conformal import intervals, quantiles
from calibration.fit import fit_coefficients, fit_profile
from calibration.folds import Predictor, held_out_seconds
from calibration.network import Training, train
from calibration.predictor import paired_samples, raw_predictor, train_predictor
from calibration.rows import Table, TimedRow, tables
from calibration.splits import SPLITS
from calibration.transfers import collective_curves, memory_costs, send_recv
from simulator.cluster import Gpu
from simulator.costs.cost import PHYSICAL_MODELS, predict
from simulator.costs.learned import apply_residual
from simulator.costs.physics import Device, Physics
from simulator.errors import ProfileError
from simulator.formats.files import to_json
from simulator.kernel import AttentionPrefill, Gemm, GroupCollective, Memory, flops, memory_bytes
from tests.timed_sample import timed_rows

CPU = Gpu(
    name="core",
    kind="cpu",
    compute_flop_per_s=80e9,
    memory_bandwidth_bytes_per_s=15e9,
    memory_bytes=8 * 10**9,
    num_sms=1,
    source="made up",
)
A100 = Gpu(
    name="A100-SXM4-80GB",
    compute_flop_per_s=312e12,
    memory_bandwidth_bytes_per_s=2.039e12,
    memory_bytes=80 * 2**30,
    num_sms=108,
    source="datasheet",
)


def cpu_rows(count: int, seed: int, noise: float = 0.05) -> list[TimedRow]:
    """fp32 GEMMs of a core that reaches 60 GFLOP/s and 10 GB/s after 20 µs, with log-normal noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for m, n, k in np.exp(rng.uniform(np.log(8), np.log(2048), (count, 3))).astype(int).tolist():
        gemm = Gemm(m, n, k, "fp32")
        ideal = 20e-6 + max(flops(gemm) / 60e9, memory_bytes(gemm) / 10e9)
        rows.append(TimedRow(gemm, float(ideal * np.exp(noise * rng.normal())), "made up"))
    return rows


def test_forty_rows_of_a_core_predict_others_within_15_percent_median() -> None:
    profile = fit_profile(cpu_rows(40, seed=1), CPU)
    held = cpu_rows(200, seed=2)
    prediction = predict([row.kernel for row in held], profile)
    seconds = np.array([row.seconds for row in held])
    assert np.median(np.abs(prediction.seconds / seconds - 1.0)) < 0.15
    covered = (prediction.p05_s <= seconds) & (seconds <= prediction.p95_s)
    assert 0.8 < covered.mean() <= 1.0


def test_a_handful_of_rows_keep_the_physics_and_admit_doubt() -> None:
    profile = fit_profile(cpu_rows(5, seed=3), CPU)
    model = profile.model("gemm", "fp32")
    assert model.residual is None
    assert model.intervals.high[0] == 0.5  # DEFAULT_LOG_ERROR: too few rows for quantiles


def test_a_profile_of_the_same_rows_is_byte_identical() -> None:
    rows = cpu_rows(60, seed=4)
    assert to_json(fit_profile(rows, CPU)) == to_json(fit_profile(rows, CPU))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ProfileError, match="core: no rows to fit"):
        fit_profile([], CPU)


def test_a_fifth_of_the_sample_is_predicted_from_the_rest_better_than_a_fitted_roofline() -> None:
    # 96 fitted rows a class; limits are twice what this split gave, so that a worse model fails
    limits = {"gemm": 0.2, "attention_prefill": 0.15, "attention_decode": 0.25, "moe": 0.45}
    for table in tables(timed_rows()):
        held = SPLITS[table.kernel]["random"](table)
        profile = fit_profile(as_rows(table.take(~held)), A100)
        part = table.take(held)
        prediction = predict([row.kernel for row in as_rows(part)], profile)
        assert np.abs(prediction.seconds / part.seconds - 1.0).mean() < limits[table.kernel], table.kernel


def as_rows(table: Table) -> list[TimedRow]:
    by_row = {tuple(x): row for row in timed_rows() for x in tables([row])[0].x.tolist()}
    return [by_row[tuple(x)] for x in table.x.tolist()]


def test_a_class_with_networks_beats_its_physics() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 3))
    log_residual = 0.2 * np.sin(2.0 * features[:, 0]) + 0.1 * features[:, 1]
    residual = train(features, log_residual, Training(width=32, networks=1, steps=1500))
    shape = Physics(np.ones(600), np.zeros(600), features)
    assert np.abs(np.log(apply_residual(shape, residual)) - log_residual).mean() < 0.02


def test_every_row_is_predicted_once_and_by_what_the_other_folds_taught() -> None:
    x = np.arange(23.0)[:, None]
    table = Table("gemm", "bf16", x, np.ones(23))

    def learn(rest: Table) -> Predictor:  # 1 where a row was among those learned from, 2 where it was not
        return lambda other: np.where(np.isin(other.x[:, 0], rest.x[:, 0]), 1.0, 2.0) + 10.0 * other.x[:, 0]

    assert held_out_seconds(table, learn).tolist() == (2.0 + 10.0 * x[:, 0]).tolist()


def test_fifty_rows_of_noise_get_intervals_that_cover_ninety_percent() -> None:
    covered = [few_rows_coverage(seed) for seed in range(3)]
    assert 0.84 < np.mean(covered) < 0.97  # three draws of 50: the mean's own spread is 2.4 per cent


def few_rows_coverage(seed: int) -> float:
    profile = fit_profile(cpu_rows(50, seed=100 + seed, noise=0.1), CPU)
    held = cpu_rows(400, seed=200 + seed, noise=0.1)
    prediction = predict([row.kernel for row in held], profile)
    seconds = np.array([row.seconds for row in held])
    return float(((prediction.p05_s <= seconds) & (seconds <= prediction.p95_s)).mean())


def test_a_rank_between_two_rows_is_interpolated() -> None:
    # 50 errors 1..50: 0.95 * 51 = 48.45, so p95 is 48.45 and p05 its mirror, 51 - 48.45 = 2.55
    assert quantiles(np.arange(1.0, 51.0), between=True) == pytest.approx((2.55, 48.45))


def test_coefficients_that_made_the_rows_are_found_again() -> None:
    device = Device(A100.compute_flop_per_s, A100.memory_bandwidth_bytes_per_s, A100.num_sms, 2)
    sample = next(table for table in tables(timed_rows()) if table.kernel == "attention_prefill")
    truth = fit_coefficients(sample, device)
    made = PHYSICAL_MODELS[sample.kernel](sample.x, truth, device).base_s
    again = fit_coefficients(Table(sample.kernel, sample.dtype, sample.x, made), device)
    fitted = PHYSICAL_MODELS[sample.kernel](sample.x, again, device).base_s
    assert np.abs(fitted / made - 1.0).max() < 0.02


def test_ninety_percent_intervals_cover_ninety_percent_of_fresh_rows() -> None:
    rng = np.random.default_rng(5)
    predicted = np.exp(rng.uniform(-12, 0, 20000))
    measured = predicted * np.exp(0.1 * rng.normal(size=20000))
    model = intervals(predicted[:2000], measured[:2000])
    region = np.searchsorted(model.edges_s, predicted[2000:], side="right")
    error = np.log(measured / predicted)[2000:]
    covered = (np.array(model.low)[region] <= error) & (error <= np.array(model.high)[region])
    assert 0.88 < covered.mean() < 0.93


def test_equal_kernels_become_their_geometric_mean() -> None:
    rows = [TimedRow(Gemm(1, 2, 3), 1e-6, "a"), TimedRow(Gemm(1, 2, 3), 4e-6, "b")]
    assert tables(rows)[0].seconds == pytest.approx([2e-6])  # sqrt(1e-6 * 4e-6)


def test_a_memory_kernel_is_fitted_as_a_line_of_its_own_kind() -> None:
    rows = [TimedRow(Memory("norm", size), 5e-6 + size / 5e9, "made up") for size in (10**4, 10**5, 10**6, 10**7)]
    cost = memory_costs(rows, CPU)[0]
    assert (cost.kind, cost.tag) == ("norm", "fitted")
    assert cost.launch_s == pytest.approx(5e-6, rel=1e-3)
    assert cost.bytes_per_s == pytest.approx(5e9, rel=1e-3)


def test_curves_are_sorted_and_point_to_point_comes_from_two_gpus() -> None:
    # all_gather of S bytes on 2 GPUs moves S/2 each way: 10 µs + (S/2)/100 GB/s
    sizes = [2**24, 2**20, 2**16, 2**22, 2**28]
    rows = [TimedRow(GroupCollective("all_gather", s, 2), 10e-6 + s / 2 / 100e9, "made up") for s in sizes]
    curves = collective_curves(rows)
    assert list(curves[0].bytes) == sorted(sizes)
    pair = send_recv(curves)
    assert pair is not None
    assert pair.latency_s == pytest.approx(10.3e-6, rel=0.01)  # + 32 KiB / 100 GB/s = 0.33 µs
    assert pair.bandwidth_bytes_per_s == pytest.approx(100e9, rel=0.01)


def test_the_documents_predictor_has_five_inputs_and_two_outputs() -> None:
    by_class = {table.kernel: table for table in tables(paired_rows())}
    x, y = paired_samples(by_class["attention_prefill"], by_class["moe"], 2e12)
    assert x.shape == (3, 5)
    assert x[0].tolist() == [128.0, 2048.0, 2.0, 1.0, 2e12]  # s, hidden, top-k * batch, utilisation, bandwidth
    assert train_predictor(x, y)(x).shape == (3, 2)


def paired_rows() -> list[TimedRow]:
    from simulator.kernel import Moe

    rows = []
    for tokens in (128, 256, 512):
        rows.append(TimedRow(AttentionPrefill(1, tokens, tokens, 16, 16, 128), tokens * 1e-7, "made up"))
        rows.append(TimedRow(Moe(tokens, 2048, 768, 2, 8), tokens * 2e-7, "made up"))
    return rows


def test_the_raw_predictor_learns_inside_its_range() -> None:
    table = tables(cpu_rows(400, seed=8, noise=0.01))[0]
    predicted = raw_predictor(table)(table)
    assert np.median(np.abs(predicted / table.seconds - 1.0)) < 0.15
