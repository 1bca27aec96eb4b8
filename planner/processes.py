"""Processes: pools whose workers end when the process that asked for them does, however it ends.

A pool's workers wait on a pipe that their siblings hold open too, so when their parent is killed (a page's stop button,
a time limit) nothing tells them: each asks now and then who its parent is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
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
    """``function`` of every case, in order, by at most so many forked processes. Each is forked with the function, one
    object for all of its cases: what a problem keeps on the way serves them all."""
    if workers < 2 or len(cases) < 2:
        return [function(case) for case in cases]
    count, context = min(workers, len(cases)), get_context("fork")
    with ProcessPoolExecutor(count, context, initializer=_begin, initargs=(os.getpid(), function)) as pool:
        return list(pool.map(_call, cases))


_functions: list[Callable[[Any], Any]] = []  # in a worker: its own


def _begin(parent: int, function: Callable[[Any], Any]) -> None:
    end_with_parent(parent)
    _functions.append(function)


def _call(case: Any) -> Any:
    return _functions[-1](case)


def end_with_parent(parent: int) -> None:
    """Watch, from a thread of this worker, that ``parent`` (a process id) is still its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    Thread(target=watch, name="end with parent", daemon=True).start()
