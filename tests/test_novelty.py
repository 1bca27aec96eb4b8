"""Intervals of values between the timed ones: as wide as what such a value adds, however good the shipped networks."""

from __future__ import annotations

from itertools import product

import numpy as np

from calibration.network import Training
from calibration.novelty import Fitted, novel_errors
from calibration.rows import Table
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.physics import GEMM_START, Device

DEVICE = Device(312e12, 2.039e12, 108, 2)
N_VALUES = 2.0 ** np.arange(6, 14)
GRID = np.array(list(product(2.0 ** np.arange(0, 13), N_VALUES, 2.0 ** np.arange(6, 14))))
OWN_ERROR = 0.2  # log seconds that each n has of its own, up or down, and that no other n tells


def test_a_column_whose_values_err_each_by_themselves_gets_that_error_whole() -> None:
    own = dict(zip(N_VALUES.tolist(), OWN_ERROR * np.array([1, -1, -1, 1, -1, 1, 1, -1]), strict=True))
    seconds = PHYSICAL_MODELS["gemm"](GRID, GEMM_START, DEVICE).base_s * np.exp([own[n] for n in GRID[:, 1].tolist()])
    random = np.random.default_rng(0).random(len(GRID)) < 0.1
    table = Table("gemm", "bf16", GRID, seconds)
    shipped_errors = 0.005 * np.random.default_rng(1).normal(size=int(random.sum()))  # ten times better than quick ones
    fitted = Fitted(table.take(~random), dict(GEMM_START), DEVICE, table.take(random), shipped_errors)
    novel = novel_errors(fitted, Training(width=32, networks=1, steps=1000))
    assert novel["n"].high - novel["n"].low > OWN_ERROR
    assert novel["k"].high - novel["k"].low < OWN_ERROR / 2
