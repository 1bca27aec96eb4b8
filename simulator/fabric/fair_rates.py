"""Max-min fair rates of a few activities, in plain Python: the rule of ``sharing.py`` as one pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.fabric.sharing import Activity

SAME_LEVEL = 1 + 1e-12  # resources that fill at the same level up to rounding are fixed in one round


def fair_rates(activities: Sequence[Activity], capacities: Sequence[float]) -> list[float]:
    """Every activity's rate, in work per second. One without resources runs at its cap.

    Round by round: the level at which the next resource is full or cap binds; the activities that this stops.
    """
    if len(activities) == 1:
        return [_alone(activities[0], capacities)]
    rates = [0.0] * len(activities)
    left = {resource: capacities[resource] for activity in activities for resource in activity.path.resources}
    waiting = list(range(len(activities)))
    while waiting:
        level, load = _level(activities, waiting, left)
        full = {r for r, total in load.items() if left[r] <= level * SAME_LEVEL * total}
        kept = []
        for index in waiting:
            activity = activities[index]
            if activity.cap <= activity.share * level * SAME_LEVEL:
                rates[index] = activity.cap
            elif full.isdisjoint(activity.path.resources):
                kept.append(index)
                continue
            else:
                rates[index] = activity.share * level
            for resource, weight in zip(activity.path.resources, activity.path.weights, strict=True):
                left[resource] = max(left[resource] - weight * rates[index], 0.0)
        waiting = kept
    return rates


def _alone(activity: Activity, capacities: Sequence[float]) -> float:
    """The cap or the tightest resource."""
    rate = activity.cap
    for resource, weight in zip(activity.path.resources, activity.path.weights, strict=True):
        if weight * rate > capacities[resource] * SAME_LEVEL:
            rate = capacities[resource] / weight
    return rate


def _level(
    activities: Sequence[Activity], waiting: Sequence[int], left: dict[int, float]
) -> tuple[float, dict[int, float]]:
    """The next level at which a resource is full or a cap binds, and each resource's load at level 1."""
    load: dict[int, float] = {}
    level = math.inf
    for index in waiting:
        activity = activities[index]
        level = min(level, activity.cap / activity.share)
        for resource, weight in zip(activity.path.resources, activity.path.weights, strict=True):
            load[resource] = load.get(resource, 0.0) + weight * activity.share
    for resource, total in load.items():
        if total > 0:
            level = min(level, left[resource] / total)
    return level, load
