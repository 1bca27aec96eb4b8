"""Flowing: activities that share resources, directly or through others, until one of them starts or ends.

A value: it does not change. What comes after it depends on nothing but when that happens and what starts then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import truediv

import numpy as np
import numpy.typing as npt

from simulator.fabric.path import Path
from simulator.units import PICOSECONDS_PER_S

VECTOR_SIZE = 24  # activities from which numpy is faster than plain Python
Work = Sequence[float] | npt.NDArray[np.float64]
Solve = Callable[[tuple[Path, ...]], Work]
"""Rates of paths, in work per second, in their order."""


class Flowing:
    """``paths`` by number, with the work ``left`` on each at first and its rate; ``over`` end after ``first_ps``.
    ``resources``: all that the component has held since it was last taken apart, when it had ``largest`` paths or
    fewer. Compared and hashed by identity."""

    __slots__ = ("at_end", "first_ps", "largest", "left", "load", "over", "paths", "rates", "resources")

    def __init__(
        self, paths: tuple[Path, ...], left: Work, rates: Work, resources: frozenset[int], largest: int
    ) -> None:
        self.paths, self.left, self.rates = paths, left, rates
        self.resources, self.largest = resources, largest
        self.load: list[tuple[int, float]] | None = None
        if isinstance(left, np.ndarray):
            first_s = float((left / np.asarray(rates)).min())
        else:
            first_s = min(map(truediv, left, rates))
        self.first_ps = max(round(first_s * PICOSECONDS_PER_S), 0)
        self.at_end = self.left_after(self.first_ps)
        self.over = self._over()

    def _over(self) -> list[Path]:
        """What has at most a picosecond's work left after ``first_ps``: activities that are alike end together."""
        left, rates = self.at_end, self.rates
        if isinstance(left, np.ndarray):
            ended = np.flatnonzero(left <= np.asarray(rates) / PICOSECONDS_PER_S).tolist()
        else:
            ended = [i for i, rate in enumerate(rates) if left[i] <= rate / PICOSECONDS_PER_S]
        assert ended, "the first activity to end does not"
        return [self.paths[i] for i in ended]

    def left_after(self, elapsed_ps: int) -> Work:
        """Work left on each path."""
        left = self.left
        if isinstance(left, np.ndarray):
            return left - np.asarray(self.rates) * (elapsed_ps / PICOSECONDS_PER_S)
        return [work - rate * elapsed_ps / PICOSECONDS_PER_S for work, rate in zip(left, self.rates, strict=True)]

    def loads(self) -> list[tuple[int, float]]:
        """Units a second of every resource that the component holds, in their order."""
        if self.load is None:
            load = dict.fromkeys(sorted(self.resources), 0.0)
            for path, rate in zip(self.paths, self.rates, strict=True):
                for resource, weight in zip(path.resources, path.weights, strict=True):
                    load[resource] += weight * float(rate)
            self.load = list(load.items())
        return self.load


def following(
    parts: Sequence[tuple[Flowing, int]], started: Sequence[tuple[Path, float]], solve: Solve
) -> Flowing | tuple[Flowing, ...]:
    """What comes after ``parts``, each after picoseconds of its own, with what ``started``. Several, or none, when it
    is taken apart: when half of its activities have gone."""
    left: dict[Path, float] = {}
    for part, elapsed_ps in parts:
        ends = elapsed_ps == part.first_ps
        now = part.at_end if ends else part.left_after(elapsed_ps)
        left.update(zip(part.paths, now.tolist() if isinstance(now, np.ndarray) else now, strict=True))
        if ends:
            for path in part.over:
                del left[path]
    left.update(started)
    largest = max([part.largest for part, _ in parts], default=0)
    if left and 2 * len(left) > largest:
        if len(parts) > 1 or started:
            left = dict(sorted(left.items(), key=_number))
        return _flowing(left, _held(parts, started), max(largest, len(left)), solve)
    groups = _connected(left)
    return tuple([_flowing(group, _held((), group.items()), len(group), solve) for group in groups])


def _number(item: tuple[Path, float]) -> int:
    return item[0].number


def _held(parts: Sequence[tuple[Flowing, int]], started: Iterable[tuple[Path, float]]) -> frozenset[int]:
    if len(parts) == 1 and not started:
        return parts[0][0].resources
    return frozenset().union(*[part.resources for part, _ in parts], *[path.resources for path, _ in started])


def _flowing(left: dict[Path, float], resources: frozenset[int], largest: int, solve: Solve) -> Flowing:
    """``left``: ordered by number."""
    paths, work = tuple(left), list(left.values())
    return Flowing(paths, np.array(work) if len(paths) >= VECTOR_SIZE else work, solve(paths), resources, largest)


def _connected(left: dict[Path, float]) -> list[dict[Path, float]]:
    """Paths that share resources, directly or through others, together."""
    groups: dict[int, dict[Path, float]] = {}
    owner: dict[int, int] = {}
    for path, work in left.items():
        met = sorted({owner[resource] for resource in path.resources if resource in owner})
        number = met[0] if met else path.number
        group = groups.setdefault(number, {})
        group[path] = work
        for other in met[1:]:
            group.update(groups.pop(other))
        owner.update(
            (resource, number) for member in (group if len(met) > 1 else (path,)) for resource in member.resources
        )
    return [dict(sorted(group.items(), key=_number)) for group in groups.values()]
