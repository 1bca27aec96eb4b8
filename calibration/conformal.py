"""Split-conformal intervals: quantiles of what a model missed on rows it never saw.

With n held-out log errors the finite-sample quantile level of a 90 % interval is ceil(0.95·(n+1))/n for the
upper side and its mirror for the lower (Lei et al. 2018; Romano et al. 2019). Regions of predicted seconds get
quantiles of their own (Mondrian conformal), because short kernels are noisier than long ones.
"""

from __future__ import annotations

import numpy as np

from simulator.costs.physics import Array
from simulator.profile import Intervals

UPPER = 0.95
MIN_ROWS_A_REGION = 100
MAX_REGIONS = 6
WIDENING_PER_OCTAVE = 0.05  # assumed; docs/accuracy.md reports the errors seen beyond the range
DEFAULT_LOG_ERROR = 0.5  # with fewer than MIN_ROWS rows no quantile can be trusted
MIN_ROWS = 8


def quantiles(errors: Array, *, between: bool = False) -> tuple[float, float]:
    """p05 and p95 of held-out log errors, with the finite-sample level.

    ``between`` interpolates where the rank falls between two rows: with 50 rows the ceiling alone is worth 2 per cent.
    """
    ordered = np.sort(errors)
    rank = UPPER * (len(ordered) + 1)
    if rank > len(ordered):  # too few rows for the level: the extremes, half as wide again
        return 1.5 * min(float(ordered[0]), 0.0), 1.5 * max(float(ordered[-1]), 0.0)
    if between:
        ranks = np.arange(1.0, len(ordered) + 1.0)
        low, high = np.interp([len(ordered) + 1.0 - rank, rank], ranks, ordered)
        return float(low), float(high)
    return float(ordered[len(ordered) - int(np.ceil(rank))]), float(ordered[int(np.ceil(rank)) - 1])


def intervals(predicted_s: Array, measured_s: Array, *, between: bool = False) -> Intervals:
    """Intervals from predictions [n] and measurements [n] of rows that were not fitted; see :func:`quantiles`."""
    errors = np.log(measured_s / predicted_s)
    if len(errors) < MIN_ROWS:
        wide = (DEFAULT_LOG_ERROR,)
        return Intervals(edges_s=(), low=(-wide[0],), high=wide, widening_per_octave=WIDENING_PER_OCTAVE)
    regions = int(np.clip(len(errors) // MIN_ROWS_A_REGION, 1, MAX_REGIONS))
    edges = np.quantile(predicted_s, np.arange(1, regions) / regions)
    edges = np.unique(edges)
    region = np.searchsorted(edges, predicted_s, side="right")
    pairs = [quantiles(errors[region == i], between=between) for i in range(len(edges) + 1)]
    return Intervals(
        edges_s=tuple(edges.tolist()),
        low=tuple(low for low, _ in pairs),
        high=tuple(high for _, high in pairs),
        widening_per_octave=WIDENING_PER_OCTAVE,
    )
