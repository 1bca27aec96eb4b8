"""Sharing: activities that use several resources at once, at max-min fair rates, re-shared at every start and end.

An *activity* has an amount of work and a path: ``weights[i]`` units of ``resources[i]`` for every unit of work, perhaps
a rate cap, and a ``share`` in proportion to which it grows (SimGrid's fluid model: Casanova et al. 2014; Velho et al.
2013). A message is bytes with weight 1 on every link of its route; a kernel on a CPU is core-seconds with weight 1 on
its node's cores and a cap of 1; a collective is the bytes of its busiest link, with the other links' bytes as weights.

Rates are max-min fair (progressive filling, Bertsekas & Gallager 1992, 6.5.2): raise one level s, activity a at
rate share_a·s, until a resource r is full, s = left_r / Σ share_a·weight_ar, or an activity reaches its cap; fix
those, go on with the rest. Only the connected component of what changed is shared anew; components join when an
activity starts across them and are taken apart again when half of their activities have gone. A model's layers bring
the same activities back, so whatever has been worked out once is looked up from then on: the rates of a set of paths,
and what comes after a component's state when as long has passed and the same starts.
What it ignores: slow start, packets, unfairness over round-trip times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simulator.fabric.fair_rates import PLAIN, RESOURCES, even_level, fair_rates, rate_alone
from simulator.fabric.fair_table import many_fair_rates
from simulator.fabric.flowing import VECTOR_SIZE, After, State, Work, following, loads
from simulator.fabric.path import Path
from simulator.simulation.clock import Action, Clock

Start = tuple[float, Path, Action]
"""Work, the path it takes and what to call when it is done."""
TABLE_SIZE = 80  # paths from which numpy finds rates faster
REMEMBERED = 1_000_000  # activities of states that may come back: some 100 MB at the most
STATE_SIZE = 8  # a state takes as much memory as so many activities in one


class Component:
    """Resources that activities share, directly or through others. ``parts``: what flows there, each since its
    instant; several only when an activity has joined them at this one. ``due_ps``: when the first activity ends."""

    __slots__ = ("dirty", "due_ps", "parts", "sharing", "started")

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.parts: list[tuple[State, int]] = []
        self.started: list[tuple[int, float]] = []
        self.due_ps = -1
        self.dirty = False

    def fire(self) -> None:
        """A timer's call. Paths are free again before anybody hears of it."""
        sharing = self.sharing
        if self.due_ps != sharing.clock.now_ps:
            return
        self.due_ps = -1
        state = self.parts[0][0]
        over = state.over
        if len(over) == state.size and sharing.loads is None:
            sharing.release(state.resources)
        else:
            sharing.touch(self)
        if len(over) == 1:
            done, over[0].done = over[0].done, None
            done()  # type: ignore[misc]
            return
        calls = [path.done for path in over]
        for path in over:
            path.done = None
        for done in calls:
            done()  # type: ignore[misc]


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
        self._started: list[tuple[Path, float]] = []
        self._ended: list[Component] = []
        self._paths: list[Path] = []
        self._rates: dict[tuple[Path, ...], Work] = {}
        self._after: dict[tuple[Any, ...], After] = {}
        self._remembered = 0

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
        states are remembered by their paths."""
        unlimited = self.unlimited
        limiting, rest = weights, tuple[tuple[int, float], ...]()
        if not unlimited.isdisjoint(weights):
            limiting = {r: weight for r, weight in weights.items() if r not in unlimited}
            rest = tuple([(r, weight) for r, weight in weights.items() if r in unlimited])
        path = Path(tuple(limiting), tuple(limiting.values()), rest, cap=cap, share=share, number=len(self._paths))
        self._paths.append(path)
        return path

    def rate_alone(self, path: Path) -> float:
        """With nothing beside it, in work per second."""
        if not path.alone:
            path.alone = rate_alone(path, self.capacities)
        return path.alone

    def start(self, work: float, path: Path, done: Action) -> None:
        """Begin now; ``done`` is called when ``work`` is done (never at once)."""
        self.start_all(((work, path, done),))

    def start_all(self, activities: Sequence[Start]) -> None:
        """Begin now."""
        started = self._started
        if not started and not self._ended:
            self.clock.at_end_of_instant(self._settle)
        for work, path, done in activities:
            if path.done is not None:
                path = self._twin(path)
            path.done = done
            path.total += work
            started.append((path, work))

    def _twin(self, path: Path) -> Path:
        """One alike on which nothing runs."""
        while path.done is not None:
            if path.twin is None:
                path.twin = path.alike(len(self._paths))
                self._paths.append(path.twin)
            path = path.twin
        return path

    def touch(self, component: Component) -> None:
        """Something has ended there."""
        if not self._started and not self._ended:
            self.clock.at_end_of_instant(self._settle)
        self._ended.append(component)
        component.dirty = True

    def _settle(self) -> None:
        """Share anew, once all that happens at this instant has happened, where something started or ended."""
        started, self._started = self._started, []
        dirty, self._ended = self._ended, []
        for path, work in started:
            component = self._join(path.resources)
            component.started.append((path.number, work))
            if not component.dirty:
                component.dirty = True
                dirty.append(component)
        for component in dirty:
            if component.dirty:
                component.dirty = False
                self._go_on(component)

    def _join(self, resources: Sequence[int]) -> Component:
        """The one component of these resources, of several if need be."""
        owner, found, free = self._owner, None, False
        for resource in resources:
            other = owner.get(resource)
            if other is None:
                free = True
            elif found is None:
                found = other
            elif other is not found:
                self._merge(other, found)
        if found is None:
            found = Component(self)
        elif not free:
            return found
        for resource in resources:
            owner[resource] = found
        return found

    def _merge(self, other: Component, into: Component) -> None:
        for part, _ in other.parts:
            self._owner.update(dict.fromkeys(part.resources, into))
        for number, _ in other.started:
            self._owner.update(dict.fromkeys(self._paths[number].resources, into))
        into.parts += other.parts
        into.started += other.started
        into.due_ps = other.due_ps = -1
        other.dirty = False

    def release(self, resources: Iterable[int]) -> None:
        """All activities there have ended."""
        owner = self._owner
        for resource in resources:
            del owner[resource]

    def _go_on(self, component: Component) -> None:
        """From its state to the next, with a timer for the instant the first activity ends."""
        parts, started = component.parts, component.started
        if not started:  # the first have ended
            state = parts[0][0]
            found = state.then
            if found is None:
                found = state.then = self._following(component)
        else:
            found = self._after_start(component)
            component.started = []
        if isinstance(found, tuple):
            self._take_apart(component, found)
        else:
            self._flow(component, found)

    def _after_start(self, component: Component) -> After:
        now_ps, parts, started = self.clock.now_ps, component.parts, component.started
        if len(started) > 1:
            started.sort()
        key: tuple[Any, ...]
        if not parts:
            key = tuple(started)
        elif len(parts) == 1:
            key = (parts[0][0], now_ps - parts[0][1], *started)
        else:
            key = (*[(part, now_ps - since_ps) for part, since_ps in parts], *started)
        found = self._after.get(key)
        if found is None:
            found = self._after[key] = self._following(component)
        return found

    def _following(self, component: Component) -> After:
        now_ps = self.clock.now_ps
        parts = [(part, now_ps - since_ps) for part, since_ps in component.parts]
        started = [(self._paths[number], work) for number, work in component.started]
        found = following(parts, started, self.capacities, self._solve)
        states = found if isinstance(found, tuple) else (found,)
        self._remembered += STATE_SIZE + sum([STATE_SIZE + state.size for state in states])
        if self._remembered > REMEMBERED:
            self._after, self._rates, self._remembered = {}, {}, 0
        return found

    def _flow(self, component: Component, state: State) -> None:
        clock, first_ps = self.clock, state.first_ps
        now_ps = clock.now_ps
        component.parts = [(state, now_ps)]
        component.due_ps = now_ps + first_ps
        clock.after(first_ps, component.fire)
        if self.loads is not None:
            self.loads.extend([(now_ps, resource, load) for resource, load in loads(state)])

    def _take_apart(self, component: Component, parts: tuple[State, ...]) -> None:
        """Forget a component whose activities have ended; of what goes on, each part is one of its own."""
        held = component.parts[0][0].resources.union(*[part.resources for part, _ in component.parts[1:]])
        idle = held.difference(*[part.resources for part in parts])
        self.release(idle)
        if self.loads is not None:
            self.loads.extend([(self.clock.now_ps, resource, 0.0) for resource in sorted(idle)])
        if not parts:
            component.due_ps = -1
            return
        self._flow(component, parts[0])
        for part in parts[1:]:
            one = Component(self)
            self._owner.update(dict.fromkeys(part.resources, one))
            self._flow(one, part)

    def _solve(self, paths: tuple[Path, ...]) -> Work:
        """Rates of paths in use, ordered by number."""
        rates = self._rates.get(paths)
        if rates is None:
            rates = self._rates[paths] = self._found(paths)
        return rates

    def _found(self, paths: tuple[Path, ...]) -> Work:
        if len(paths) < TABLE_SIZE:
            rates = fair_rates(paths, self.capacities)
            return np.array(rates) if len(paths) >= VECTOR_SIZE else rates
        level = even_level(list(map(RESOURCES, paths)), self.capacities) if all(map(PLAIN, paths)) else 0.0
        return np.full(len(paths), level) if level else many_fair_rates(paths, self._array)
