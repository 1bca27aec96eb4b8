"""Clock: SimPy's environment in integer picoseconds (float times would reorder ties: 3 × 0.1 comes after 0.3)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import simpy
from simpy.events import EventPriority

from simulator.units import PICOSECONDS_PER_S

Action = Callable[[], Any]
AFTER_ALL = EventPriority(3)  # once everything else at this instant has happened


def picoseconds(seconds: float) -> int:
    return round(seconds * PICOSECONDS_PER_S)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic garbage collection inside: a run keeps millions of live objects and makes no cycles worth a search."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Clock(simpy.Environment):
    """Starts at 0; every delay is an int."""

    @property
    def now_ps(self) -> int:
        return self._now  # type: ignore[return-value]  # only ints are ever added

    def after(self, delay_ps: int, action: Action) -> None:
        """Call ``action`` in ``delay_ps``."""
        event = simpy.Timeout(self, delay_ps)
        assert event.callbacks is not None
        event.callbacks.append(lambda _: action())

    def at_end_of_instant(self, action: Action) -> None:
        """Call ``action`` when nothing else is left to happen now."""
        event = simpy.Event(self)
        event._ok, event._value = True, None
        assert event.callbacks is not None
        event.callbacks.append(lambda _: action())
        self.schedule(event, AFTER_ALL)
