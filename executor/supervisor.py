"""Supervisor: starts one process a rank, gives them jobs, and notices at once when one dies or hangs.

A dead rank is seen within ``POLL_S``; a hung one when it has done nothing for the timeout. Which rank is to blame:
one that died, else one whose heartbeat stopped, else one that is inside an operation (the others only wait for it).
Then every process is killed, and ExecutionError names the rank and its last operation.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from executor.emulated_hosts import Seat, seats_here
from executor.progress import ProgressFile, RankProgress, State
from executor.wire import decode, encode
from executor.worker import Failure, failure_of, read_frame, write_frame
from simulator.errors import ExecutionError

POLL_S = 0.02
GRACE_S = 0.3  # after a first failure, for others to show whether they are its cause or its victims
START_LIMIT_S = 120.0  # importing torch on a loaded machine
ALLOCATOR = {  # values of a step come and go: glibc is to keep their pages rather than fault them in anew every step
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}

Describe = Callable[[int, RankProgress], str]
"""(rank, progress) → its last operation in words."""


def describe_state(rank: int, progress: RankProgress) -> str:
    return f"{progress.state.name.lower()}"


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    log: Path


class Supervisor:
    """A world of processes on this machine. Reusable: each ``run`` is a job on every rank."""

    def __init__(
        self,
        size: int,
        *,
        directory: Path | None = None,
        timeout_s: float = 60.0,
        seats: Sequence[Seat] = (),
        transport: str = "mesh",
    ) -> None:
        """``transport``: how values travel, ``mesh`` or ``gloo`` (``executor.world``); ``seats``: where each rank's
        process belongs (``executor.emulated_hosts``); none: here, rank i on core i mod cores."""
        self.size, self.timeout_s, self.transport = size, timeout_s, transport
        self.seats = tuple(seats)[:size] or seats_here(size)
        self._made = tempfile.TemporaryDirectory(prefix="attnplan-") if directory is None else None
        self.directory = Path(self._made.name) if self._made else Path(directory or "")
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "store").unlink(missing_ok=True)
        self.progress = ProgressFile(self.directory / "progress", size, create=True)
        self._answers: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._closed = False
        self.processes = [self._start(rank) for rank in range(size)]
        try:
            self._collect(START_LIMIT_S, describe_state, starting=True)
        except BaseException:
            self.close()
            raise

    def _start(self, rank: int) -> _Process:
        log, seat = self.directory / f"rank{rank}.log", self.seats[rank]
        command = [*seat.command, sys.executable, "-m", "executor.worker", str(rank), str(self.size)]
        nodes, limit_s = ",".join(str(seat.node) for seat in self.seats), 10 * self.timeout_s + START_LIMIT_S
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [*command, str(self.directory), str(limit_s), nodes, str(seat.slowdown), self.transport],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=worker_environment(seat.interface),
            )
        if seat.cores:
            os.sched_setaffinity(popen.pid, seat.cores)  # before it has threads, which inherit it
        threading.Thread(target=self._listen, args=(rank, popen), daemon=True).start()
        return _Process(popen, log)

    def _listen(self, rank: int, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        try:
            while True:
                data = read_frame(popen.stdout)
                try:
                    answer = decode(data)
                except Exception as error:  # an answer of a class this process does not know
                    answer = failure_of(error)
                self._answers.put((rank, answer))
        except (EOFError, OSError, ValueError):
            return

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        limit_s: float = 3600.0,
        describe: Describe = describe_state,
        watch: Callable[[], None] | None = None,
    ) -> list[Any]:
        """``function(worker, *arguments)`` on every rank; their answers by rank. A failure closes the world.

        ``limit_s``: the whole job; ``watch`` is called while waiting, e.g. to show progress.
        """
        if self._closed:
            raise ExecutionError("this world was closed by an earlier failure; start another")
        job = encode((function, arguments))
        for process in self.processes:
            # in a thread of its own: a stopped process would block the pipe
            threading.Thread(target=_hand, args=(process, job), daemon=True).start()
        try:
            return self._collect(limit_s, describe, watch=watch)
        except BaseException:
            self.close()
            raise

    def _collect(
        self, limit_s: float, describe: Describe, *, starting: bool = False, watch: Callable[[], None] | None = None
    ) -> list[Any]:
        """Every rank's next answer, or ExecutionError."""
        began_s = time.monotonic()
        found: dict[int, Any] = {}
        while len(found) < self.size:
            self._drain(found, POLL_S)
            if any(isinstance(answer, Failure) for answer in found.values()) or self._dead():
                self._drain(found, GRACE_S)
                raise self._failed(found, describe)
            now_s = time.monotonic()
            if now_s - began_s > limit_s:
                raise ExecutionError(self._late(found, describe, limit_s))
            if not starting and (culprit := self._hung(found, began_s, now_s)) is not None:
                what = describe(culprit, self.progress.read(culprit))
                raise ExecutionError(f"rank {culprit} hung: no progress for {self.timeout_s:g} s; {what}")
            if watch is not None:
                watch()
        return [found[rank] for rank in range(self.size)]

    def _drain(self, found: dict[int, Any], wait_s: float) -> None:
        until_s = time.monotonic() + wait_s
        while len(found) < self.size and (left_s := until_s - time.monotonic()) > 0:
            try:
                rank, answer = self._answers.get(timeout=left_s)
            except Empty:
                return
            found[rank] = answer

    def _dead(self) -> list[int]:
        return [rank for rank, process in enumerate(self.processes) if process.popen.poll() is not None]

    def _failed(self, found: dict[int, Any], describe: Describe) -> ExecutionError:
        """The error of the rank to blame: dead, else with an exception of its own, else whoever lost a peer."""
        dead = self._dead()
        if dead:
            rank = dead[0]
            what = describe(rank, self.progress.read(rank))
            return ExecutionError(f"rank {rank} died ({self._how(rank)}); {what}")
        failures = {rank: answer for rank, answer in found.items() if isinstance(answer, Failure)}
        rank = min(failures, key=lambda rank: (failures[rank].peer, rank))
        what = describe(rank, self.progress.read(rank))
        return ExecutionError(f"rank {rank} failed: {failures[rank].message}; {what}")

    def _how(self, rank: int) -> str:
        code = self.processes[rank].popen.returncode
        if code < 0:
            return f"signal {signal.Signals(-code).name}"
        lines = self.processes[rank].log.read_text(errors="replace").strip().splitlines()
        return f"exit {code}: {lines[-1][:300]}" if lines else f"exit {code}"

    def _late(self, found: dict[int, Any], describe: Describe, limit_s: float) -> str:
        rank = min(set(range(self.size)) - set(found))
        return f"the run passed its limit of {limit_s:g} s; rank {rank}: {describe(rank, self.progress.read(rank))}"

    def _hung(self, found: dict[int, Any], began_s: float, now_s: float) -> int | None:
        """The rank that holds the others up, if one has for the timeout."""
        rows = {rank: self.progress.read(rank) for rank in range(self.size) if rank not in found}
        for rank, row in rows.items():
            if now_s - max(row.heartbeat_s, began_s) > self.timeout_s:
                return rank
        still_s = {rank: now_s - max(row.since_s, began_s) for rank, row in rows.items()}
        for rank, row in rows.items():
            if row.state != State.WAITING and still_s[rank] > self.timeout_s:
                return rank
        if min(still_s.values(), default=0.0) > self.timeout_s:
            return max(still_s, key=lambda rank: still_s[rank])
        return None

    def close(self) -> None:
        """End every process now and wait for it; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for process in self.processes:
            process.popen.kill()
        for process in self.processes:
            process.popen.wait()
            for pipe in (process.popen.stdin, process.popen.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:
                        continue
        self.progress.close()
        if self._made is not None:
            self._made.cleanup()

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hand(process: _Process, job: bytes) -> None:
    assert process.popen.stdin is not None
    try:
        write_frame(process.popen.stdin, job)
    except (OSError, ValueError):
        return  # dead or closed already: the supervisor says which


def worker_environment(interface: str = "") -> dict[str, str]:
    """One thread a rank, this checkout's packages, and the network interface to use (empty: as set, or loopback)."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    threads |= ALLOCATOR
    chosen = {"GLOO_SOCKET_IFNAME": interface} if interface else {}
    return {**os.environ, **threads, **chosen, "PYTHONPATH": path}
