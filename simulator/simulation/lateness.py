"""Lateness: when each task must have begun if the program is to end by a deadline.

What follows a task takes at least the longest chain of tasks that wait for each other, each as long as it takes alone:
a compute task its kernels, a transfer its time on idle links. A run in which one begins later cannot end in time, and
is given up there instead of at the deadline.
"""

from __future__ import annotations

from collections.abc import Sequence


class Late(Exception):  # noqa: N818 - no error: a run that need not go on
    """A task began too late for the deadline."""


def latest_starts(
    left: Sequence[int], followers: Sequence[Sequence[int]], alone_ps: Sequence[int], deadline_ps: int
) -> list[int]:
    """By task, in picoseconds. ``left``: for how many others each waits; ``followers``: those that wait for it."""
    waiting = list(left)
    order = [task for task, waits in enumerate(waiting) if not waits]
    for task in order:  # grows: every task comes after all it waits for
        for follower in followers[task]:
            waiting[follower] -= 1
            if not waiting[follower]:
                order.append(follower)
    chain = [0] * len(alone_ps)
    for task in reversed(order):
        after = 0
        for follower in followers[task]:
            if chain[follower] > after:
                after = chain[follower]
        chain[task] = alone_ps[task] + after
    return [deadline_ps - length for length in chain]
