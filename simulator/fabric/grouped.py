"""Grouped: plain activities by the resource that holds them back, until one of them starts or ends.

A group has one rate, so its order of ending is known, and another level is one change for all of it. A start or an end
makes new groups where levels change (``levels.py``), some of those it shares a resource with; the next value has the
others in common with this one, as they are: what is left of them is worked out when their level changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence, Set
from operator import attrgetter
from typing import Any

from simulator.fabric.levels import INF, Levels
from simulator.fabric.path import Path
from simulator.units import PICOSECONDS_PER_S

NUMBER, ENDS = attrgetter("number"), attrgetter("ends")
Started = Sequence[tuple[Path, float]]


class Group:
    """Paths of one rate: ``left[i]`` is the work to do on ``paths[i]`` at ``since_ps``, the least first; that ends at
    ``end_ps``. A value."""

    __slots__ = ("end_ps", "left", "paths", "rate", "since_ps")

    def __init__(self, paths: list[Path], left: list[float], rate: float, since_ps: int) -> None:
        self.paths, self.left, self.rate, self.since_ps = paths, left, rate, since_ps
        self.end_ps = since_ps + max(round(left[0] / rate * PICOSECONDS_PER_S), 0) if left else since_ps

    def left_at(self, now_ps: int, gone: int) -> list[float]:
        """But for the first ``gone``."""
        done = self.rate * ((now_ps - self.since_ps) / PICOSECONDS_PER_S)
        return [work - done for work in (self.left[gone:] if gone else self.left)]

    def at(self, now_ps: int, gone: int, rate: float) -> Group:
        """The same later, but for the first ``gone``, at another rate from then on."""
        return Group(self.paths[gone:], self.left_at(now_ps, gone), rate, now_ps)

    def ended(self, now_ps: int) -> int:
        """How many have at most a picosecond's work left."""
        rate, count = self.rate, 0
        done, least = rate * ((now_ps - self.since_ps) / PICOSECONDS_PER_S), rate / PICOSECONDS_PER_S
        for work in self.left:
            if work - done > least:
                break
            count += 1
        return count


EMPTY = Group([], [], 1.0, 0)


class Grouped:
    """``groups`` by the resource that holds them back. ``over`` end after ``first_ps``, the first ``gone[r]`` of group
    r. Times in groups are on a clock that shows ``at_ps`` at first. ``resources``, ``largest`` and ``then`` as in
    ``flowing.Flowing``. Compared and hashed by identity."""

    __slots__ = (
        "at_ps", "first_ps", "gone", "groups", "holder", "largest", "levels", "load", "over", "resources", "size",
        "then",
    )  # fmt: skip

    def __init__(self, groups: dict[int, Group], holder: dict[Path, int], levels: Levels, at: tuple[int, int]) -> None:
        self.groups, self.holder, self.levels = groups, holder, levels
        self.at_ps, self.size = at_ps, _ = at
        self.resources: frozenset[int] = frozenset()
        self.largest = 0
        self.load: list[tuple[int, float]] | None = None
        self.then: Any = None  # flowing.After
        end_ps = max(min([group.end_ps for group in groups.values()]), at_ps)
        self.first_ps = end_ps - at_ps
        self.gone: dict[int, int] = {}
        self.over: list[Path] = []
        for resource, group in groups.items():
            if group.end_ps <= end_ps + 1 and (count := group.ended(end_ps)):
                self.gone[resource] = count
                self.over += group.paths[:count]
        assert self.over, "the first activity to end does not"
        if len(self.over) > 1:
            self.over.sort(key=NUMBER)

    def going_on(self, elapsed_ps: int) -> dict[Path, float]:
        """Work left on the paths that have not ended."""
        now_ps, gone = self.at_ps + elapsed_ps, self.gone if elapsed_ps == self.first_ps else {}
        left: dict[Path, float] = {}
        for resource, group in self.groups.items():
            ended = gone.get(resource, 0)
            left.update(zip(group.paths[ended:], group.left_at(now_ps, ended), strict=True))
        return left

    def rates(self) -> list[tuple[Path, float]]:
        """By number."""
        found = [(path, group.rate) for group in self.groups.values() for path in group.paths]
        return sorted(found, key=lambda item: item[0].number)

    def after(self, elapsed_ps: int, started: Started) -> Grouped | None:
        """What comes next; None when half of the paths have gone, or if levels do not settle."""
        gone, over = (self.gone, self.over) if elapsed_ps == self.first_ps else ({}, [])
        size = self.size + len(started) - len(over)
        if 2 * size <= self.largest:
            return None
        levels = self.levels.copy()
        changed = levels.change(over, [path for path, _ in started])
        if changed is None:
            return None
        now_ps, groups, holder = self.at_ps + elapsed_ps, self.groups.copy(), self.holder
        leaving = self._leaving(levels, changed, {path for path, _ in started} if started else frozenset())
        for resource in changed.keys() | gone:
            group, ended = groups.pop(resource, EMPTY), gone.get(resource, 0)
            if ended < len(group.paths):
                groups[resource] = group.at(now_ps, ended, levels.level.get(resource, group.rate))
        if leaving or started:
            holder = holder.copy()
            _regroup(groups, holder, leaving, started, (now_ps, levels.level))
        found = Grouped(groups, holder, levels, (now_ps, size))
        found.largest = size if size > self.largest else self.largest
        found.resources = self.resources.union(*[path.resources for path, _ in started]) if started else self.resources
        return found

    def _leaving(self, levels: Levels, changed: Mapping[int, bool], started: Set[Path]) -> dict[Path, int]:
        """Whom another resource holds back now, and which: on one whose level rose those whose other resource is
        lower, on one whose level fell those it did not hold back. ``changed``: whether all there are held back."""
        before, level, holder, groups = self.levels, levels.level, self.holder, self.groups
        leaving: dict[Path, int] = {}
        for resource, all_alike in changed.items():
            new, group = level.get(resource, INF), groups.get(resource)
            if new > before.level.get(resource, INF):
                if group is None or all_alike:
                    continue
                for path, other in levels.users[resource].items():
                    if path not in started and holder[path] == resource and level.get(other, INF) < new:
                        leaving[path] = other
            elif group is None or len(group.paths) < len(before.users[resource]):
                for path, other in levels.users[resource].items():
                    if path not in started and holder[path] == other and new < level.get(other, INF):
                        leaving[path] = resource
        return leaving


