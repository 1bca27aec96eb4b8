"""Turns: ``python -m executor.turns CORE`` lets the ranks of a core take short turns, until its stdin closes.

A kernel that preempts lazily (Linux since 6.13) changes between two busy threads of a core at the timer tick, every
4 ms, whatever slices they asked for: longer than a decode step. A real-time process that wakes every ``TURN_S`` and
rests again at once makes it choose anew each time, and it chooses who has had least. So ranks that share a core run
side by side, as the GPUs they stand for do. Where it may not be real-time it asks for a slice so short that it is let
in all the same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping

from executor.time_slices import SLICE_S, ask_for_slices, real_time

TURN_S = 2 * SLICE_S  # beyond a slice, so that whoever ran has used it up
INSTANT_S = 1e-4  # the shortest slice that a kernel gives


def keep_turns(cores: Iterable[tuple[int, ...]], environment: Mapping[str, str]) -> list[subprocess.Popen[bytes]]:
    """A process for every core that several ranks are pinned to, given each rank's cores; end them with ``rest``."""
    users = Counter(own[0] for own in cores if len(own) == 1)
    command = [sys.executable, "-m", "executor.turns"]
    return [
        subprocess.Popen([*command, str(core)], stdin=subprocess.PIPE, env=environment)
        for core, count in sorted(users.items())
        if count > 1
    ]


def rest(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End them."""
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    os.sched_setaffinity(0, {int(sys.argv[1])})
    if not real_time():
        ask_for_slices(INSTANT_S)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGALRM, ctypes.cast(libc.abs, ctypes.c_void_p))  # C's own handler: nothing of Python runs
    signal.setitimer(signal.ITIMER_REAL, TURN_S, TURN_S)
    os.read(sys.stdin.fileno(), 1)  # which goes on waiting after a signal (SA_RESTART)


if __name__ == "__main__":
    main()
