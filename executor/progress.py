"""Progress: what every rank is doing, in a small shared file that outlives the rank.

Each rank writes its own row, so nothing is locked: a heartbeat several times a second from a thread of its own, and
its state before every operation. Times are of the system-wide monotonic clock.
"""

from __future__ import annotations

import mmap
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

HEARTBEAT_S = 0.25
FIELDS = 8  # int64 each: one cache line a rank


class State(IntEnum):
    """What a rank is doing."""

    STARTING = 0
    IDLE = 1
    PREPARING = 2
    RUNNING = 3
    WAITING = 4


@dataclass(frozen=True, slots=True)
class RankProgress:
    """A rank's row. ``index`` is the operation of step ``step`` it runs or waits in."""

    heartbeat_s: float
    since_s: float
    state: State
    step: int
    index: int


class ProgressFile:
    """Rows of all ranks; the file is made by the supervisor and opened by every rank."""

    def __init__(self, path: Path, num_ranks: int, *, create: bool = False) -> None:
        size = num_ranks * FIELDS * 8
        if create:
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self.cells = memoryview(self._map).cast("q")

    def read(self, rank: int) -> RankProgress:
        heartbeat, since, state, step, index = self.cells[rank * FIELDS : rank * FIELDS + 5].tolist()
        return RankProgress(heartbeat / 1e9, since / 1e9, State(state), step, index)

    def close(self) -> None:
        self.cells.release()
        self._map.close()


class RankReporter:
    """One rank's pen. ``running`` and ``waiting`` cost about a microsecond."""

    def __init__(self, file: ProgressFile, rank: int) -> None:
        self.cells, self.base = file.cells, rank * FIELDS
        self.step = 0
        self._beat()
        threading.Thread(target=self._beat_forever, daemon=True).start()

    def preparing(self) -> None:
        self.note(State.PREPARING)

    def running(self, index: int) -> None:
        self.note(State.RUNNING, index)

    def waiting(self, index: int) -> None:
        self.note(State.WAITING, index)

    def note(self, state: State, index: int = 0) -> None:
        cells, base = self.cells, self.base
        cells[base + 1] = time.monotonic_ns()
        cells[base + 2] = state
        cells[base + 3] = self.step
        cells[base + 4] = index

    def _beat(self) -> None:
        self.cells[self.base] = time.monotonic_ns()

    def _beat_forever(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            self._beat()
