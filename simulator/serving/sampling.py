"""Sampling: requests drawn from a workload's buckets — the documents' 1000 sequences per category, in three trials.

Lengths inside a bucket are log-uniform (each doubling equally likely), uniform, or all the bucket's planned length; an
open last bucket ends at twice its planned length. Arrivals are a Poisson stream, or all at once. What it ignores: the
documents' "real-world text distribution", of which they give no data: use a trace (``trace.py``) for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulator.errors import SpecError
from simulator.formats.trace import Request
from simulator.workload import Bucket, Workload

Lengths = Literal["log_uniform", "uniform", "planned"]
PER_CATEGORY = 1000  # sequences; FA Pool documents, section 4.5
NUM_TRIALS = 3  # independent trials; section 5.7


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests and, for each, the number of its bucket."""

    requests: tuple[Request, ...]
    category: npt.NDArray[np.int64]


def sample_trials(
    workload: Workload,
    rng: np.random.Generator,
    *,
    requests_per_s: float | None = None,
    per_category: int = PER_CATEGORY,
    num_trials: int = NUM_TRIALS,
    lengths: Lengths = "log_uniform",
) -> tuple[Sample, ...]:
    """Independent samples of ``per_category`` requests a bucket in random order, whatever the buckets' shares.

    ``requests_per_s`` None: the workload's rate; if it has none either, all requests arrive at 0 s.
    """
    rate = workload.requests_per_s if requests_per_s is None else requests_per_s
    if rate is not None and not 0 < rate < float("inf"):
        raise SpecError(f"sampling: requests_per_s {rate} must be above 0")
    if per_category < 1 or num_trials < 1:
        raise SpecError(f"sampling: {per_category} requests × {num_trials} trials; need at least 1 of each")
    return tuple(_sample(workload, stream, rate, per_category, lengths) for stream in rng.spawn(num_trials))


def _sample(
    workload: Workload, rng: np.random.Generator, rate: float | None, per_category: int, lengths: Lengths
) -> Sample:
    category = rng.permutation(np.repeat(np.arange(len(workload.buckets)), per_category))
    prompts = np.empty(len(category), dtype=np.int64)
    for number, bucket in enumerate(workload.buckets):
        prompts[category == number] = sample_lengths(bucket, per_category, rng, lengths)
    gaps_s = np.zeros(len(category)) if rate is None else rng.exponential(1 / rate, len(category))
    gaps_s[0] = 0.0
    outputs = [bucket.output_tokens for bucket in workload.buckets]
    rows = zip(np.cumsum(gaps_s).tolist(), prompts.tolist(), category.tolist(), strict=True)
    return Sample(tuple(Request(arrival_s, prompt, outputs[number]) for arrival_s, prompt, number in rows), category)


def sample_lengths(bucket: Bucket, num: int, rng: np.random.Generator, lengths: Lengths) -> npt.NDArray[np.int64]:
    """``num`` prompt lengths in [min_tokens, max_tokens); at least 1."""
    low = max(1, bucket.min_tokens)
    high = 2 * bucket.tokens if bucket.max_tokens is None else bucket.max_tokens
    high = max(low + 1, high)
    match lengths:
        case "planned":
            return np.full(num, bucket.tokens, dtype=np.int64)
        case "uniform":
            return rng.integers(low, high, num)
        case "log_uniform":
            drawn = np.exp(rng.uniform(np.log(low), np.log(high), num)).astype(np.int64)
            return np.clip(drawn, low, high - 1)
