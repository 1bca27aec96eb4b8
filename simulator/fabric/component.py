"""Component: activities that share resources, directly or through others, and their progress.

Few are kept as numbers on the activities themselves, many in columns by the number of their path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.fabric.path import Path
from simulator.units import PICOSECONDS_PER_S

if TYPE_CHECKING:
    from simulator.simulation.clock import Action

Array = npt.NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Activity:
    """Work in progress. ``remaining`` and ``rate`` hold at its component's ``updated_ps``; ``done`` is called when it
    ends."""

    path: Path
    done: Action
    remaining: float
    rate: float = 0.0


@dataclass(slots=True, eq=False)
class Rates:
    """The rates of a set of paths, by number (of few) or as columns (of many)."""

    of: dict[int, float]
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    column: Array = field(default_factory=lambda: np.empty(0))


class Component:
    """``activities`` by path number; ``mark`` tells the set of their paths. With ``columns``, what remains of them is
    in a column of all paths, and ``rates`` (None at first) are theirs, but for the ones that came since."""

    __slots__ = ("activities", "columns", "dirty", "largest", "mark", "rates", "resources", "updated_ps", "version")

    def __init__(self, now_ps: int) -> None:
        self.activities: dict[int, Activity] = {}
        self.resources: set[int] = set()
        self.rates: Rates | None = None
        self.mark = self.version = self.largest = 0
        self.updated_ps = now_ps
        self.columns = self.dirty = False

    def add(self, activity: Activity) -> None:
        self.activities[activity.path.number] = activity
        self.mark ^= activity.path.mark
        if len(self.activities) > self.largest:
            self.largest = len(self.activities)

    def drop(self, path: Path) -> None:
        del self.activities[path.number]
        self.mark ^= path.mark

    def advance(self, now_ps: int, remaining: Array) -> None:
        """Take off the work done since the last time; ``remaining``: the column of all paths."""
        elapsed_ps, self.updated_ps = now_ps - self.updated_ps, now_ps
        if not elapsed_ps:
            return
        if not self.columns:
            for activity in self.activities.values():
                activity.remaining -= activity.rate * elapsed_ps / PICOSECONDS_PER_S
        elif self.rates is not None:
            remaining[self.rates.rows] -= self.rates.column * (elapsed_ps / PICOSECONDS_PER_S)

    def over(self, remaining: Array) -> list[Activity]:
        """What has at most a picosecond's work left at ``updated_ps``."""
        if not self.columns:
            return [a for a in self.activities.values() if a.remaining <= a.rate / PICOSECONDS_PER_S]
        assert self.rates is not None
        rows = self.rates.rows
        ended = rows[remaining[rows] <= self.rates.column / PICOSECONDS_PER_S].tolist()
        return [self.activities[number] for number in ended]

    def rates_now(self) -> Iterator[tuple[Activity, float]]:
        """Every activity with its rate, once shared."""
        if self.columns and self.rates is not None:
            for number, rate in zip(self.rates.rows.tolist(), self.rates.column.tolist(), strict=True):
                yield self.activities[number], rate
        else:
            for activity in self.activities.values():
                yield activity, activity.rate

    def to_columns(self, remaining: Array) -> None:
        """Many activities from here on."""
        if not self.columns:
            self.columns = True
            for number, activity in self.activities.items():
                remaining[number] = activity.remaining

    def to_activities(self, remaining: Array) -> None:
        """Few activities from here on; they keep their rates, as a timer set by them may fire before they are shared
        anew."""
        if self.columns:
            for activity, left in zip(self.activities.values(), remaining[list(self.activities)].tolist(), strict=True):
                activity.remaining, activity.rate = left, 0.0
            if self.rates is not None:
                for number, rate in zip(self.rates.rows.tolist(), self.rates.column.tolist(), strict=True):
                    if number in self.activities:
                        self.activities[number].rate = rate
            self.columns, self.rates = False, None
