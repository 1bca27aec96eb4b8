"""Streams: a program's operations as tasks on its ranks' in-order streams, each with the tasks it waits for.

CUDA's rule: an operation starts when its stream's previous one has ended and every value it reads has been written
on its rank, by the last writer in issue order (caches too). Successive compute operations between which nothing
enters or leaves their stream are one task: their starts follow from each other, so the engine needs one event for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

from simulator.program import Collective, Operation, Recv, Send

COMPUTE, COLLECTIVE = 0, 1
NOTHING: tuple[int, ...] = ()
Needs = dict[int, list[int]]


@dataclass(slots=True)
class Tasks:
    """Operations and tasks are numbered over the whole program, rank by rank, in issue order; ``offsets[r]``: rank r's
    first operation. Task t: operations ``first[t]`` to ``last[t]`` of ``rank[t]``; the tasks of other streams in
    ``waits[t]`` must have ended before; ``left[t]`` counts those and its stream's previous one; ``followers[t]`` wait
    for it. (Lists of numbers, not of objects: a program has millions.)"""

    operations: list[Operation]
    offsets: list[int]
    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    rank: list[int] = field(default_factory=list)
    stream: list[int] = field(default_factory=list)
    waits: list[tuple[int, ...]] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    followers: list[list[int]] = field(default_factory=list)
    task_of: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.first)

    def operation(self, task: int) -> Operation:
        """Its first; the only one, unless it computes."""
        return self.operations[self.first[task]]


def stream_key(operation: Operation) -> int:
    """``program.stream_of`` as a number: 0 compute, 1 collectives, 2 + 2·peer sends to it, 3 + 2·peer from it."""
    if isinstance(operation, Send):
        return 2 + 2 * operation.to
    if isinstance(operation, Recv):
        return 3 + 2 * operation.source
    return COLLECTIVE if isinstance(operation, Collective) else COMPUTE


def tasks_of(ranks: Sequence[Sequence[Operation]], coalesce: Sequence[bool] | None = None) -> Tasks:
    """The tasks of a program's ranks. coalesce[r] False: every operation of rank r is a task of its own."""
    offsets = [0, *accumulate(len(operations) for operations in ranks)]
    tasks = Tasks(list(chain.from_iterable(ranks)), offsets)
    for rank, operations in enumerate(ranks):
        _add_rank(tasks, rank, operations, coalesce is None or coalesce[rank])
    return tasks


def _add_rank(tasks: Tasks, rank: int, operations: Sequence[Operation], coalesce: bool) -> None:
    keys = list(map(stream_key, operations))
    needs, watched = _dependencies(operations, keys)
    offset, task_of, first, last = tasks.offsets[rank], tasks.task_of, tasks.first, tasks.last
    all_waits, all_left, followers, stream = tasks.waits, tasks.left, tasks.followers, tasks.stream
    latest: dict[int, int] = {}
    growing, task = -1, len(first)  # growing: the compute task that may still take more
    for number, key in enumerate(keys, offset):
        need = needs.get(number - offset)
        if key == COMPUTE:
            if growing >= 0 and need is None and not watched[last[growing] - offset]:
                last[growing] = number
                task_of.append(growing)
                continue
            if coalesce:
                growing = task
        waits, left = NOTHING, 0
        if need is not None:
            waits = tuple([task_of[offset + index] for index in need])
            left = len(waits)
            for wait in waits:
                followers[wait].append(task)
        previous = latest.get(key)
        if previous is not None:
            followers[previous].append(task)
            left += 1
        latest[key] = task
        task_of.append(task)
        first.append(number)
        last.append(number)
        stream.append(key)
        all_waits.append(waits)
        all_left.append(left)
        followers.append([])
        task += 1
    tasks.rank.extend([rank] * (task - len(tasks.rank)))


def _dependencies(operations: Sequence[Operation], keys: Sequence[int]) -> tuple[Needs, bytearray]:
    """For operations that read from *other* streams, the operations they read; and whether another stream reads one."""
    writer: dict[str, int] = {}
    needs: Needs = {}
    watched = bytearray(len(operations))
    for index, operation in enumerate(operations):
        for name in operation.reads:
            source = writer.get(name, -1)
            if source >= 0 and keys[source] != keys[index]:
                watched[source] = True
                found = needs.get(index)
                if found is None:
                    needs[index] = [source]
                elif source not in found:
                    found.append(source)
        for name in operation.writes:
            writer[name] = index
    return needs, watched


def predecessors(operations: Sequence[Operation]) -> list[tuple[int, ...]]:
    """For every operation of a rank, all it waits for there: its stream's previous one, then the writers it reads."""
    writer: dict[str, int] = {}
    latest: dict[int, int] = {}
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