When = tuple[int, Mapping[int, float]]
"""An instant and the levels from then on."""


def _regroup(
    groups: dict[int, Group], holder: dict[Path, int], leaving: Mapping[Path, int], started: Started, when: When
) -> None:
    """``leaving`` paths go from one group to another, ``started`` ones into the group of the lower of two levels."""
    now_ps, level = when
    joining: dict[int, list[tuple[Path, float]]] = {}
    parts: dict[int, tuple[list[Path], list[float]]] = {}
    for resource in {holder[path] for path in leaving}:
        group = groups.pop(resource)
        paths, left = parts[resource] = [], []
        for path, work in zip(group.paths, group.left_at(now_ps, 0), strict=True):
            if path in leaving:
                joining.setdefault(leaving[path], []).append((path, work))
            else:
                paths.append(path)
                left.append(work)
    for path, work in started:
        (one, other), *_ = path.ends
        held = holder[path] = one if level.get(one, INF) <= level.get(other, INF) else other
        joining.setdefault(held, []).append((path, work))
    holder.update(leaving)
    for resource, rows in joining.items():
        if resource not in parts:
            group = groups.pop(resource, EMPTY)
            parts[resource] = group.paths.copy(), group.left_at(now_ps, 0)
        paths, left = parts[resource]
        for path, work in rows:
            place = bisect_right(left, work)
            paths.insert(place, path)
            left.insert(place, work)
    for resource, (paths, left) in parts.items():
        if paths:
            groups[resource] = Group(paths, left, level[resource], now_ps)


def grouped(left: Mapping[Path, float], capacities: Sequence[float]) -> Grouped | None:
    """Of work left on plain paths, each of one or two resources; None if levels do not settle."""
    users: dict[int, dict[Path, int]] = {}
    for path in left:
        for resource, other in path.ends:
            if resource in users:
                users[resource][path] = other
            else:
                users[resource] = {path: other}
    share = {resource: capacities[resource] / len(paths) for resource, paths in users.items()}
    levels = Levels(capacities, users, {-1: INF, **share}, {})
    if levels.settle() is None:
        return None
    level, holder = levels.level, {}
    rows: dict[int, list[tuple[float, int, Path]]] = {resource: [] for resource in level}
    for path, work in left.items():
        (one, other), *_ = path.ends
        held = holder[path] = one if level.get(one, INF) <= level.get(other, INF) else other
        rows[held].append((work, path.number, path))
    groups = {}
    for resource, row in rows.items():
        if row:
            row.sort()
            groups[resource] = Group([path for *_, path in row], [work for work, *_ in row], level[resource], 0)
    return Grouped(groups, holder, levels, (0, len(left)))
