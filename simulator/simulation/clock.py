"""Clock: SimPy's environment in integer picoseconds (float times would reorder ties: 3 × 0.1 comes after 0.3).

Bare calls go through SimPy's own queue, without an event object each: a run makes several a message.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy
from simpy.events import EventPriority

from simulator.units import PICOSECONDS_PER_S

Action = Callable[[], Any]
NORMAL = int(EventPriority(1))


def picoseconds(seconds: float) -> int:
    return round(seconds * PICOSECONDS_PER_S)


class Clock(simpy.Environment):
    """Starts at 0; every delay is an int. Runs SimPy's events and processes, and calls scheduled with ``after``."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ps = 0  # SimPy's ``now``, as an attribute
        self._calls: list[Any] = self._queue  # SimPy's own queue: what is due comes out in one order
        self._last: list[Action] = []

    def after(self, delay_ps: int, action: Action) -> None:
        """Call ``action`` in ``delay_ps``."""
        heappush(self._calls, (self.now_ps + delay_ps, NORMAL, next(self._eid), action))

    def at_end_of_instant(self, action: Action) -> None:
        """Call ``action`` when nothing else is left to happen now."""
        self._last.append(action)

    def run(self, until: Any = None) -> None:
        """Until nothing is left, or nothing before ``until`` (picoseconds); raises what a process raised."""
        queue, event = self._calls, simpy.Event
        while True:
            if self._last and not (queue and queue[0][0] == self.now_ps):
                last, self._last = self._last, []
                for action in last:
                    action()
                continue
            if not queue or (until is not None and queue[0][0] >= until):
                return
            now_ps = self.now_ps = self._now = queue[0][0]
            while queue and queue[0][0] == now_ps:
                item = heappop(queue)[3]
                if isinstance(item, event):
                    _call_back(item)
                else:
                    item()


def _call_back(event: simpy.Event) -> None:
    """As SimPy's step does."""
    callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
    for callback in callbacks:
        callback(event)
    if not event._ok and not event.defused:
        raise event._value
