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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.fabric.fair_rates import fair_rates
from simulator.fabric.fair_table import FairTable
from simulator.simulation.clock import Action, Clock
from simulator.units import PICOSECONDS_PER_S

VECTOR_SIZE = 24  # activities from which numpy shares a component faster than plain Python


@dataclass(frozen=True, slots=True)
class Path:
    """What a unit of work uses: ``weights[i]`` units of ``resources[i]``, and of resources that never limit it."""

    resources: tuple[int, ...]
    weights: tuple[float, ...]
    unlimited: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False)
class Activity:
    """Work in progress. ``remaining`` and ``rate`` hold at ``updated_ps``; ``done`` is called when it ends."""

    work: float
    path: Path
    done: Action
    cap: float = math.inf
    share: float = 1.0
    remaining: float = 0.0
    rate: float = 0.0
    updated_ps: int = 0


@dataclass(slots=True, eq=False)
class Component:
    """Activities that share resources, directly or through others. While ``table`` is set it holds their state, but
    for the ``arrivals``, which it has not taken over yet."""

    activities: dict[int, Activity] = field(default_factory=dict)  # by id(): a set that keeps its order
    resources: set[int] = field(default_factory=set)
    table: FairTable | None = None
    arrivals: list[Activity] = field(default_factory=list)
    version: int = 0
    largest: int = 0
    dirty: bool = False

    def add(self, activity: Activity) -> None:
        self.activities[id(activity)] = activity
        if self.table is not None:
            self.arrivals.append(activity)
        self.largest = max(self.largest, len(self.activities))

    def keep_state(self) -> None:
        """Move the state from the table back to the activities."""
        if self.table is not None:
            for activity, remaining, rate in zip(*self.table.state(), strict=True):
                activity.remaining, activity.rate = remaining, rate
                activity.updated_ps = self.table.updated_ps
            self.table = None
            self.arrivals.clear()


class Sharing:
    """The activities running on one clock over resources of given capacities.

    ``unlimited`` resources are accounted for but never limit a rate: the caller knows that others are full first.
    """

    def __init__(
        self,
        clock: Clock,
        capacities: Sequence[float],
        *,
        unlimited: frozenset[int] = frozenset(),
        record_load: bool = False,
    ) -> None:
        self.clock, self.unlimited = clock, unlimited
        self.capacities = list(capacities)
        self.used = [0.0] * len(self.capacities)  # units of each resource that started work will consume
        self.loads: list[tuple[int, int, float]] | None = [] if record_load else None
        self._array = np.array(self.capacities)
        self._owner: dict[int, Component] = {}
        self._dirty: list[Component] = []

    def path(self, weights: Mapping[int, float]) -> Path:
        """The path of work that uses ``weights[r]`` units of every resource r a unit of work."""
        limiting = {r: weight for r, weight in weights.items() if r not in self.unlimited}
        rest = tuple((r, weight) for r, weight in weights.items() if r in self.unlimited)
        return Path(tuple(limiting), tuple(limiting.values()), rest)

    def start(self, activity: Activity) -> None:
        """Begin now; ``activity.done`` is called when its work is done (never at once)."""
        activity.remaining, activity.updated_ps = activity.work, self.clock.now_ps
        path, used = activity.path, self.used
        for resource, weight in zip(path.resources, path.weights, strict=True):
            used[resource] += weight * activity.work
        for resource, weight in path.unlimited:
            used[resource] += weight * activity.work
        component = self._join(path.resources)
        component.add(activity)
        self._touch(component)

    def _join(self, resources: Sequence[int]) -> Component:
        """The one component of these resources; several become one, the smaller moving into the larger."""
        owner, found = self._owner, None
        for resource in resources:
            other = owner.get(resource)
            if other is None or other is found:
                continue
            if found is None:
                found = other
                continue
            small, found = (other, found) if len(other.activities) <= len(found.activities) else (found, other)
            self._merge(small, found)
        found = found if found is not None else Component()
        for resource in resources:
            owner[resource] = found
        found.resources.update(resources)
        return found

    def _merge(self, small: Component, large: Component) -> None:
        small.keep_state()
        large.keep_state()
        large.activities.update(small.activities)
        large.resources |= small.resources
        small.version += 1
        small.activities = {}
        for resource in small.resources:
            self._owner[resource] = large

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
        """New rates from now on, and a timer for the instant the first activity ends."""
        if len(component.activities) >= VECTOR_SIZE:
            first_s = self._share_many(component)
        else:
            component.keep_state()
            first_s = self._share_few(list(component.activities.values()))
        if self.loads is not None:
            self._record(component)
        component.version += 1
        version = component.version
        delay_ps = max(round(first_s * PICOSECONDS_PER_S), 0)
        self.clock.after(delay_ps, lambda: self._finish(component) if component.version == version else None)

    def _share_many(self, component: Component) -> float:
        """Rates in numpy; seconds to the first end."""
        now_ps = self.clock.now_ps
        if component.table is None:
            component.table = FairTable(self._array, now_ps)
            component.arrivals = list(component.activities.values())
        if component.arrivals:
            component.table.add(component.arrivals, now_ps)
            component.arrivals = []
        return component.table.share(now_ps)

    def _share_few(self, activities: list[Activity]) -> float:
        """Rates in plain Python; seconds to the first end."""
        now, first_s = self.clock.now_ps, math.inf
        for activity, rate in zip(activities, fair_rates(activities, self.capacities), strict=True):
            elapsed_ps = now - activity.updated_ps
            if elapsed_ps:
                activity.remaining -= activity.rate * elapsed_ps / PICOSECONDS_PER_S
                activity.updated_ps = now
            activity.rate = rate
            ends_s = activity.remaining / rate
            if ends_s < first_s:
                first_s = ends_s
        return first_s

    def _finish(self, component: Component) -> None:
        """End what has no work left at this picosecond (within one: activities that are alike end together)."""
        now_ps = self.clock.now_ps
        if component.table is not None:
            over: list[Activity] = component.table.finish(now_ps)
        else:
            over = [
                activity
                for activity in component.activities.values()
                if activity.remaining - activity.rate * (now_ps + 1 - activity.updated_ps) / PICOSECONDS_PER_S <= 0
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
        component.keep_state()
        activities = list(component.activities.values())
        for resource in component.resources:
            del self._owner[resource]
        if self.loads is not None:
            idle = component.resources.difference(*[activity.path.resources for activity in activities])
            self.loads.extend((self.clock.now_ps, resource, 0.0) for resource in sorted(idle))
        component.activities, component.resources = {}, set()
        for activity in activities:
            part = self._join(activity.path.resources)
            part.add(activity)
            self._touch(part)

    def _record(self, component: Component) -> None:
        """Note every limiting resource's load from now on."""
        assert self.loads is not None
        activities = list(component.activities.values())
        rates = [activity.rate for activity in activities]
        if component.table is not None:
            activities, _, rates = component.table.state()
        load = dict.fromkeys(sorted(component.resources), 0.0)
        for activity, rate in zip(activities, rates, strict=True):
            for resource, weight in zip(activity.path.resources, activity.path.weights, strict=True):
                load[resource] += weight * rate
        self.loads.extend((self.clock.now_ps, resource, value) for resource, value in load.items())
