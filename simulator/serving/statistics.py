"""Statistics: means with confidence intervals, significance tests, and the documents' acceptance, evaluated.

Requests of one run queue behind each other and are not independent; trials are. So a summary over requests describes
a run, and an interval that is to hold for the next run is taken over trial means. When two systems serve the same
requests, differences are taken request by request (paired): what they share cancels.
Sources: Student (1908); Welch (1947); Holm (1979); Efron & Tibshirani, An Introduction to the Bootstrap, ch. 8 and 16.
Documents: FA Pool, sections 4.4 and 5.7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95  # documents, section 5.7
DOCUMENTS_ALPHA = 0.01  # section 4.4: p < 0.01
DOCUMENTS_MAX_STD_RATIO = 0.03  # section 5.7: standard deviation < 3 % within categories
DOCUMENTS_MAX_TRIAL_RATIO = 0.05  # section 5.7: "variance < 5 % across runs", read as spread of trial means
RESAMPLES_AT_ONCE = 2**22  # numbers drawn at a time: 32 MiB


@dataclass(frozen=True, slots=True)
class Summary:
    """A sample in the unit of its values; ``low``..``high`` is the t interval of the mean. One value has no interval:
    std, low and high are NaN."""

    num: int
    mean: float
    std: float
    low: float
    high: float
    confidence: float

    @property
    def std_ratio(self) -> float:
        """std / mean."""
        return self.std / abs(self.mean) if self.mean else math.nan


@dataclass(frozen=True, slots=True)
class Test:
    """A two-sided test of equal means. ``statistic`` is t."""

    name: str
    difference: float
    statistic: float
    degrees_of_freedom: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """mean(a) / mean(b) with its bootstrap interval, and the two-sided p-value of "it is 1"."""

    value: float
    low: float
    high: float
    p_value: float
    num_resamples: int


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The documents' conditions on one category, as found. ``p_value`` should be adjusted (``holm``)."""

    p_value: float
    std_ratio: float
    trial_ratio: float

    @property
    def significant(self) -> bool:
        return self.p_value < DOCUMENTS_ALPHA

    @property
    def low_deviation(self) -> bool:
        return self.std_ratio < DOCUMENTS_MAX_STD_RATIO

    @property
    def reproducible(self) -> bool:
        return self.trial_ratio < DOCUMENTS_MAX_TRIAL_RATIO

    @property
    def accepted(self) -> bool:
        return self.significant and self.low_deviation and self.reproducible


def summarise(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> Summary:
    """mean ± t(1 − (1 − confidence)/2; n − 1) · std / √n, std with n − 1. ValueError on no or unfinite values."""
    sample = _sample(values)
    num, mean = len(sample), float(sample.mean())
    if num == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan, confidence)
    std = float(sample.std(ddof=1))
    half = _t_quantile(num - 1, (1 + confidence) / 2) * std / math.sqrt(num)
    return Summary(num, mean, std, mean - half, mean + half, confidence)


def summarise_trials(trials: Sequence[npt.ArrayLike], confidence: float = CONFIDENCE) -> Summary:
    """Over the means of independent trials: with three, t has 2 degrees of freedom (4.30 at 95 %)."""
    return summarise([_sample(trial).mean() for trial in trials], confidence)


def paired_t_test(a: npt.ArrayLike, b: npt.ArrayLike) -> Test:
    """Of a_i − b_i against 0, n − 1 degrees of freedom."""
    gap = _paired(a, b)
    return _t_test("paired t", float(gap.mean()), float(gap.var(ddof=1)) / len(gap), len(gap) - 1.0)


def welch_t_test(a: npt.ArrayLike, b: npt.ArrayLike) -> Test:
    """Of independent samples of unequal variance; Welch–Satterthwaite degrees of freedom
    (u + v)² / (u²/(n − 1) + v²/(m − 1)) with u = var(a)/n, v = var(b)/m."""
    first, second = _sample(a, at_least=2), _sample(b, at_least=2)
    difference = float(first.mean() - second.mean())
    u, v = (float(sample.var(ddof=1)) / len(sample) for sample in (first, second))
    below = u**2 / (len(first) - 1) + v**2 / (len(second) - 1)
    degrees = (u + v) ** 2 / below if below else float(len(first) + len(second) - 2)
    return _t_test("Welch's t", difference, u + v, degrees)


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    num_resamples: int = 10_000,
    confidence: float = CONFIDENCE,
) -> Ratio:
    """Ratio of means, requests drawn with replacement in pairs; percentile interval.

    p = 2·min(k + 1, N − k + 1)/(N + 1), at most 1, with k of N resampled ratios below 1 (half of those equal to it):
    never 0, since N resamples cannot show less than 2/(N + 1).
    """
    gap = _paired(a, b)
    above, below = _sample(a), _sample(b)
    if below.mean() <= 0 or (below < 0).any():
        raise ValueError("bootstrap: the ratio needs values of b that are not negative and not all 0")
    ratios = np.empty(num_resamples)
    chunk = max(1, RESAMPLES_AT_ONCE // len(gap))
    for first in range(0, num_resamples, chunk):
        picks = rng.integers(0, len(gap), (min(chunk, num_resamples - first), len(gap)))
        ratios[first : first + chunk] = above[picks].mean(axis=1) / below[picks].mean(axis=1)
    under = float((ratios < 1).sum() + (ratios == 1).sum() / 2)
    p_value = min(1.0, 2 * (min(under, num_resamples - under) + 1) / (num_resamples + 1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Ratio(float(above.mean() / below.mean()), float(low), float(high), p_value, num_resamples)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values that keep the chance of any false finding over all tests: the k-th smallest of n times
    n − k + 1, made monotone, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def accept(trials: Sequence[npt.ArrayLike], p_value: float) -> Acceptance:
    """The documents' conditions for one category: ``trials`` are its requests' values (or run times), by trial."""
    pooled = summarise(np.concatenate([_sample(trial) for trial in trials]))
    return Acceptance(p_value, pooled.std_ratio, summarise_trials(trials).std_ratio)


def _t_test(name: str, difference: float, variance: float, degrees: float) -> Test:
    """Constant samples: p is 1 if they agree and 0 if not."""
    if variance == 0:
        same = difference == 0
        return Test(name, difference, 0.0 if same else math.copysign(math.inf, difference), degrees, float(same))
    statistic = difference / math.sqrt(variance)
    return Test(name, difference, statistic, degrees, _t_two_sided(degrees, statistic))


def _t_two_sided(degrees: float, statistic: float) -> float:
    from scipy.special import stdtr  # 0.1 s to import, and only comparisons need it

    return float(2 * stdtr(degrees, -abs(statistic)))


def _t_quantile(degrees: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def _paired(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    first, second = _sample(a, at_least=2), _sample(b, at_least=2)
    if len(first) != len(second):
        raise ValueError(f"paired test: {len(first)} and {len(second)} values; pairs need as many of each")
    return first - second


def _sample(values: npt.ArrayLike, at_least: int = 1) -> Floats:
    sample = np.asarray(values, dtype=np.float64).ravel()
    if len(sample) < at_least or not np.isfinite(sample).all():
        raise ValueError(f"statistics: need at least {at_least} finite values, got {len(sample)} incl. unfinite ones")
    return sample
