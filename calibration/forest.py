"""A forest as teacher: what networks should say of shapes that nobody timed.

A library chooses its kernel by thresholds, which a forest of extremely randomised trees over the physical features
follows better than a smooth network that saw the same rows. A forest is too large for a profile and too slow for a
million predictions a second. So it is fitted to the rows, asked for the log residual of crossed shapes (every length
from another timed row, or between the timed ones), and the networks learn rows and answers together, one part to two.
Source: Geurts et al. 2006 (extremely randomised trees); Hinton et al. 2015 (distillation).
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from calibration.rows import Table
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.physics import Array, Device

TREES, MIN_LEAF, FEATURE_SHARE = 100, 2, 1.0  # chosen on rows inside the A100's training part
CROSSED_ROWS = 30_000
TIMED_SHARE = 0.5
SIGNIFICANT_BITS = 4  # of lengths between the timed ones: 2048, 2304, 2560, as models have them
TAUGHT = ("gemm",)  # classes whose columns may be combined at will
MOST_ROWS = 15_000  # from more, the networks find the thresholds themselves: docs/accuracy.md, H200


def teaches(table: Table) -> bool:
    """Whether a forest's answers are worth having for this table."""
    return table.kernel in TAUGHT and len(table.seconds) <= MOST_ROWS


def crossed(table: Table, num_rows: int, seed: int) -> Array:
    """Shapes [num_rows, columns]: of every column half the lengths come from timed rows, each from another, and half
    lie anywhere in the column's range (even in octaves), as networks will be asked of lengths that nobody timed."""
    rng = np.random.default_rng(seed)
    return np.stack([_lengths(values, num_rows, rng) for values in table.x.T], axis=1)


def _lengths(timed: Array, num_rows: int, rng: np.random.Generator) -> Array:
    drawn = np.exp2(rng.uniform(np.log2(timed.min()), np.log2(timed.max()), num_rows))
    unit = np.exp2(np.maximum(np.floor(np.log2(drawn)) - SIGNIFICANT_BITS + 1, 0))
    return np.where(rng.random(num_rows) < TIMED_SHARE, rng.choice(timed, num_rows), np.rint(drawn / unit) * unit)


def lessons(
    table: Table, coefficients: dict[str, float], device: Device, log_residual: Array, seed: int
) -> tuple[Array, Array]:
    """(features, log residuals) for the networks: the rows, repeated to half as many, and the forest's answers."""
    model = PHYSICAL_MODELS[table.kernel]
    features = model(table.x, coefficients, device).features
    forest = ExtraTreesRegressor(TREES, min_samples_leaf=MIN_LEAF, max_features=FEATURE_SHARE, random_state=seed)
    forest.fit(features, log_residual)
    other = model(crossed(table, CROSSED_ROWS, seed), coefficients, device).features
    times = max(1, CROSSED_ROWS // len(table.seconds) // 2)
    return (
        np.concatenate([features] * times + [other]),
        np.concatenate([log_residual] * times + [forest.predict(other)]),
    )
