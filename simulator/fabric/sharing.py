"""Sharing: activities that use several resources at once, at max-min fair rates, re-shared at every start and end.

An *activity* has an amount of work and a path: ``weights[i]`` units of ``resources[i]`` for every unit of work, perhaps
a rate cap, and a ``share`` in proportion to which it grows (SimGrid's fluid model: Casanova et al. 2014; Velho et al.
2013). A message is bytes with weight 1 on every link of its route; a kernel on a CPU is core-seconds with weight 1 on
its node's cores and a cap of 1; a collective is the bytes of its busiest link, with the other links' bytes as weights.

Rates are max-min fair (progressive filling, Bertsekas & Gallager 1992, 6.5.2): raise one level s, activity a at
rate share_a·s, until a resource r is full, s = left_r / Σ share_a·weight_ar, or an activity reaches its cap; fix
those, go on with the rest. Only the connected component of what changed is solved again; components join when an
activity starts across them and are taken apart again when half of their activities have gone. The rates of a set of
paths are found once: a model's layers bring the same sets back.
What it ignores: slow start, packets, unfairness over round-trip times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from simulator.fabric.component import Activity, Component, Rates
from simulator.fabric.fair_rates import even_level, fair_rates, rate_alone
from simulator.fabric.fair_table import many_fair_rates
from simulator.fabric.path import Path
from simulator.simulation.clock import Action, Clock
from simulator.units import PICOSECONDS_PER_S

VECTOR_SIZE = 24  # activities from which numpy advances a component faster than plain Python
TABLE_SIZE = 80  # paths from which numpy finds rates faster
REMEMBERED = 2_000_000  # rates kept for sets of paths that may come back: 200 MB at the most


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
        self.loads: list[tuple[int, int, float]] | None = [] if record_load else None
        self._array = np.array(self.capacities)
        self._owner: dict[int, Component] = {}
        self._dirty: list[Component] = []
        self._paths: list[Path] = []
        self._remaining = np.zeros(64)
        self._known: dict[int, Rates] = {}
        self._num_known = 0

    @property
    def used(self) -> list[float]:
        """Units of each resource that the work started so far takes."""
        used = [0.0] * len(self.capacities)
        for path in self._paths:
            for resource, weight in (*zip(path.resources, path.weights, strict=True), *path.unlimited):
                used[resource] += weight * path.total
        return used

    def path(self, weights: Mapping[int, float], *, cap: float = math.inf, share: float = 1.0) -> Path:
        """The path of work that uses ``weights[r]`` units of every resource r for a unit of work. It is to be kept:
        rates are remembered by path."""
        unlimited = self.unlimited
        limiting = {r: weight for r, weight in weights.items() if r not in unlimited}
        rest = tuple([(r, weight) for r, weight in weights.items() if r in unlimited]) if unlimited else ()
        path = Path(tuple(limiting), tuple(limiting.values()), rest, cap=cap, share=share, number=len(self._paths))
        return self._add(path)

    def _add(self, path: Path) -> Path:
        self._paths.append(path)
        if len(self._paths) > len(self._remaining):
            self._remaining = np.concatenate((self._remaining, np.zeros(len(self._remaining))))
        return path

    def _free(self, path: Path) -> Path:
        """The path itself, or a twin on which nothing runs."""
        while path.activity is not None:
            if path.twin is None:
                path.twin = self._add(path.alike(len(self._paths)))
            path = path.twin
        return path

    def start(self, work: float, path: Path, done: Action) -> None:
        """Begin now; ``done`` is called when ``work`` is done (never at once)."""
        if path.activity is not None:
            path = self._free(path)
        activity = path.activity = Activity(path, done, work)
        path.total += work
        component = self._join(path.resources)
        component.add(activity)
        if component.columns:
            self._remaining[path.number] = work
        self._touch(component)

    def _join(self, resources: Sequence[int]) -> Component:
        """The one component of these resources; several become one, the smaller moving into the larger."""
        owner, found, free = self._owner, None, False
        for resource in resources:
            other = owner.get(resource)
            if other is None:
                free = True
            elif found is None:
                found = other
            elif other is not found:
                small, found = (other, found) if len(other.activities) <= len(found.activities) else (found, other)
                self._merge(small, found)
        if found is None:
            found = Component(self.clock.now_ps)
        elif not free:
            return found
        for resource in resources:
            owner[resource] = found
        found.resources.update(resources)
        return found

    def _merge(self, small: Component, large: Component) -> None:
        now_ps, remaining = self.clock.now_ps, self._remaining
        for component in (small, large):
            component.advance(now_ps, remaining)
            component.to_activities(remaining)
        for activity in small.activities.values():
            large.add(activity)
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
        component.advance(self.clock.now_ps, self._remaining)
        num = len(component.activities)
        if num == 1:
            first_s = self._share_one(component)
        elif num < VECTOR_SIZE:
            first_s = self._share_few(component)
        else:
            first_s = self._share_many(component)
        if self.loads is not None:
            self._record(component)
        component.version += 1
        delay_ps = round(first_s * PICOSECONDS_PER_S)
        self.clock.after(delay_ps if delay_ps > 0 else 0, partial(self._finish, component, component.version))

    def _share_one(self, component: Component) -> float:
        """Seconds to its end."""
        component.to_activities(self._remaining)
        (activity,) = component.activities.values()
        path = activity.path
        if not path.alone:
            path.alone = rate_alone(path, self.capacities)
        activity.rate = path.alone
        return activity.remaining / path.alone

    def _share_few(self, component: Component) -> float:
        """Rates in plain Python; seconds to the first end."""
        component.to_activities(self._remaining)
        rates = self._known.get(component.mark)
        if rates is None:
            numbers, found = self._rates(component)
            rates = self._remember(component, Rates(dict(zip(numbers, found, strict=True))))
        of, first_s = rates.of, math.inf
        for number, activity in component.activities.items():
            rate = activity.rate = of[number]
            ends_s = activity.remaining / rate
            if ends_s < first_s:
                first_s = ends_s
        return first_s

    def _share_many(self, component: Component) -> float:
        """Rates in numpy; seconds to the first end."""
        component.to_columns(self._remaining)
        rates = self._known.get(component.mark)
        if rates is None:
            numbers, found = self._rates(component)
            rates = self._remember(component, Rates({}, np.array(numbers), np.array(found)))
        component.rates = rates
        return float((self._remaining[rates.rows] / rates.column).min())

    def _rates(self, component: Component) -> tuple[list[int], Sequence[float]]:
        """The numbers of the paths in use, and their rates; whatever the order in which they came."""
        numbers = sorted(component.activities)
        paths = [self._paths[number] for number in numbers]
        if len(paths) < TABLE_SIZE:
            return numbers, fair_rates(paths, self.capacities)
        level = even_level(paths, self.capacities) if all(path.plain for path in paths) else 0.0
        return numbers, [level] * len(paths) if level else many_fair_rates(paths, self._array).tolist()

    def _remember(self, component: Component, rates: Rates) -> Rates:
        self._num_known += len(component.activities)
        if self._num_known > REMEMBERED:
            self._known, self._num_known = {}, len(component.activities)
        self._known[component.mark] = rates
        return rates

    def _finish(self, component: Component, version: int) -> None:
        """End what has no work left at this picosecond (within one: activities that are alike end together)."""
        if component.version != version:
            return
        component.advance(self.clock.now_ps, self._remaining)
        over = component.over(self._remaining)
        assert over, "the timer of a component ended no activity"
        for activity in over:
            component.drop(activity.path)
            activity.path.activity = None
        component.version += 1
        self._release(component)
        for activity in over:
            activity.done()

    def _release(self, component: Component) -> None:
        """Forget an empty component; take one apart that has lost half its activities; else share anew."""
        if component.activities and 2 * len(component.activities) > component.largest:
            self._touch(component)
            return
        component.to_activities(self._remaining)
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
        load = dict.fromkeys(sorted(component.resources), 0.0)
        for activity, rate in component.rates_now():
            for resource, weight in zip(activity.path.resources, activity.path.weights, strict=True):
                load[resource] += weight * rate
        self.loads.extend((self.clock.now_ps, resource, value) for resource, value in load.items())
