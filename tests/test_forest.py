"""The forest that teaches networks: shapes it is asked about, and what they gain from its answers."""

from __future__ import annotations

from itertools import product

import numpy as np

from calibration.forest import MANY_ROWS, crossed, lessons, teacher, training_for
from calibration.network import Training, train
from calibration.rows import Table
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.learned import apply_residual
from simulator.costs.physics import GEMM_START, Array, Device

DEVICE = Device(312e12, 2.039e12, 108, 2)
GRID = np.array(list(product(2.0 ** np.arange(0, 13), 2.0 ** np.arange(6, 14), 2.0 ** np.arange(6, 14))))


def stepped(x: Array) -> Table:
    """GEMMs of a library that changes its kernel at thresholds: by 30 % for short ones, by 20 % for wide ones."""
    slower = 0.3 * ((x[:, 0] >= 32) & (x[:, 0] < 256)) - 0.2 * ((x[:, 1] >= 1024) & (x[:, 2] < 512))
    return Table("gemm", "bf16", x, PHYSICAL_MODELS["gemm"](x, GEMM_START, DEVICE).base_s * np.exp(slower))


def test_crossed_shapes_take_lengths_from_timed_rows_or_between_and_are_the_same_twice() -> None:
    table = stepped(GRID[::7])
    shapes = crossed(table, 2000, seed=3)
    assert np.array_equal(shapes, crossed(table, 2000, seed=3))
    assert (shapes.min(axis=0) >= table.x.min(axis=0)).all()
    assert (shapes.max(axis=0) <= table.x.max(axis=0)).all()
    for length, timed in zip(shapes.T, table.x.T, strict=True):
        # half by choice; between powers of two four bits leave 8 lengths an octave, of which one is such a power
        assert 0.5 < np.isin(length, timed).mean() < 0.7
        assert np.all(length % np.maximum(2.0 ** np.floor(np.log2(length)) / 8, 1.0) == 0)


def test_networks_that_a_forest_taught_are_misled_less_by_noise_around_thresholds() -> None:
    held = np.random.default_rng(0).random(len(GRID)) < 0.4
    fit, rest = stepped(GRID[~held]), stepped(GRID[held])
    features = PHYSICAL_MODELS["gemm"](fit.x, GEMM_START, DEVICE).features
    log_residual = np.log(fit.seconds / PHYSICAL_MODELS["gemm"](fit.x, GEMM_START, DEVICE).base_s)
    log_residual += 0.1 * np.random.default_rng(1).normal(size=len(log_residual))
    options, shape = Training(width=32, networks=1, steps=2500), PHYSICAL_MODELS["gemm"](rest.x, GEMM_START, DEVICE)

    def missed(features: Array, log_residual: Array) -> float:
        predicted = apply_residual(shape, train(features, log_residual, options))
        return float(np.abs(predicted / rest.seconds - 1.0).mean())

    taught = missed(*lessons(fit, dict(GEMM_START), DEVICE, log_residual, seed=0))
    assert taught < 0.8 * missed(features, log_residual)


def test_forest_and_boosted_trees_together_answer_for_untimed_shapes_around_thresholds() -> None:
    fit, rest = stepped(GRID[::3]), stepped(GRID[1::3])
    known, asked = (PHYSICAL_MODELS["gemm"](table.x, GEMM_START, DEVICE) for table in (fit, rest))
    log_residual, truth = np.log(fit.seconds / known.base_s), np.log(rest.seconds / asked.base_s)
    answers = teacher(known.features, log_residual, seed=0, boosted=1)(asked.features)
    assert np.abs(answers - truth).mean() < 0.1 * np.abs(truth).mean()


def test_only_matrix_products_are_taught_and_many_rows_make_fewer_and_wider_networks() -> None:
    table, options = stepped(GRID), Training(steps=7)
    many = Table("gemm", "bf16", np.ones((MANY_ROWS + 1, 3)), np.ones(MANY_ROWS + 1))
    experts = Table("moe", "bf16", np.ones((MANY_ROWS + 1, 9)), np.ones(MANY_ROWS + 1))
    assert training_for(experts, options) == options
    assert (training_for(table, options).networks, training_for(table, options).width) == (4, 64)
    assert (training_for(many, options).networks, training_for(many, options).width) == (3, 80)
