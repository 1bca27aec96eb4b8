"""Lateness: when each task must have begun if its rank is to end by a deadline.

What follows a task on its own rank takes at least the longest chain of tasks that wait for each other, each as long as
it takes alone: a compute task its kernels, a collective its time on idle links, a message nothing. A run in which one
begins later cannot end in time, and is given up there instead of at the deadline.
"""

from __future__ import annotations

from collections.abc import Sequence


class Late(Exception):  # noqa: N818 - no error: a run that need not go on
    """A task began too late for the deadline."""


def latest_starts(followers: Sequence[Sequence[int]], alone_ps: Sequence[int], deadline_ps: int) -> list[int]:
    """By task of one rank, in picoseconds. ``followers``: the tasks that wait for each, all of higher number."""
    chain = [0] * len(alone_ps)
    for number in range(len(alone_ps) - 1, -1, -1):
        after = 0
        for follower in followers[number]:
            if chain[follower] > after:
                after = chain[follower]
        chain[number] = alone_ps[number] + after
    return [deadline_ps - length for length in chain]
