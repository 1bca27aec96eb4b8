"""Max-min fair rates of many activities: the rule of ``sharing.py`` on numpy columns that outlive an event.

Rows are activities, pairs are (activity, resource). A round fixes every resource that is full before all others its
activities use (a local bottleneck), not only the first of all: later rounds can only raise the levels of the rest
(Ros-Giralt et al. 2021, bottleneck structures), so the rates are the same and the rounds few.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.fabric.fair_rates import SAME_LEVEL
from simulator.units import PICOSECONDS_PER_S

if TYPE_CHECKING:
    from simulator.fabric.sharing import Activity

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


class FairTable:
    """Activities of one component. Every activity has at least one resource."""

    def __init__(self, capacities: Array, now_ps: int) -> None:
        self.activities: list[Activity] = []
        self.updated_ps = now_ps
        self.remaining, self.rate, self.share_of, self.cap, self.weight = (np.empty(0) for _ in range(5))
        self.count, self.place = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        self._places: dict[int, int] = {}  # resource → its place among this component's
        self._capacities = capacities
        self._index()

    def add(self, activities: list[Activity], now_ps: int) -> None:
        """Take over activities, whose state may be older than now."""
        self._advance(now_ps)
        places, paths = self._places, [activity.path for activity in activities]
        rate = np.array([activity.rate for activity in activities])
        stale_s = np.array([now_ps - activity.updated_ps for activity in activities]) / PICOSECONDS_PER_S
        remaining = np.array([activity.remaining for activity in activities]) - rate * stale_s
        used = [places.setdefault(r, len(places)) for r in chain.from_iterable([p.resources for p in paths])]
        columns: dict[str, list[float] | Array] = {
            "remaining": remaining,
            "rate": rate,
            "share_of": [activity.share for activity in activities],
            "cap": [activity.cap for activity in activities],
            "weight": list(chain.from_iterable([path.weights for path in paths])),
        }
        for name, values in columns.items():
            setattr(self, name, np.concatenate((getattr(self, name), values)))
        self.place = np.concatenate((self.place, np.array(used, dtype=np.int64)))
        self.count = np.concatenate((self.count, np.array([len(p.resources) for p in paths], dtype=np.int64)))
        self.activities = self.activities + activities
        self._index()

    def _index(self) -> None:
        """What follows from the columns: the activity of each pair, each activity's first pair, and so on."""
        self.capacity = self._capacities[list(self._places)]
        self.owner = np.repeat(np.arange(len(self.count)), self.count)
        self.first = np.cumsum(self.count) - self.count
        self.demand = self.weight * self.share_of[self.owner]
        self.top = self.cap / self.share_of

    def state(self) -> tuple[list[Activity], list[float], list[float]]:
        """(activities, remaining, rates) at ``updated_ps``."""
        return self.activities, self.remaining.tolist(), self.rate.tolist()

    def share(self, now_ps: int) -> float:
        """New rates from now on; seconds to the first end."""
        self._advance(now_ps)
        self.rate = self._rates()
        return float((self.remaining / self.rate).min())

    def finish(self, now_ps: int) -> list[Activity]:
        """Remove and return what has at most a picosecond's work left."""
        self._advance(now_ps)
        keep = self.remaining > self.rate / PICOSECONDS_PER_S
        over = [self.activities[index] for index in np.flatnonzero(~keep).tolist()]
        self.activities = [self.activities[index] for index in np.flatnonzero(keep).tolist()]
        pairs = keep[self.owner]
        self.weight, self.place = self.weight[pairs], self.place[pairs]
        for name in ("remaining", "rate", "share_of", "cap", "count"):
            setattr(self, name, getattr(self, name)[keep])
        self._index()
        return over

    def _advance(self, now_ps: int) -> None:
        self.remaining = self.remaining - self.rate * ((now_ps - self.updated_ps) / PICOSECONDS_PER_S)
        self.updated_ps = now_ps

    def _rates(self) -> Array:
        rates, waiting = np.zeros(len(self.count)), np.ones(len(self.count), dtype=np.bool_)
        left, resources = self.capacity, len(self.capacity)
        while True:
            load = np.bincount(self.place, self.demand * waiting[self.owner], resources)
            level = np.divide(left, load, out=np.full(resources, np.inf), where=load > 0)
            nearest = np.minimum.reduceat(level[self.place], self.first)
            capped = waiting & (self.top <= nearest * SAME_LEVEL)
            nearest = np.minimum(nearest, self.top)
            lowest = np.full(resources, np.inf)
            np.minimum.at(lowest, self.place, np.where(waiting, nearest, np.inf)[self.owner])
            full = (lowest * SAME_LEVEL >= level) & (load > 0)
            held = waiting & ~capped & np.logical_or.reduceat(full[self.place], self.first)
            rates[capped] = self.cap[capped]
            rates[held] = (self.share_of * nearest)[held]
            fixed = capped | held
            waiting = waiting & ~fixed
            if not waiting.any():
                return rates
            spent = np.bincount(self.place, self.weight * (rates * fixed)[self.owner], resources)
            left = np.maximum(left - spent, 0.0)
