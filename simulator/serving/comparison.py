"""Comparison: two systems that served the same requests, category by category, by the documents' protocol.

Per category: each system's mean over trials with its t interval, the ratio of means with a paired bootstrap interval
over all requests, and two paired tests. The one over requests is what the documents' 1000 sequences ask for; requests
that share a queue are not independent, so it is optimistic. The one over trial means is not, and has 2 degrees of
freedom. p-values are Holm-adjusted over the categories. Source: FA Pool documents, sections 4.4, 4.5 and 5.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.metrics import Floats, Ints
from simulator.serving.statistics import (
    Acceptance,
    Ratio,
    Summary,
    accept,
    holm,
    paired_bootstrap,
    paired_t_test,
    summarise_trials,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One category. ``ratio``: baseline over ours, above 1 where ours is smaller (a time: faster)."""

    category: str
    baseline: Summary
    ours: Summary
    ratio: Ratio
    request_p_value: float
    trial_p_value: float
    acceptance: Acceptance


def compare(
    names: Sequence[str],
    categories: Sequence[Ints],
    baseline: Sequence[Floats],
    ours: Sequence[Floats],
    rng: np.random.Generator,
) -> tuple[Comparison, ...]:
    """``categories[t][i]``: the number of request i's category in trial t; ``baseline`` and ``ours``: a metric's value
    of it in either system, e.g. ``served.ttft_s``. Requests without a value (NaN) in either are left out of both."""
    if not 2 <= len(categories) == len(baseline) == len(ours):
        counts = f"{len(categories)}, {len(baseline)} and {len(ours)} trials"
        raise ValueError(f"comparison: {counts}; need as many of each, at least 2")
    trials = [_pairs(len(names), *trial) for trial in zip(categories, baseline, ours, strict=True)]
    pairs = [[trial[number] for trial in trials] for number in range(len(names))]
    pooled = [np.concatenate(trials_of, axis=1) for trials_of in pairs]
    means = [np.array([pair.mean(axis=1) for pair in trials_of]).T for trials_of in pairs]
    by_request = holm([paired_t_test(*both).p_value for both in pooled])
    by_trial = holm([paired_t_test(*both).p_value for both in means])
    return tuple(
        Comparison(
            category=name,
            baseline=summarise_trials([pair[0] for pair in pairs[number]]),
            ours=summarise_trials([pair[1] for pair in pairs[number]]),
            ratio=paired_bootstrap(pooled[number][0], pooled[number][1], rng, num_resamples=2000),
            request_p_value=by_request[number],
            trial_p_value=by_trial[number],
            acceptance=accept([pair[1] for pair in pairs[number]], by_request[number]),
        )
        for number, name in enumerate(names)
    )


def _pairs(num_categories: int, category: Ints, baseline: Floats, ours: Floats) -> list[Floats]:
    """[2, requests] of each category of one trial."""
    both = np.stack((baseline, ours))
    valid = np.isfinite(both).all(axis=0)
    return [both[:, valid & (category == number)] for number in range(num_categories)]
