"""Flowing: activities that share resources, directly or through others, until one of them starts or ends.

A value: it does not change. What comes after it depends on nothing but when that happens and what starts then. Plain
paths of few resources are ``Grouped``, all others a ``Flowing``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import truediv

import numpy as np
import numpy.typing as npt

from simulator.fabric.grouped import ENDS, Grouped, Started, grouped
from simulator.fabric.path import Path
from simulator.units import PICOSECONDS_PER_S

VECTOR_SIZE = 24  # activities from which numpy is faster than plain Python
GROUPED_SIZE = 8  # activities from which it pays to keep them in groups
Work = Sequence[float] | npt.NDArray[np.float64]
Solve = Callable[[tuple[Path, ...]], Work]
"""Rates of paths, in work per second, in their order."""


class Flowing:
    """``paths`` by number, with the work ``left`` on each at first and its rate; ``over`` end after ``first_ps``.
    ``resources``: all that the component has held since it was last taken apart, when it had ``largest`` paths or
    fewer. ``then``: what comes after if nothing starts before, once it is known. Compared and hashed by identity."""

    __slots__ = (
        "at_end",
        "first_ps",
        "largest",
        "left",
        "load",
        "over",
        "paths",
        "resources",
        "size",
        "speeds",
        "then",
    )

    def __init__(self, paths: tuple[Path, ...], left: Work, rates: Work) -> None:
        self.paths, self.left, self.speeds, self.size = paths, left, rates, len(paths)
        self.resources: frozenset[int] = frozenset()
        self.largest = 0
        self.load: list[tuple[int, float]] | None = None
        self.then: After | None = None
        if isinstance(left, np.ndarray):
            first_s = float((left / np.asarray(rates)).min())
        else:
            first_s = min(map(truediv, left, rates))
        self.first_ps = max(round(first_s * PICOSECONDS_PER_S), 0)
        self.at_end = self.left_after(self.first_ps)
        self.over = self._over()

    def _over(self) -> list[Path]:
        """What has at most a picosecond's work left after ``first_ps``: activities that are alike end together."""
        left, rates = self.at_end, self.speeds
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
            return left - np.asarray(self.speeds) * (elapsed_ps / PICOSECONDS_PER_S)
        return [work - rate * elapsed_ps / PICOSECONDS_PER_S for work, rate in zip(left, self.speeds, strict=True)]

    def going_on(self, elapsed_ps: int) -> dict[Path, float]:
        """Work left on the paths that have not ended, by number."""
        ends = elapsed_ps == self.first_ps
        now = self.at_end if ends else self.left_after(elapsed_ps)
        left = dict(zip(self.paths, now.tolist() if isinstance(now, np.ndarray) else now, strict=True))
        if ends:
            for path in self.over:
                del left[path]
        return left

    def rates(self) -> list[tuple[Path, float]]:
        """By number."""
        return list(zip(self.paths, map(float, self.speeds), strict=True))


State = Flowing | Grouped
After = State | tuple[State, ...]


def loads(state: State) -> list[tuple[int, float]]:
    """Units a second of every resource that a component holds, in their order."""
    if state.load is None:
        load = dict.fromkeys(sorted(state.resources), 0.0)
        for path, rate in state.rates():
            for resource, weight in zip(path.resources, path.weights, strict=True):
                load[resource] += weight * rate
        state.load = list(load.items())
    return state.load


def following(parts: Sequence[tuple[State, int]], started: Started, capacities: Sequence[float], solve: Solve) -> After:
    """What comes after ``parts``, each after picoseconds of its own, with what ``started``. Several, or none, when it
    is taken apart: when half of its activities have gone."""
    if not parts and len(started) == 1:
        return _alone(*started[0], solve)
    if len(parts) == 1 and isinstance(parts[0][0], Grouped) and all(path.ends for path, _ in started):
        found = parts[0][0].after(parts[0][1], started)
        if found is not None:
            return found
    left = parts[0][0].going_on(parts[0][1]) if parts else {}
    for part, elapsed_ps in parts[1:]:
        left.update(part.going_on(elapsed_ps))
    left.update(started)
    if not left:
        return ()
    if started or isinstance(parts[0][0], Grouped):
        left = dict(sorted(left.items(), key=_number))
    largest = max([part.largest for part, _ in parts], default=0)
    if 2 * len(left) > largest:
        return _known(_state(left, capacities, solve), _held(parts, started), max(largest, len(left)))
    if len(left) == 1:
        return (_alone(*left.popitem(), solve),)
    groups = _connected(left)
    return tuple([_known(_state(group, capacities, solve), _held((), group.items()), len(group)) for group in groups])


def _number(item: tuple[Path, float]) -> int:
    return item[0].number


def _held(parts: Sequence[tuple[State, int]], started: Iterable[tuple[Path, float]]) -> frozenset[int]:
    if len(parts) == 1 and not started:
        return parts[0][0].resources
    return frozenset().union(*[part.resources for part, _ in parts], *[path.resources for path, _ in started])


def _state(left: dict[Path, float], capacities: Sequence[float], solve: Solve) -> State:
    """``left``: ordered by number."""
    if len(left) >= GROUPED_SIZE and all(map(ENDS, left)):
        found = grouped(left, capacities)
        if found is not None:
            return found
    paths, work = tuple(left), list(left.values())
    return Flowing(paths, np.array(work) if len(paths) >= VECTOR_SIZE else work, solve(paths))


def _alone(path: Path, work: float, solve: Solve) -> Flowing:
    found = Flowing((path,), (work,), solve((path,)))
    found.resources, found.largest = frozenset(path.resources), 1
    return found


def _known(state: State, resources: frozenset[int], largest: int) -> State:
    state.resources, state.largest = resources, largest
    return state


def _connected(left: Mapping[Path, float]) -> list[dict[Path, float]]:
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
