"""Novelty: how much wider an interval must be for a value that lies inside the range but between the timed ones.

Rows held out at random have neighbours with the same lengths, heads or widths; a shape with a value nobody timed has
not. So quick networks are trained without a few inner values of every column, and what they miss on the rows where
just that column is new gives that column an interval of its own. Quick networks miss more than the shipped ones, but
only of what longer training learns: the square of their error on random rows is taken from that on new values, and that
of the shipped ones put in its place. What a new value adds stays whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from calibration.conformal import quantiles
from calibration.network import Training, train
from calibration.rows import Table
from simulator.costs.columns import range_columns
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.learned import apply_residual
from simulator.costs.physics import Array, Device
from simulator.profile import Range

ROUNDS = 3
QUICK_STEPS = 3000
VALUES_A_HOLE = 16  # a column of so many values loses two neighbours instead of one (tables time m and m + 1)
MIN_VALUES = 5
MOST_VALUES = 256  # a column of more has no grid
MIN_ROWS = 30


@dataclass(frozen=True, slots=True)
class Fitted:
    """A table, its physics, and what the shipped model missed (log seconds) on ``random``, rows it never saw."""

    table: Table
    coefficients: dict[str, float]
    device: Device
    random: Table
    random_errors: Array


def grid(values: Array) -> tuple[float, ...]:
    """The distinct values of a column, or () when it has no grid."""
    distinct = np.unique(values)
    return tuple(distinct.tolist()) if len(distinct) <= MOST_VALUES else ()


def novel_errors(fitted: Fitted, training: Training) -> dict[str, Range]:
    """p05 and p95 of log(measured/predicted) by the column whose value is new; columns with few values are left out."""
    columns = range_columns(fitted.table.kernel, fitted.table.x)
    inner = {name: np.unique(values)[1:-1] for name, values in columns.items()}
    inner = {name: values for name, values in inner.items() if MIN_VALUES <= len(values) + 2 <= MOST_VALUES}
    quick = replace(training, networks=1, steps=min(QUICK_STEPS, training.steps))
    missed: dict[str, list[Array]] = {name: [] for name in inner}
    for number in range(ROUNDS):
        rng = np.random.default_rng([training.seed, number])
        held = {name: np.isin(columns[name], _hole(values, rng)) for name, values in inner.items()}
        for name, errors in _round(fitted, held, replace(quick, seed=training.seed + number)).items():
            missed[name].append(errors)
    pooled = {name: np.concatenate(errors) for name, errors in missed.items() if errors}
    ranges = {name: quantiles(errors) for name, errors in pooled.items() if len(errors) >= MIN_ROWS}
    return {name: Range(low=min(low, 0.0), high=max(high, 0.0)) for name, (low, high) in ranges.items()}


def _hole(values: Array, rng: np.random.Generator) -> Array:
    width = 2 if len(values) >= VALUES_A_HOLE else 1
    start = int(rng.integers(0, len(values) - width + 1))
    return values[start : start + width]


def _round(fitted: Fitted, held: dict[str, np.typing.NDArray[np.bool_]], quick: Training) -> dict[str, Array]:
    count = np.sum(list(held.values()), axis=0)
    kept = count == 0
    if kept.sum() < MIN_ROWS:
        return {}
    model = PHYSICAL_MODELS[fitted.table.kernel]
    shape = model(fitted.table.x, fitted.coefficients, fitted.device)
    log_residual = np.log(fitted.table.seconds / shape.base_s)
    residual = train(shape.features[kept], log_residual[kept], quick)
    errors = np.log(fitted.table.seconds / apply_residual(shape, residual))
    on_random = model(fitted.random.x, fitted.coefficients, fitted.device)
    quick_size = _size(np.log(fitted.random.seconds / apply_residual(on_random, residual)))
    shipped_size = _size(fitted.random_errors)
    return {name: _as_shipped(errors[mask & (count == 1)], quick_size, shipped_size) for name, mask in held.items()}


def _size(errors: Array) -> float:
    return float(np.quantile(np.abs(errors), 0.9))


def _as_shipped(errors: Array, quick_size: float, shipped_size: float) -> Array:
    """Errors on new values, shrunk by what the shipped networks miss less than the quick ones on random rows."""
    seen = max(_size(errors), 1e-9) if len(errors) else 1.0
    size = np.sqrt(max(seen**2 - quick_size**2, 0.0) + shipped_size**2)
    return errors * min(1.0, float(size) / seen)
