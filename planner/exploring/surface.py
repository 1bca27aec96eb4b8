"""Surface: a what-if grid at one batch and network rate: seconds, winners, and the threshold with its band.

Vectorised over all cells and cheap (under a millisecond), so that a slider can follow the hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.evaluate import NETWORK_LOG_ERROR
from planner.exploring.whatif import POOLED, RATES, SCHEMES, Floats, Slice

BASE = SCHEMES.index("base alone")
BAND = float(np.expm1(NETWORK_LOG_ERROR))
"""Half-width of the threshold's band: pool over base alone within ± this; the error assumed of transfers."""
Winners = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Surface:
    """``seconds[l, p, s]``: NaN where a scheme does not apply; ``fits``: it has memory enough."""

    seconds: Floats
    fits: npt.NDArray[np.bool_]

    @property
    def possible(self) -> Floats:
        """Seconds; infinite where a scheme does not apply or fit."""
        return np.where(np.isnan(self.seconds) | ~self.fits, np.inf, self.seconds)

    @property
    def winners(self) -> Winners:
        """Scheme of every (length, pool); −1 where none fits. Fewer GPUs are never taken: a column uses all of its."""
        best = self.possible.argmin(axis=2)
        return np.where(np.isfinite(self.possible.min(axis=2)), best, -1)


def surface(slices: Mapping[int, Slice], batch: float, rate: float) -> Surface:
    """Between the two batches around ``batch`` (linear: seconds and bytes of a step are nearly
    a constant and a part a sequence), at ``rate``."""
    known = sorted(slices)
    low = max((number for number in known if number <= batch), default=known[0])
    high = min((number for number in known if number >= batch), default=known[-1])
    weight = 0.0 if low == high else (batch - low) / (high - low)
    one, two = (_at_rate(slices[number].seconds, rate) for number in (low, high))
    mixed = (1 - weight) * one + weight * two
    seconds = np.where(np.isnan(mixed), np.where(weight < 0.5, one, two), mixed)
    free = (1 - weight) * slices[low].free_bytes + weight * slices[high].free_bytes
    return Surface(seconds, np.where(np.isnan(free), ~np.isnan(seconds), free >= 0))


def _at_rate(seconds: Floats, rate: float) -> Floats:
    """Linear in 1/rate between simulated rates; outside them, along the nearest segment."""
    inverse = 1 / np.array(RATES[::-1])
    values = seconds[..., ::-1]
    upper = int(np.clip(np.searchsorted(inverse, 1 / rate), 1, len(inverse) - 1))
    weight = (1 / rate - inverse[upper - 1]) / (inverse[upper] - inverse[upper - 1])
    mixed = (1 - weight) * values[..., upper - 1] + weight * values[..., upper]
    return np.asarray(np.maximum(mixed, 0.0))


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a pool of one size begins to beat the base alone; tokens. None: not on this grid. ``low`` and ``high``:
    where it would if pooled times were ``BAND`` shorter or longer."""

    pool: int
    tokens: float | None
    low: float | None
    high: float | None


def thresholds(found: Surface, lengths: tuple[int, ...], pools: tuple[int, ...]) -> tuple[Crossing, ...]:
    """Of every pool size; lengths between grid points by the logarithms of length and of the two times' ratio."""
    base = found.possible[:, 0, BASE]
    numbers = [SCHEMES.index(name) for name in POOLED]
    crossings = []
    for index, pool in enumerate(pools):
        if pool:
            pooled = found.possible[:, index, numbers].min(axis=1)
            ends = [_crossing(pooled * factor, base, lengths) for factor in (1.0, 1 / (1 + BAND), 1 + BAND)]
            crossings.append(Crossing(pool, *ends))
    return tuple(crossings)


def _crossing(pooled: Floats, base: Floats, lengths: tuple[int, ...]) -> float | None:
    """The shortest length from which on pooled is faster (or alone fits) up to the longest."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.log(pooled / base)
    wins = np.where(np.isfinite(base), ratio < 0, np.isfinite(pooled))
    if not wins[-1]:
        return None
    losing = np.flatnonzero(~wins)
    if not len(losing):
        return float(lengths[0])
    last = int(losing[-1])
    if not (np.isfinite(ratio[last]) and np.isfinite(ratio[last + 1])):
        return float(lengths[last + 1])
    share = ratio[last] / (ratio[last] - ratio[last + 1])
    return float(lengths[last] * (lengths[last + 1] / lengths[last]) ** share)
