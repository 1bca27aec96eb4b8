"""Folds: what a model misses on rows it was made without, where rows are too few for any to be kept back.

Leave-one-out errors in closed form keep the coefficients and lengths that all rows chose, and come out too small; so
everything is fitted again without each fold. Fewer rows make it a little worse than the model that is shipped.
Source: Vovk 2015 (cross-conformal predictors); Barber et al. 2021 (CV+).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibration.rows import Table
from simulator.costs.physics import Array

FOLDS = 5
Predictor = Callable[[Table], Array]  # rows → their seconds


def held_out_seconds(table: Table, learn: Callable[[Table], Predictor]) -> Array:
    """Seconds [rows], each by what ``learn`` makes of the other folds; the same every time."""
    num_rows = len(table.seconds)
    fold = np.random.default_rng(0).permutation(num_rows) % min(FOLDS, num_rows)
    seconds = np.empty(num_rows)
    for number in np.unique(fold):
        seconds[fold == number] = learn(table.take(fold != number))(table.take(fold == number))
    return seconds
