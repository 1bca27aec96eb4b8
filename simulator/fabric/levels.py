"""Levels: which resources are full and how fast a path may be there at most, as paths come and go.

A full resource's level is what it has left for a path that only it holds back: its capacity less the rates of those
held back elsewhere, over the rest. A plain path (weight and share 1, no cap) runs at the lowest level of its resources.
Where both hold everywhere rates are max-min fair: everybody has a full resource on which nobody is faster (Bertsekas &
Gallager 1992, 6.5.2). Levels follow each other: one that changes is worked out anew on the resources that it is a
lower limit for, now or before, until nothing changes. What is far from a start or an end is never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from simulator.fabric.fair_rates import SAME_LEVEL
from simulator.fabric.path import Path

INF, SAME = math.inf, SAME_LEVEL - 1
Users = dict[Path, int]
NONE: Users = {}


class Levels:
    """``users[r]``: resource r's paths, each with its other resource (−1: none). ``share[r]``: capacity for each of
    them, if alike. ``level[r]``, if r is full."""

    __slots__ = ("capacities", "level", "share", "users")

    def __init__(
        self,
        capacities: Sequence[float],
        users: dict[int, Users],
        share: dict[int, float],
        level: dict[int, float],
    ) -> None:
        self.capacities, self.users, self.share, self.level = capacities, users, share, level

    def copy(self) -> Levels:
        return Levels(self.capacities, self.users.copy(), self.share.copy(), self.level.copy())

    def change(self, gone: Iterable[Path], come: Iterable[Path]) -> dict[int, bool] | None:
        """The resources of other level then, and whether they hold back all their paths; None if levels do not settle
        soon."""
        users, level, touched = self.users, self.level, {}
        for path in gone:
            for resource, _ in path.ends:
                users[resource] = users[resource].copy()
                del users[resource][path]
                touched[resource] = resource in level
        for path in come:
            for resource, other in path.ends:
                users[resource] = {**users.get(resource, NONE), path: other}
                touched[resource] = True
        for resource in touched:
            self.share[resource] = self.capacities[resource] / (len(users[resource]) or 1)
        return self._settle([resource for resource, matters in touched.items() if matters])

    def settle(self) -> dict[int, bool] | None:
        """As ``change``, where no level is known yet."""
        return self._settle(sorted(self.users, key=self.share.__getitem__))

    def _settle(self, queue: list[int]) -> dict[int, bool] | None:
        """Work out the levels in the queue, and those that follow."""
        level, users, waiting, full = self.level, self.users, set(queue), self.level.keys()
        changed: dict[int, bool] = {}
        most, tries = max(level.values(), default=0.0), 20 * len(users)
        for resource in queue:
            waiting.remove(resource)
            old, others = level.get(resource, INF), users[resource].values()
            if full.isdisjoint(others):
                new, all_alike = (self.share[resource], True) if others else (INF, False)
            else:
                new, all_alike = self._filled(resource)
            if new == old or abs(new - old) <= SAME * new < INF:
                if resource in changed:
                    changed[resource] = all_alike
                continue
            changed[resource] = all_alike
            if new == INF:
                del level[resource]
            else:
                level[resource] = new
                if new > most:
                    most = new
            for other in self._following(others, old, new, most):
                if other not in waiting:
                    waiting.add(other)
                    queue.append(other)
            if len(queue) > tries:
                return None
        return changed

    def _filled(self, resource: int) -> tuple[float, bool]:
        """Its level with the others as they are; whether it holds back all its paths."""
        get, share = self.level.get, self.share[resource]
        limits = [get(other, INF) for other in self.users[resource].values()]
        limits.sort()
        least = limits[0]
        if share <= least * SAME_LEVEL:
            return share, share <= least
        left, num = self.capacities[resource], len(limits)
        for limit in limits:
            share = left / num
            if share <= limit * SAME_LEVEL:
                return share, False
            left -= limit
            num -= 1
        return INF, False

    def _following(self, others: Iterable[int], old: float, new: float, most: float) -> list[int]:
        """The other resources of one's paths whose level may depend on its own, which was ``old``. One that is not full
        stays so if it has enough for as many at the highest level."""
        level, share = self.level, self.share
        low = old if old < new else new
        if new == INF:
            return [other for other in others if other >= 0 and level.get(other, INF) > low]
        if new > old and min(map(share.__getitem__, others), default=INF) < most:
            return [other for other in others if (low < level[other] if other in level else share[other] < most)]
        return [] if level.keys().isdisjoint(others) else [o for o in others if low < level.get(o, 0.0)]
