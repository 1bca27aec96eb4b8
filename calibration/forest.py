"""A forest as teacher: what networks should say of shapes that nobody timed.

A library chooses its kernel by thresholds, which a forest of extremely randomised trees over the physical features
follows better than a smooth network that saw the same rows. A forest is too large for a profile and too slow for a
million predictions a second. So it is fitted to the rows, asked for the log residual of crossed shapes (every length
from another timed row, or between the timed ones), and the networks learn rows and answers together, one part to two
or three. Where rows are many, gradient boosted trees teach beside the forest, which wants more answers and wider
networks (:func:`training_for`): on inner rows of the A100's 9,000 they gained nothing.
Source: Geurts et al. 2006 (extremely randomised trees); Friedman 2001 (boosting); Hinton et al. 2015 (distillation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

from calibration.network import Training
from calibration.rows import Table
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.physics import Array, Device

TREES, MIN_LEAF, FEATURE_SHARE = 100, 2, 1.0  # chosen on rows inside the A100's training part
BOOSTED = 2  # of them, each with its own order of features
BOOSTING = {"loss": "absolute_error", "learning_rate": 0.06, "max_iter": 700, "max_leaf_nodes": 48,
            "min_samples_leaf": 10, "l2_regularization": 1.0, "max_features": 0.4, "early_stopping": False}  # fmt: skip
MANY_ROWS = 15_000
CROSSED_ROWS, MANY_CROSSED_ROWS = 30_000, 90_000
STEPS, MANY_STEPS = 18_000, 28_000  # a library's choice of kernel takes longer to learn
MANY_NETWORKS, MANY_WIDTH = 3, 80  # as fast as four of 64
TIMED_SHARE = 0.5
SIGNIFICANT_BITS = 4  # of lengths between the timed ones: 2048, 2304, 2560, as models have them
TAUGHT = ("gemm",)  # classes whose columns may be combined at will
Teacher = Callable[[Array], Array]  # features [n, F] → log residuals [n]


def teaches(table: Table) -> bool:
    """Whether trees' answers are worth having for this table."""
    return table.kernel in TAUGHT


def training_for(table: Table, training: Training) -> Training:
    """How networks of this table are trained, if any differently from ``training``."""
    if not teaches(table):
        return training
    if len(table.seconds) <= MANY_ROWS:
        return replace(training, steps=STEPS)
    return replace(training, steps=MANY_STEPS, networks=MANY_NETWORKS, width=MANY_WIDTH)


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
    """(features, log residuals) for the networks: the rows, repeated to half as many, and the trees' answers."""
    model = PHYSICAL_MODELS[table.kernel]
    features = model(table.x, coefficients, device).features
    many = len(table.seconds) > MANY_ROWS
    num_rows = MANY_CROSSED_ROWS if many else CROSSED_ROWS
    other = model(crossed(table, num_rows, seed), coefficients, device).features
    answers = teacher(features, log_residual, seed, boosted=BOOSTED if many else 0)(other)
    times = max(1, num_rows // len(table.seconds) // 2)
    return np.concatenate([features] * times + [other]), np.concatenate([log_residual] * times + [answers])


def teacher(features: Array, log_residual: Array, seed: int, *, boosted: int) -> Teacher:
    """A forest, or its mean with that of ``boosted`` runs of gradient boosting."""
    forest = ExtraTreesRegressor(TREES, min_samples_leaf=MIN_LEAF, max_features=FEATURE_SHARE, random_state=seed)
    forest.fit(features, log_residual)
    others = [
        HistGradientBoostingRegressor(**BOOSTING, random_state=seed + number).fit(features, log_residual)
        for number in range(boosted)
    ]
    share = 0.5 if others else 0.0

    def answer(asked: Array) -> Array:
        answers = (1.0 - share) * forest.predict(asked)
        return np.asarray(sum((share / boosted * trees.predict(asked) for trees in others), answers))

    return answer
