"""Max-min fair rates of many paths: the rule of ``sharing.py`` on numpy columns.

Rows are paths, pairs are (path, resource). A round fixes every resource that is full before all others its paths use
(a local bottleneck), not only the first of all: later rounds can only raise the levels of the rest (Ros-Giralt et al.
2021, bottleneck structures), so the rates are the same and the rounds few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulator.fabric.fair_rates import SAME_LEVEL
from simulator.fabric.path import Path

Array = npt.NDArray[np.float64]


def many_fair_rates(paths: Sequence[Path], capacities: Array) -> Array:
    """Every path's rate, in work per second. Each has at least one resource; ``capacities``: of all resources."""
    place = np.array([resource for path in paths for resource in path.resources])
    weight = np.array([width for path in paths for width in path.weights])
    count = np.array([len(path.resources) for path in paths])
    cap, share = np.array([path.cap for path in paths]), np.array([path.share for path in paths])
    top, owner, first = cap / share, np.repeat(np.arange(len(count)), count), np.cumsum(count) - count
    demand, rates, waiting = weight * share[owner], np.zeros(len(count)), np.ones(len(count), dtype=np.bool_)
    left, resources = capacities, len(capacities)
    while True:
        load = np.bincount(place, demand * waiting[owner], resources)
        level = np.divide(left, load, out=np.full(resources, np.inf), where=load > 0)
        nearest = np.minimum.reduceat(level[place], first)
        capped = waiting & (top <= nearest * SAME_LEVEL)
        nearest = np.minimum(nearest, top)
        lowest = np.full(resources, np.inf)
        np.minimum.at(lowest, place, np.where(waiting, nearest, np.inf)[owner])
        full = (lowest * SAME_LEVEL >= level) & (load > 0)
        held = waiting & ~capped & np.logical_or.reduceat(full[place], first)
        rates[capped] = cap[capped]
        rates[held] = (share * nearest)[held]
        fixed = capped | held
        waiting = waiting & ~fixed
        if not waiting.any():
            return rates
        spent = np.bincount(place, weight * (rates * fixed)[owner], resources)
        left = np.maximum(left - spent, 0.0)
