"""Statistics against closed forms, hand-worked cases and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulator import metrics
from simulator.serving.comparison import compare
from simulator.serving.statistics import (
    accept,
    holm,
    paired_bootstrap,
    paired_t_test,
    summarise,
    summarise_trials,
    welch_t_test,
)

FLOATS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


def test_summary_of_three_values_by_hand() -> None:
    summary = summarise([1.0, 2.0, 3.0])
    # std = 1; t(0.975; 2 degrees) = 4.302653; half = 4.302653 / √3 = 2.484138
    assert (summary.num, summary.mean, summary.std) == (3, 2.0, 1.0)
    assert summary.high - summary.mean == pytest.approx(2.484138, abs=1e-6)
    assert summary.mean - summary.low == pytest.approx(2.484138, abs=1e-6)
    assert summary.std_ratio == 0.5


def test_interval_with_two_degrees_of_freedom_is_the_closed_form() -> None:
    # t has the inverse (2p − 1)·√(2 / (4p(1 − p))) at 2 degrees of freedom
    p = 0.995
    t = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    summary = summarise([4.0, 6.0, 8.0], confidence=0.99)
    assert summary.high - summary.mean == pytest.approx(t * 2 / math.sqrt(3), rel=1e-9)


@given(FLOATS)
def test_interval_is_scipys(values: list[float]) -> None:
    summary = summarise(values)
    scale = stats.sem(values)
    if scale > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale)
        assert (summary.low, summary.high) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    assert math.isnan(summarise([3.0]).low)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_missing_values_raise(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        summarise(values)


def test_trials_are_summarised_by_their_means() -> None:
    trials = [[1.0, 3.0], [2.0, 2.0, 5.0], [1.0]]
    assert summarise_trials(trials) == summarise([2.0, 3.0, 1.0])


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = [s.low <= 5 <= s.high for s in (summarise(rng.normal(5, 2, 3)) for _ in range(4000))]
    # 95 % of 4000; three standard deviations are 3·√(0.95·0.05/4000) = 1.03 %
    assert np.mean(hits) == pytest.approx(0.95, abs=0.0104)


def test_welch_is_scipys() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, b = rng.normal(0, 1, rng.integers(2, 40)), rng.normal(0.5, 3, rng.integers(2, 40))
        ours, theirs = welch_t_test(a, b), stats.ttest_ind(a, b, equal_var=False)
        assert (ours.statistic, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
        assert ours.degrees_of_freedom == pytest.approx(theirs.df, rel=1e-9)


def test_paired_is_scipys() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        a = rng.normal(0, 1, rng.integers(2, 40))
        b = a + rng.normal(0.1, 0.5, len(a))
        ours, theirs = paired_t_test(a, b), stats.ttest_rel(a, b)
        assert (ours.statistic, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)


def test_a_test_with_two_degrees_of_freedom_by_hand() -> None:
    # differences 1, 2, 3: t = 2/(1/√3) = 3.4641; p = 1 − t/√(2 + t²) = 1 − 3.4641/√14 = 0.0741799
    test = paired_t_test([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert test.statistic == pytest.approx(2 * math.sqrt(3))
    assert test.p_value == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14), rel=1e-12)


def test_constant_samples_are_equal_or_certainly_different() -> None:
    assert welch_t_test([1.0, 1.0], [1.0, 1.0]).p_value == 1
    assert welch_t_test([1.0, 1.0], [2.0, 2.0]).p_value == 0


def test_pairs_need_as_many_of_each() -> None:
    with pytest.raises(ValueError, match="pairs"):
        paired_t_test([1.0, 2.0], [1.0, 2.0, 3.0])


def test_pairing_finds_what_independent_samples_hide() -> None:
    rng = np.random.default_rng(4)
    base = rng.lognormal(0, 1, 1000)
    ours = base * rng.normal(0.97, 0.02, 1000)
    assert welch_t_test(ours, base).p_value > 0.05
    assert paired_t_test(ours, base).p_value < 1e-10
    ratio = paired_bootstrap(ours, base, rng, num_resamples=2000)
    assert ratio.low < 0.97 < ratio.high < 1
    assert ratio.p_value == pytest.approx(2 / 2001)


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(10, 1, 2000)
    ratio = paired_bootstrap(values, np.ones(2000), rng, num_resamples=4000)
    half = 1.96 * values.std() / math.sqrt(2000)  # 0.0438
    assert ratio.value == pytest.approx(values.mean())
    # the 2.5 % quantile of 4000 resamples is known to about ±2.5 % of half
    assert ratio.high - ratio.value == pytest.approx(half, rel=0.08)
    assert ratio.value - ratio.low == pytest.approx(half, rel=0.08)


def test_bootstrap_is_the_same_with_the_same_generator_and_certain_of_equals() -> None:
    a, b = np.arange(1.0, 50), np.arange(2.0, 51)
    first, again = (paired_bootstrap(a, b, np.random.default_rng(6), num_resamples=500) for _ in range(2))
    assert first == again
    assert paired_bootstrap(a, a, np.random.default_rng(6), num_resamples=500).p_value == 1


def test_false_alarms_are_as_rare_as_alpha() -> None:
    rng = np.random.default_rng(7)
    alarms = [paired_t_test(rng.normal(0, 1, 20), rng.normal(0, 1, 20)).p_value < 0.05 for _ in range(4000)]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.0104)  # three standard deviations


def test_holm_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 → ×4 0.02, ×3 0.03, ×2 0.06, ×1 0.04 raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    assert holm([0.9, 0.8]) == (1.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_nor_exceeds_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, len(p_values) * raw)


def test_documents_acceptance_is_evaluated_condition_by_condition() -> None:
    steady = [[1.00, 1.01, 0.99]] * 3
    assert accept(steady, 0.001).accepted
    assert not accept(steady, 0.01).significant  # p < 0.01, not ≤
    spread = accept([[0.5, 1.5, 1.0]] * 3, 0.001)  # what lengths from 512 to 2048 tokens do to any time
    assert spread.reproducible
    assert not spread.low_deviation
    drifting = accept([[1.0, 1.0], [1.2, 1.2], [0.8, 0.8]], 0.001)  # means 1, 1.2, 0.8: std 0.2, 20 %
    assert drifting.trial_ratio == pytest.approx(0.2)
    assert not drifting.reproducible


def test_comparison_of_two_categories_of_which_one_differs() -> None:
    rng = np.random.default_rng(8)
    categories = [np.repeat([0, 1], 500) for _ in range(3)]
    baseline = [rng.lognormal(0, 0.01, 1000) for _ in range(3)]
    halved = [values * np.where(category == 1, 0.5, 1.0) for values, category in zip(baseline, categories, strict=True)]
    ours = [values * rng.normal(1, 0.001, 1000) for values in halved]
    ours[0][0] = math.nan  # a request without a value in one system is left out of both
    same, faster = compare(("short", "long"), categories, baseline, ours, rng)
    assert (same.category, faster.category) == ("short", "long")
    assert same.ratio.low < 1 < same.ratio.high
    assert same.request_p_value > 0.01
    assert not same.acceptance.accepted
    assert faster.ratio.value == pytest.approx(2, rel=1e-3)
    assert faster.request_p_value < 1e-10
    assert faster.trial_p_value < 0.01
    assert faster.acceptance.accepted
    assert faster.baseline.num == 3
    assert faster.baseline.mean / faster.ours.mean == pytest.approx(2, rel=1e-3)


def test_comparison_needs_two_trials_of_each() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        compare(("all",), [np.zeros(4, dtype=np.int64)], [np.ones(4)], [np.ones(4)], np.random.default_rng(9))


def test_every_metric_is_defined_once() -> None:
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)
    for metric in metrics.ALL:
        assert metric.unit
        assert metric.definition.endswith(".")
    declared = {value for value in vars(metrics).values() if isinstance(value, metrics.Metric)}
    assert declared == set(metrics.ALL)


@pytest.mark.parametrize(
    ("tokens", "forward_ms", "printed"),
    [(2048, 78, 26.3), (8192, 245, 33.4), (16384, 892, 18.4), (8192, 117, 70.0), (512, 45, 11.4)],
)
def test_documents_tps_is_tokens_over_forward_time(tokens: int, forward_ms: float, printed: float) -> None:
    # their table prints 25.6, 33.4, 18.3, 83.5 and 22.2
    assert metrics.documents_tps(tokens, forward_ms / 1000) == pytest.approx(printed, abs=0.05)


def test_documents_gap_tpot_divides_every_gap_by_the_number_of_tokens() -> None:
    assert metrics.documents_gap_tpot_s(np.array([0.02, 0.04])) == pytest.approx(0.015)  # mean(10 ms, 20 ms)
