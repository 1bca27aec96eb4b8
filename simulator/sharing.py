"""Sharing: activities that use several resources at once, at max-min fair rates, re-shared at every start and end.

An *activity* has an amount of work, uses ``weights[i]`` units of ``resources[i]`` for every unit of work, may have a
rate cap, and grows in proportion to its ``share`` (SimGrid's fluid model: Casanova et al. 2014; Velho et al. 2013).
A message is bytes with weight 1 on every link of its route; a kernel on a CPU is core-seconds with weight 1 on its
node's cores and a cap of 1; a collective is the bytes of its busiest link, with the other links' bytes as weights.

Rates are max-min fair (progressive filling, Bertsekas & Gallager 1992, 6.5.2): raise one level s, activity a at
rate share_a·s, until a resource r is full, s = left_r / Σ share_a·weight_ar, or an activity reaches its cap; fix
those, go on with the rest. Only the connected component of what changed is solved again; components join when an
activity starts across them and are taken apart again when half of their activities have gone.
What it ignores: slow start, packets, unfairness over round-trip times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from simulator.clock import Action, Clock
from simulator.units import PICOSECONDS_PER_S

SAME_LEVEL = 1 + 1e-12  # resources that fill at the same level up to rounding are fixed in one round
VECTOR_SIZE = 24  # activities from which numpy solves a component faster than plain Python


@dataclass(slots=True, eq=False)
class Activity:
    """Work in progress. ``remaining`` holds at ``updated_ps``; ``done`` is called when it ends."""

    work: float
    resources: tuple[int, ...]
    weights: tuple[float, ...]
    done: Action
    cap: float = math.inf
    share: float = 1.0
    remaining: float = 0.0
    rate: float = 0.0
    updated_ps: int = 0


@dataclass(slots=True, eq=False)
class Component:
    """Activities that share resources, directly or through others."""

    activities: dict[int, Activity] = field(default_factory=dict)  # by id(): a set with insertion order
    resources: set[int] = field(default_factory=set)
    version: int = 0
    largest: int = 0
    dirty: bool = False


def fair_rates(activities: Sequence[Activity], capacities: Sequence[float]) -> list[float]:
    """Max-min fair rate of every activity, in work per second. Pure; activities without resources run at their cap."""
    if len(activities) >= VECTOR_SIZE:
        from simulator.sharing_numpy import fair_rates_vectorised

        return fair_rates_vectorised(activities, capacities)
    rates = [0.0] * len(activities)
    left: dict[int, float] = {}
    for activity in activities:
        for resource in activity.resources:
            left[resource] = capacities[resource]
    waiting = list(range(len(activities)))
    while waiting:
        level, load = _level(activities, waiting, left)
        full = {r for r, total in load.items() if left[r] <= level * SAME_LEVEL * total}
        kept = []
        for index in waiting:
            activity = activities[index]
            if activity.cap <= activity.share * level * SAME_LEVEL:
                rates[index] = activity.cap
            elif full.isdisjoint(activity.resources):
                kept.append(index)
                continue
            else:
                rates[index] = activity.share * level
            for resource, weight in zip(activity.resources, activity.weights, strict=True):
                left[resource] = max(left[resource] - weight * rates[index], 0.0)
        waiting = kept
    return rates


def _level(
    activities: Sequence[Activity], waiting: Sequence[int], left: dict[int, float]
) -> tuple[float, dict[int, float]]:
    """The next level at which a resource fills or a cap binds, and each resource's load for level 1."""
    load: dict[int, float] = {}
    level = math.inf
    for index in waiting:
        activity = activities[index]
        level = min(level, activity.cap / activity.share)
        for resource, weight in zip(activity.resources, activity.weights, strict=True):
            load[resource] = load.get(resource, 0.0) + weight * activity.share
    for resource, total in load.items():
        if total > 0:
            level = min(level, left[resource] / total)
    return level, load


