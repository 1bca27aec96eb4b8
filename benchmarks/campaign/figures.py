"""Figures: how wrong predictions were, and what it would have cost to trust them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

BOOTSTRAPS = 1000
LEVEL = 0.90


@dataclass(frozen=True, slots=True)
class Result:
    """One candidate of one cell: what was predicted, and every round's seconds. ``apart``: the least log by which two
    of the cell's predictions must differ for their order to be sure."""

    cell: str
    phase: str
    tokens: int
    scheme: str
    name: str
    predicted_s: float
    p05_s: float
    p95_s: float
    durations_s: tuple[float, ...]
    apart: float = math.inf

    @property
    def measured_s(self) -> float:
        return median(self.durations_s)

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1

    @property
    def inside(self) -> float:
        """The share of single rounds in the interval, which is one of single runs."""
        return sum(self.p05_s <= seconds <= self.p95_s for seconds in self.durations_s) / len(self.durations_s)

    @property
    def spread(self) -> float:
        """Half of the middle 90 % of the rounds, over the median: what no prediction can know."""
        low, high = np.quantile(self.durations_s, [0.05, 0.95])
        return float(high - low) / 2 / self.measured_s


@dataclass(frozen=True, slots=True)
class CellFigures:
    """One question: the regret of trusting the prediction, with its interval over resampled rounds."""

    cell: str
    chosen: str
    best: str
    regret: float
    regret_low: float
    regret_high: float
    tau: float
    tau_distinct: float
    too_close: bool
    hit: bool


def cell_figures(results: Sequence[Result]) -> CellFigures:
    """``too_close``: the two predicted fastest are not far enough apart; a hit: then they really are no further, else
    the chosen one really is the best."""
    measured = [one.measured_s for one in results]
    predicted = [one.predicted_s for one in results]
    chosen = int(np.argmin(predicted))
    best = int(np.argmin(measured))
    regrets = resampled_regrets(np.array([one.durations_s for one in results]), chosen)
    low, high = np.quantile(regrets, [0.05, 0.95])
    rival = sorted(range(len(predicted)), key=predicted.__getitem__)[1]
    apart = results[chosen].apart
    too_close = math.log(predicted[rival] / predicted[chosen]) <= apart
    hit = abs(math.log(measured[rival] / measured[chosen])) <= apart if too_close else chosen == best
    return CellFigures(
        results[0].cell,
        results[chosen].name,
        results[best].name,
        measured[chosen] / measured[best] - 1,
        float(low),
        float(high),
        kendall(predicted, measured),
        kendall(predicted, measured, distinct(np.array([one.durations_s for one in results]))),
        too_close,
        hit,
    )


def resampled_regrets(durations_s: npt.NDArray[np.float64], chosen: int) -> npt.NDArray[np.float64]:
    """[candidates, rounds] → regret in each paired resample of rounds: all candidates keep the same rounds."""
    generator = np.random.default_rng(0)
    num_rounds = durations_s.shape[1]
    picks = generator.integers(num_rounds, size=(BOOTSTRAPS, num_rounds))
    medians = np.median(durations_s[:, picks], axis=2)
    return np.asarray(medians[chosen] / medians.min(axis=0) - 1)


def distinct(durations_s: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """[i, j]: whether the rounds tell candidates i and j apart: 95 % of paired resamples order them alike."""
    generator = np.random.default_rng(0)
    num_rounds = durations_s.shape[1]
    picks = generator.integers(num_rounds, size=(200, num_rounds))
    medians = np.median(durations_s[:, picks], axis=2)
    faster = (medians[:, None, :] < medians[None, :, :]).mean(axis=2)
    return np.asarray((faster > 0.95) | (faster < 0.05))


def kendall(
    predicted: Sequence[float], measured: Sequence[float], counted: npt.NDArray[np.bool_] | None = None
) -> float:
    """τ: share of (counted) pairs ordered alike minus share ordered differently; 1 if there is none."""
    pairs = [(i, j) for i in range(len(measured)) for j in range(i) if counted is None or counted[i, j]]
    signs = [(predicted[i] - predicted[j]) * (measured[i] - measured[j]) for i, j in pairs]
    return (sum(s > 0 for s in signs) - sum(s < 0 for s in signs)) / len(pairs) if pairs else 1.0


def summary(results: Sequence[Result]) -> dict[str, float]:
    """The figures of many cells; ranking and regret of those with several candidates (nan: none)."""
    cells: dict[str, list[Result]] = {}
    for one in results:
        cells.setdefault(one.cell, []).append(one)
    figures = [cell_figures(members) for members in cells.values() if len(members) > 1]
    errors = np.abs([one.error for one in results])
    close = [figure for figure in figures if figure.too_close]
    return {
        "cells": len(cells),
        "candidates": len(results),
        "error_median": float(np.median(errors)),
        "error_p90": float(np.quantile(errors, 0.9)),
        "error_worst": float(errors.max()),
        "bias_median": float(np.median([one.error for one in results])),
        "spread_median": float(np.median([one.spread for one in results])),
        "coverage": float(np.mean([one.inside for one in results])),
        "regret_median": middle([figure.regret for figure in figures]),
        "regret_worst": max((figure.regret for figure in figures), default=float("nan")),
        "regret_worst_low": max((figure.regret_low for figure in figures), default=float("nan")),
        "tau_median": middle([figure.tau for figure in figures]),
        "tau_distinct_median": middle([figure.tau_distinct for figure in figures]),
        "too_close_share": len(close) / max(len(figures), 1),
        "hit_rate": sum(figure.hit for figure in figures) / max(len(figures), 1),
    }


def middle(values: Sequence[float]) -> float:
    return median(values) if values else float("nan")
