"""Corrections: what operations of a class take beyond their kernels, in log space, shrunk towards nothing learned.

A line of log(measured / predicted) over log predicted seconds for every class; its interval is what the line leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from simulator.profile import Correction, Profile

Array = npt.NDArray[np.float64]
PRIOR_ROWS = 8.0
LINE_ROWS = 30  # fewer observations, or less than a factor 4 of spread: a constant
LINE_SPREAD_LOG = float(np.log(4.0))


def with_corrections(profile: Profile, observed: Mapping[str, Sequence[tuple[float, float]]]) -> Profile:
    """``observed``: operation class → (predicted, measured) seconds. Corrections add to those already there."""
    earlier = {one.operation: one for one in profile.corrections}
    for kind, rows in observed.items():
        pairs = np.array([(a, b) for a, b in rows if a > 0 and b > 0], dtype=np.float64).reshape(-1, 2)
        if len(pairs):
            earlier[kind] = _combined(earlier.get(kind), fit(kind, pairs[:, 0], pairs[:, 1]))
    return profile.model_copy(update={"corrections": tuple(sorted(earlier.values(), key=lambda one: one.operation))})


def fit(kind: str, predicted_s: Array, measured_s: Array) -> Correction:
    """A line of log(measured/predicted) over log predicted seconds, robust to stragglers (trimmed once)."""
    x, y = np.log(predicted_s), np.log(measured_s / predicted_s)
    keep = np.abs(y - np.median(y)) <= 3.0 * max(float(np.median(np.abs(y - np.median(y)))), 0.02) * 1.4826
    shrink = keep.sum() / (keep.sum() + PRIOR_ROWS)
    slope, center = 0.0, float(np.median(x[keep]))
    if keep.sum() >= LINE_ROWS and np.ptp(x[keep]) >= LINE_SPREAD_LOG:
        slope = float(np.clip(np.polyfit(x[keep] - center, y[keep], 1)[0] * shrink, -0.5, 0.5))
    offset = float(np.median(y[keep] - slope * (x[keep] - center)) * shrink)
    left = y - offset - slope * (x - center)
    low, high = np.percentile(left, [5, 95])
    return Correction(
        operation=kind,
        log_offset=offset,
        log_slope=slope,
        center_s=float(np.exp(center)),
        low_s=float(predicted_s.min()),
        high_s=float(predicted_s.max()),
        log_low=min(float(low), 0.0),
        log_high=max(float(high), 0.0),
        num_rows=len(x),
    )


def _combined(before: Correction | None, now: Correction) -> Correction:
    """A correction of corrected predictions: the offsets add, the newer line's slope and interval hold."""
    if before is None:
        return now
    return now.model_copy(
        update={
            "log_offset": before.log_offset + now.log_offset,
            "log_slope": before.log_slope + now.log_slope,
            "num_rows": before.num_rows + now.num_rows,
        }
    )
