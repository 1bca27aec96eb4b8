"""Max-min fair rates of a few paths, in plain Python: the rule of ``sharing.py`` as one pure function."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter

from simulator.fabric.path import Path

PLAIN, RESOURCES = attrgetter("plain"), attrgetter("resources")
SAME_LEVEL = 1 + 1e-12  # resources that fill at the same level up to rounding are fixed in one round


def fair_rates(paths: Sequence[Path], capacities: Sequence[float]) -> list[float]:
    """Every path's rate, in work per second. One without resources runs at its cap.

    Round by round: the level at which the next resource is full or cap binds; the activities that this stops.
    """
    if len(paths) == 1:
        return [rate_alone(paths[0], capacities)]
    if all(map(PLAIN, paths)):
        used = list(map(RESOURCES, paths))
        level = even_level(used, capacities)
        return [level] * len(paths) if level else _plain_rates(used, capacities)
    rates = [0.0] * len(paths)
    left = {resource: capacities[resource] for path in paths for resource in path.resources}
    waiting = list(range(len(paths)))
    while waiting:
        level, load = _level(paths, waiting, left)
        full = {r for r, total in load.items() if left[r] <= level * SAME_LEVEL * total}
        kept = []
        for index in waiting:
            path = paths[index]
            if path.cap <= path.share * level * SAME_LEVEL:
                rates[index] = path.cap
            elif full.isdisjoint(path.resources):
                kept.append(index)
                continue
            else:
                rates[index] = path.share * level
            for resource, weight in zip(path.resources, path.weights, strict=True):
                left[resource] = max(left[resource] - weight * rates[index], 0.0)
        waiting = kept
    return rates


def rate_alone(path: Path, capacities: Sequence[float]) -> float:
    """The cap or the tightest resource."""
    rate = path.cap
    for resource, weight in zip(path.resources, path.weights, strict=True):
        if weight * rate > capacities[resource] * SAME_LEVEL:
            rate = capacities[resource] / weight
    return rate


def even_level(used: Sequence[tuple[int, ...]], capacities: Sequence[float]) -> float:
    """The rate of plain paths that all use a resource which is full first; 0 where some do not. ``used``: by path."""
    load = Counter(chain.from_iterable(used))
    level = min([capacities[resource] / count for resource, count in load.items()])
    limit = level * SAME_LEVEL
    full = {resource for resource, count in load.items() if capacities[resource] <= limit * count}
    return 0.0 if any(map(full.isdisjoint, used)) else level


def _plain_rates(used: Sequence[tuple[int, ...]], capacities: Sequence[float]) -> list[float]:
    """The same for paths of weight and share 1 without caps: a resource's load is how many of its paths wait."""
    on: dict[int, list[int]] = {}
    for index, resources in enumerate(used):
        for resource in resources:
            if resource in on:
                on[resource].append(index)
            else:
                on[resource] = [index]
    left = {resource: capacities[resource] for resource in on}
    load = {resource: len(users) for resource, users in on.items()}
    rates = [0.0] * len(used)
    while load:
        level = min([left[resource] / count for resource, count in load.items()])
        limit = level * SAME_LEVEL
        for full in [resource for resource, count in load.items() if left[resource] <= limit * count]:
            for index in on[full]:
                if rates[index]:
                    continue
                rates[index] = level
                for resource in used[index]:
                    left[resource] = rest if (rest := left[resource] - level) > 0.0 else 0.0
                    load[resource] -= 1
        load = {resource: count for resource, count in load.items() if count}
    return rates


def _level(paths: Sequence[Path], waiting: Sequence[int], left: dict[int, float]) -> tuple[float, dict[int, float]]:
    """The next level at which a resource is full or a cap binds, and each resource's load at level 1."""
    load: dict[int, float] = {}
    level = math.inf
    for index in waiting:
        path = paths[index]
        level = min(level, path.cap / path.share)
        for resource, weight in zip(path.resources, path.weights, strict=True):
            load[resource] = load.get(resource, 0.0) + weight * path.share
    for resource, total in load.items():
        if total > 0:
            level = min(level, left[resource] / total)
    return level, load
