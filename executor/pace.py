"""Pace: what a fixed piece of work takes on this core now, beside what it took when the machine was calibrated.

A virtual machine shares caches and memory with neighbours that it cannot see: a product with 16 MB of weights takes
7 ms, and 18 while one is busy, for seconds or minutes, with no stolen time on any counter. What is measured in such a
moment says nothing about a plan. So the work between two looks at the pace counts only if both found the usual one;
otherwise it is done again, as long as patience lasts. No look knows what it is that is measured. A neighbour may slow
one core and not another, so a rank of each core looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from executor.emulated_hosts import Seat
from executor.progress import State
from executor.supervisor import Supervisor
from executor.worker import Worker

SIZE = 2048  # 16 MB of weights in fp32: beyond a core's own caches
ROWS = 64
TOLERANCE = 1.3  # a look on a quiet machine varies by a tenth
PATIENCE_S = 10.0  # of one pace, in all
REST_S = 0.1
TRIES = 4

T = TypeVar("T")
Paces = tuple[float, ...]
"""By rank: seconds of a look as a rule; 0 where another rank looks at its core's."""


class Pace:
    """This core's pace. ``usual_s``: seconds of a look as a rule; 0 where none is known: then every pace is usual."""

    def __init__(self, usual_s: float, patience_s: float = PATIENCE_S) -> None:
        self.usual_s, self.patience_s = usual_s, patience_s
        self.again = 0
        if usual_s:
            self._rows, self._weights = torch.ones(ROWS, SIZE), torch.ones(SIZE, SIZE)

    def is_usual(self) -> bool:
        if not self.usual_s:
            return True
        return self.usual_s / TOLERANCE <= self.look() <= self.usual_s * TOLERANCE

    def look(self) -> float:
        """Core seconds of the work, the better of two."""
        return min(self._one(), self._one())

    def _one(self) -> float:
        began_s = time.thread_time()
        torch.matmul(self._rows, self._weights)
        return time.thread_time() - began_s

    def wait(self) -> None:
        """Return when the pace is usual, or patience is at its end."""
        began_s = time.monotonic()
        while not self.is_usual() and time.monotonic() - began_s < self.patience_s:
            time.sleep(REST_S)
        self.patience_s -= time.monotonic() - began_s

    def kept(self, action: Callable[[], T]) -> T:
        """What the action returned when it found the usual pace before and after, or at the last try."""
        for _ in range(TRIES):
            self.wait()
            found = action()
            if self.holds():
                break
        return found

    def holds(self) -> bool:
        """Whether what was done since the last look counts: the pace is as usual, or no patience is left."""
        if self.patience_s <= 0 or self.is_usual():
            return True
        self.again += 1
        return False


def at_usual_pace(world: Supervisor, paces: Paces, measure: Callable[[], T]) -> T:
    """What ``measure`` found on the world's ranks while every core's pace was the usual one before and after."""
    for _ in range(TRIES):
        came = all(world.run(wait_for_pace, paces))
        found = measure()
        if not came or all(world.run(has_pace, paces)):
            break
    return found


def wait_for_pace(worker: Worker, paces: Paces) -> bool:
    """Job: wait for the usual pace of this rank's core; whether it came before patience was at its end."""
    worker.progress.note(State.RUNNING)
    pace = Pace(paces[worker.world.rank])
    pace.wait()
    return pace.patience_s > 0


def has_pace(worker: Worker, paces: Paces) -> bool:
    """Job: whether this rank's core has its usual pace."""
    worker.progress.note(State.RUNNING)
    return Pace(paces[worker.world.rank]).is_usual()


def usual_paces(world: Supervisor, duration_s: float) -> Paces:
    """The lower quartile of looks during ``duration_s``, all cores at once: they share memory and its caches."""
    return tuple(world.run(usual_pace, watchers(world.seats), duration_s))


def watchers(seats: Sequence[Seat]) -> tuple[int, ...]:
    """The first rank of every core that ranks are told to stay on; else the first rank."""
    first: dict[tuple[int, ...], int] = {}
    for rank, seat in enumerate(seats):
        first.setdefault(seat.cores if len(seat.cores) == 1 else (), rank)
    return tuple(rank for cores, rank in first.items() if cores) or (0,)


def usual_pace(worker: Worker, watching: Sequence[int], duration_s: float) -> float:
    """Job: the lower quartile of this rank's looks during ``duration_s``; 0 where it is not watching."""
    worker.progress.note(State.RUNNING)
    pace, began_s, found = Pace(1.0), time.monotonic(), list[float]()
    while worker.world.rank in watching and time.monotonic() - began_s < duration_s:
        found.append(pace.look())
        time.sleep(REST_S)
    return float(np.quantile(found, 0.25)) if found else 0.0