class Sharing:
    """The activities running on one SimPy clock (integer picoseconds) over resources of given capacities."""

    def __init__(self, clock: Clock, capacities: Sequence[float], *, record_load: bool = False) -> None:
        self.clock = clock
        self.capacities = list(capacities)
        self.used = [0.0] * len(self.capacities)  # units of each resource consumed so far
        self.loads: list[tuple[int, int, float]] | None = [] if record_load else None
        self._owner: dict[int, Component] = {}
        self._dirty: list[Component] = []

    def start(self, activity: Activity) -> None:
        """Begin now; ``activity.done`` is called when its work is done (never at once)."""
        activity.remaining, activity.updated_ps = activity.work, self.clock.now_ps
        for resource, weight in zip(activity.resources, activity.weights, strict=True):
            self.used[resource] += weight * activity.work
        component = self._join(activity.resources)
        component.activities[id(activity)] = activity
        component.largest = max(component.largest, len(component.activities))
        self._touch(component)

    def _join(self, resources: Iterable[int]) -> Component:
        """The one component of these resources; several become one."""
        owner, found = self._owner, None
        for resource in resources:
            other = owner.get(resource)
            if other is None or other is found:
                continue
            if found is None:
                found = other
                continue
            small, found = (other, found) if len(other.activities) <= len(found.activities) else (found, other)
            found.activities.update(small.activities)
            found.resources |= small.resources
            small.version += 1
            small.activities = {}
            for moved in small.resources:
                owner[moved] = found
        found = found if found is not None else Component()
        for resource in resources:
            owner[resource] = found
        found.resources.update(resources)
        return found

    def _touch(self, component: Component) -> None:
        """Settle this component once all that happens at this instant has happened."""
        if not self._dirty:
            self.clock.at_end_of_instant(self._settle)
        if not component.dirty:
            component.dirty = True
            self._dirty.append(component)

    def _settle(self) -> None:
        dirty, self._dirty = self._dirty, []
        for component in dirty:
            component.dirty = False
            if component.activities:
                self._share(component)

    def _share(self, component: Component) -> None:
        """New rates from now on, and the instant the first activity ends."""
        now = self.clock.now_ps
        activities = list(component.activities.values())
        first_s = math.inf
        for activity, rate in zip(activities, fair_rates(activities, self.capacities), strict=True):
            elapsed_ps = now - activity.updated_ps
            if elapsed_ps:
                activity.remaining -= activity.rate * elapsed_ps / PICOSECONDS_PER_S
                activity.updated_ps = now
            activity.rate = rate
            ends_s = activity.remaining / rate
            if ends_s < first_s:
                first_s = ends_s
        if self.loads is not None:
            self._record(component)
        component.version += 1
        version = component.version
        delay_ps = max(round(first_s * PICOSECONDS_PER_S), 0)
        self.clock.after(delay_ps, lambda: self._finish(component) if component.version == version else None)

    def _finish(self, component: Component) -> None:
        """End what has no work left at this picosecond (within one: symmetric activities end together)."""
        now = self.clock.now_ps
        over = [
            activity
            for activity in component.activities.values()
            if activity.remaining - activity.rate * (now + 1 - activity.updated_ps) / PICOSECONDS_PER_S <= 0
        ]
        assert over, "the timer of a component ended no activity"
        for activity in over:
            del component.activities[id(activity)]
        component.version += 1
        self._release(component)
        for activity in over:
            activity.done()

    def _release(self, component: Component) -> None:
        """Forget an empty component; take one apart that has lost half its activities; else share anew."""
        if component.activities and 2 * len(component.activities) > component.largest:
            self._touch(component)
            return
        activities = list(component.activities.values())
        for resource in component.resources:
            del self._owner[resource]
        if self.loads is not None:
            idle = component.resources.difference(*[activity.resources for activity in activities])
            self.loads.extend((self.clock.now_ps, resource, 0.0) for resource in sorted(idle))
        component.activities, component.resources = {}, set()
        for activity in activities:
            part = self._join(activity.resources)
            part.activities[id(activity)] = activity
            part.largest = len(part.activities)
            self._touch(part)

    def _record(self, component: Component) -> None:
        assert self.loads is not None
        load = dict.fromkeys(sorted(component.resources), 0.0)
        for activity in component.activities.values():
            for resource, weight in zip(activity.resources, activity.weights, strict=True):
                load[resource] += weight * activity.rate
        self.loads.extend((self.clock.now_ps, resource, rate) for resource, rate in load.items())
