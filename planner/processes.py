"""Processes: pools whose workers end when the process that asked for them does, however it ends.

A pool's workers wait on a pipe that their siblings hold open too, so when their parent is killed (a page's stop button,
a time limit) nothing tells them: each asks now and then who its parent is.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from threading import Thread
from typing import Any, Literal, TypeVar

LOOK_EVERY_S = 0.5
Case = TypeVar("Case")
Result = TypeVar("Result")


def process_pool(count: int, *, start: Literal["fork", "spawn"]) -> ProcessPoolExecutor:
    """``count`` workers, each gone within LOOK_EVERY_S of this process."""
    return ProcessPoolExecutor(
        count, mp_context=get_context(start), initializer=end_with_parent, initargs=(os.getpid(),)
    )


def each(function: Callable[[Case], Result], cases: Sequence[Case], workers: int) -> list[Result]:
    """``function`` of every case, in order, by at most so many forked processes."""
    if workers < 2 or len(cases) < 2:
        return [function(case) for case in cases]
    with process_pool(min(workers, len(cases)), start="fork") as pool:
        return list(pool.map(partial(_call, pickle.dumps(function)), cases))


def _call(function: bytes, case: Case) -> Any:
    return _loaded(function)(case)


@lru_cache(maxsize=1)
def _loaded(function: bytes) -> Callable[[Any], Any]:
    """One object for all of a worker's cases: what a problem keeps on the way serves them all."""
    found: Callable[[Any], Any] = pickle.loads(function)
    return found


def end_with_parent(parent: int) -> None:
    """Watch, from a thread of this worker, that ``parent`` (a process id) is still its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    Thread(target=watch, name="end with parent", daemon=True).start()
