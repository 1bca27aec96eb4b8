"""Streams: a rank's operations as tasks on in-order streams, each with the tasks of other streams it waits for.

CUDA's rule: an operation starts when its stream's previous one has ended and every value it reads has been written
on its rank, by the last writer in issue order (caches too). Successive compute operations between which nothing
enters or leaves their stream are one task: their starts follow from each other, so the engine needs one event for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

from simulator.program import Collective, Operation, Recv, Send

StreamKey = tuple[str, int]
"""("compute", 0), ("collective", 0), ("send", receiver) or ("recv", sender)."""
COMPUTE: StreamKey = ("compute", 0)
COLLECTIVE: StreamKey = ("collective", 0)
NOTHING: tuple[int, ...] = ()


class Task(NamedTuple):
    """The operations of one stream from ``first`` to ``last``; ``waits``: numbers of tasks of other streams that must
    have ended before. (A tuple, not a dataclass: a program has millions.)"""

    first: int
    last: int
    waits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RankStreams:
    """A rank's tasks in issue order, the task of every operation, and each stream's task numbers."""

    tasks: list[Task]
    task_of: list[int]
    streams: dict[StreamKey, list[int]]


def stream_key(operation: Operation) -> StreamKey:
    """``program.stream_of`` as a key that compares fast; anything but a transfer is compute."""
    kind = type(operation)
    if kind is Send:
        return ("send", cast(Send, operation).to)
    if kind is Recv:
        return ("recv", cast(Recv, operation).source)
    return COLLECTIVE if kind is Collective else COMPUTE


def streams_of(operations: Sequence[Operation], *, coalesce: bool = True) -> RankStreams:
    """The tasks of one rank. coalesce False: every operation is a task of its own."""
    keys = [stream_key(operation) for operation in operations]
    needs, watched = _dependencies(operations, keys)
    task_of: list[int] = []
    firsts: list[int] = []
    lasts: list[int] = []
    streams: dict[StreamKey, list[int]] = {}
    growing = -1  # the compute task that may still take more
    for index, key in enumerate(keys):
        if key is COMPUTE and growing >= 0 and not needs[index] and not watched[lasts[growing]]:
            lasts[growing] = index
            task_of.append(growing)
            continue
        if key is COMPUTE and coalesce:
            growing = len(firsts)
        task_of.append(len(firsts))
        streams.setdefault(key, []).append(len(firsts))
        firsts.append(index)
        lasts.append(index)
    tasks = [
        Task(first, last, tuple([task_of[need] for need in needs[first]]))
        for first, last in zip(firsts, lasts, strict=True)
    ]
    return RankStreams(tasks, task_of, streams)


def _dependencies(operations: Sequence[Operation], keys: Sequence[StreamKey]) -> tuple[list[Sequence[int]], list[bool]]:
    """For every operation: the operations of *other* streams it reads from, and whether another stream reads it."""
    writer: dict[str, int] = {}
    needs: list[Sequence[int]] = []
    watched = [False] * len(operations)
    for index, operation in enumerate(operations):
        found: list[int] = []
        key = keys[index]
        for name in operation.reads:
            source = writer.get(name)
            if source is not None and keys[source] != key and source not in found:
                found.append(source)
                watched[source] = True
        needs.append(found or NOTHING)
        for name in operation.writes:
            writer[name] = index
    return needs, watched


def followers_of(streams: RankStreams) -> tuple[list[int], list[list[int]]]:
    """Per task: how many it waits for, its stream's previous one included, and the tasks that wait for it."""
    left = [len(task.waits) for task in streams.tasks]
    followers: list[list[int]] = [[] for _ in streams.tasks]
    for numbers in streams.streams.values():
        for number, following in pairwise(numbers):
            followers[number].append(following)
            left[following] += 1
    for number, task in enumerate(streams.tasks):
        for wait in task.waits:
            followers[wait].append(number)
    return left, followers


def predecessors(operations: Sequence[Operation]) -> list[tuple[int, ...]]:
    """For every operation of a rank, all it waits for there: its stream's previous one, then the writers it reads."""
    writer: dict[str, int] = {}
    latest: dict[StreamKey, int] = {}
    result: list[tuple[int, ...]] = []
    for index, operation in enumerate(operations):
        key = stream_key(operation)
        found = [latest[key]] if key in latest else []
        found += [writer[name] for name in operation.reads if name in writer]
        result.append(tuple(dict.fromkeys(found)))
        latest[key] = index
        for name in operation.writes:
            writer[name] = index
    return result
