"""Streams: a rank's operations as tasks on in-order streams, each with the tasks of other streams it waits for.

CUDA's rule: an operation starts when its stream's previous one has ended and every value it reads has been written
on its rank, by the last writer in issue order (caches too). Successive compute operations between which nothing
enters or leaves their stream are one task: their starts follow from each other, so the engine needs one event for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.program import Collective, Operation, Recv, Send

StreamKey = tuple[str, int]
"""("compute", 0), ("collective", 0), ("send", receiver) or ("recv", sender)."""
COMPUTE: StreamKey = ("compute", 0)
COLLECTIVE: StreamKey = ("collective", 0)


@dataclass(frozen=True, slots=True)
class Task:
    """The operations of one stream from ``first`` to ``last``. ``waits``: numbers of tasks of other streams that must
    have ended; ``watched``: some task of another stream waits for this one."""

    first: int
    last: int
    waits: tuple[int, ...]
    watched: bool


@dataclass(frozen=True, slots=True)
class RankStreams:
    """A rank's tasks in issue order, the task of every operation, and each stream's task numbers."""

    tasks: list[Task]
    task_of: list[int]
    streams: dict[StreamKey, list[int]]


def stream_key(operation: Operation) -> StreamKey:
    """``program.stream_of`` as a key that compares fast."""
    if isinstance(operation, Send):
        return ("send", operation.to)
    if isinstance(operation, Recv):
        return ("recv", operation.source)
    return COLLECTIVE if isinstance(operation, Collective) else COMPUTE


def streams_of(operations: Sequence[Operation], *, coalesce: bool = True) -> RankStreams:
    """The tasks of one rank. coalesce False: every operation is a task of its own."""
    keys = [stream_key(operation) for operation in operations]
    needs, watched = _dependencies(operations, keys)
    task_of: list[int] = []
    spans: list[list[int]] = []
    streams: dict[StreamKey, list[int]] = {}
    growing: list[int] | None = None  # the compute task that may still take more
    growing_number = -1
    for index, key in enumerate(keys):
        if key is COMPUTE and growing is not None and not needs[index] and not watched[growing[1]]:
            growing[1] = index
            task_of.append(growing_number)
            continue
        number = len(spans)
        span = [index, index]
        if key is COMPUTE and coalesce:
            growing, growing_number = span, number
        task_of.append(number)
        streams.setdefault(key, []).append(number)
        spans.append(span)
    tasks = [Task(first, last, tuple([task_of[need] for need in needs[first]]), watched[last]) for first, last in spans]
    return RankStreams(tasks, task_of, streams)


def _dependencies(operations: Sequence[Operation], keys: Sequence[StreamKey]) -> tuple[list[list[int]], list[bool]]:
    """For every operation: the operations of *other* streams it reads from, and whether another stream reads it."""
    writer: dict[str, int] = {}
    needs: list[list[int]] = []
    watched = [False] * len(operations)
    for index, operation in enumerate(operations):
        found: list[int] = []
        for name in operation.reads:
            source = writer.get(name)
            if source is not None and keys[source] != keys[index] and source not in found:
                found.append(source)
                watched[source] = True
        needs.append(found)
        for name in operation.writes:
            writer[name] = index
    return needs, watched


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
