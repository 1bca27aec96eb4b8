"""Streams: a program's operations as tasks on its ranks' in-order streams, and which tasks wait for which.

CUDA's rule: an operation starts when its stream's previous one has ended and every value it reads has been written
on its rank, by the last writer in issue order (caches too). Two things make one task of several operations. Successive
compute operations between which nothing enters or leaves their stream: their starts follow from each other. And the
ends of a transfer, a Send and its Recv or a collective's parts: it waits for whatever one of its ends waits for, and
ends for all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from simulator.fold import Fold
from simulator.program import Collective, Operation, Recv, Send
from simulator.simulation.meetings import check, meetings_of

COMPUTE, COLLECTIVE = 0, 1
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tasks:
    """Operations are numbered over the whole program, rank by rank, in issue order; ``offsets[r]``: rank r's first.
    Task t < ``num_compute``: the compute operations from ``first[t]`` to ``last[t]``. Other tasks: a transfer, of
    whose ends ``first[t]`` is one. ``rank[t]``: of its first operation. ``left[t]``: how many tasks it waits for;
    ``followers[t]`` wait for it. ``messages[t - num_compute]``: sender (below 0: a collective), receiver and bytes.
    (Numbers, not objects: a program has millions.)"""

    operations: list[Operation]
    offsets: list[int]
    num_compute: int
    task_of: Numbers
    first: list[int]
    last: list[int]
    rank: list[int]
    left: list[int]
    followers: list[list[int]]
    messages: list[tuple[int, int, int]]

    def __len__(self) -> int:
        return len(self.left)

    def operation(self, task: int) -> Operation:
        """Its first, or one of its ends."""
        return self.operations[self.first[task]]


def stream_key(operation: Operation) -> int:
    """``program.stream_of`` as a number: 0 compute, 1 collectives, 2 + 2·peer sends to it, 3 + 2·peer from it."""
    if isinstance(operation, Send):
        return 2 + 2 * operation.to
    if isinstance(operation, Recv):
        return 3 + 2 * operation.source
    return COLLECTIVE if isinstance(operation, Collective) else COMPUTE


@dataclass(slots=True)
class _Draft:
    """``streams[i]`` of operation i; what ``readers[j]`` reads ``sources[j]`` wrote on another stream of its rank. Of
    every transfer's end: the number of its key, which it has in common with the others, and its size."""

    streams: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    numbers: dict[tuple[int, int, int], int] = field(default_factory=dict)
    groups: dict[tuple[int, ...], int] = field(default_factory=dict)

    def group(self, ranks: tuple[int, ...]) -> int:
        """A number for a collective's ranks: below 0, as no rank is."""
        return self.groups.setdefault(ranks, -1 - len(self.groups))

    def sizes(self, kept: frozenset[int] | None) -> Numbers:
        """How many ends the transfers of each key have; of a folded program, in block 0."""
        size = {
            group: len(ranks) if kept is None else sum(rank in kept for rank in ranks)
            for ranks, group in self.groups.items()
        }
        return np.array([2 if key[0] >= 0 else size[key[0]] for key in self.numbers], dtype=np.int64)


def tasks_of(
    ranks: Sequence[Sequence[Operation]], coalesce: Sequence[bool] | None = None, fold: Fold | None = None
) -> Tasks:
    """The tasks of a program's ranks. coalesce[r] False: every compute operation of rank r is a task of its own. Of a
    folded program, only block 0's ends are waited for. ExecutionError where ends of a transfer disagree."""
    offsets = [0, *accumulate(len(operations) for operations in ranks)]
    operations = list(chain.from_iterable(ranks))
    draft = _Draft()
    for rank, own in enumerate(ranks):
        if own:
            _read(draft, rank, own)
    streams, rank_of = np.array(draft.streams, dtype=np.int64), np.repeat(np.arange(len(ranks)), np.diff(offsets))
    across = np.array([draft.sources, draft.readers], dtype=np.int64)
    alone = np.zeros(len(ranks), dtype=np.bool_) if coalesce is None else ~np.array(coalesce, dtype=np.bool_)
    computes, transfers = np.flatnonzero(streams == COMPUTE), np.flatnonzero(streams != COMPUTE)
    keys = np.array(draft.keys, dtype=np.int64)
    meetings = meetings_of(keys, 2 * rank_of[transfers] + streams[transfers] % 2)
    ends = [operations[number] for number in transfers.tolist()]
    check(ends, meetings, draft.num_bytes, streams[transfers] == COLLECTIVE)
    begins = _begins(computes, across, rank_of, alone)
    num_compute = int(begins.sum())
    task_of = np.empty(len(streams), dtype=np.int64)
    task_of[computes] = np.cumsum(begins) - 1
    task_of[transfers] = meetings.transfer + num_compute
    first = np.concatenate((computes[begins], transfers[meetings.first]))
    last = np.concatenate((computes[np.append(begins[1:], True)] if num_compute else computes, first[num_compute:]))
    left, followers = _waits(_edges(streams, rank_of, across), task_of, num_compute, len(first))
    sizes = draft.sizes(None if fold is None else fold.kept)
    left[num_compute:] += sizes[keys[meetings.first]] - meetings.count
    pairs, first_ends = list(draft.numbers), meetings.first.tolist()
    first_pairs = [pairs[draft.keys[end]] for end in first_ends]
    messages = [(one, two, draft.num_bytes[end]) for (one, two, _), end in zip(first_pairs, first_ends, strict=True)]
    rank = rank_of[first].tolist()
    return Tasks(
        operations, offsets, num_compute, task_of, first.tolist(), last.tolist(), rank,
        left.tolist(), followers, messages,
    )  # fmt: skip


def _read(draft: _Draft, rank: int, operations: Sequence[Operation]) -> None:
    """Streams, ends of transfers and what is read across streams, of one rank. A stream that has waited for an
    operation of another has waited for all before it there."""
    streams, numbers, keys, num_bytes = draft.streams, draft.numbers, draft.keys, draft.num_bytes
    writer: dict[str, int] = {}
    waited: dict[tuple[int, int], int] = {}
    for number, operation in enumerate(operations, len(streams)):
        if type(operation) is Recv:
            streams.append(3 + 2 * operation.source)
            key = (operation.source, rank, operation.tag)
            keys.append(numbers.setdefault(key, len(numbers)))
            num_bytes.append(operation.num_bytes)
            for name in operation.writes:
                writer[name] = number
            continue
        if type(operation) is Send:
            stream, key = 2 + 2 * operation.to, (rank, operation.to, operation.tag)
        elif type(operation) is Collective:
            stream, key = COLLECTIVE, (draft.group(operation.ranks), 0, operation.tag)
        else:
            stream = COMPUTE
        if stream:
            keys.append(numbers.setdefault(key, len(numbers)))
            num_bytes.append(operation.num_bytes)  # type: ignore[union-attr]
        for name in operation.reads:
            source = writer.get(name, -1)
            if source >= 0 and streams[source] != stream:
                pair = (stream, streams[source])
                if waited.get(pair, -1) < source:
                    waited[pair] = source
                    draft.sources.append(source)
                    draft.readers.append(number)
        for name in operation.writes:
            writer[name] = number
        streams.append(stream)


def _begins(computes: Numbers, edges: Numbers, rank_of: Numbers, alone: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which compute operations begin a task: the first of a rank, what reads from other streams, and what follows on
    something that others read."""
    begins = np.ones(len(computes), dtype=np.bool_)
    if len(computes) > 1:
        read, reads = np.zeros((2, len(rank_of)), dtype=np.bool_)
        read[edges[0]] = reads[edges[1]] = True
        ranks = rank_of[computes]
        begins[1:] = (ranks[1:] != ranks[:-1]) | alone[ranks[1:]] | read[computes[:-1]] | reads[computes[1:]]
    return begins


def _edges(streams: Numbers, rank_of: Numbers, edges: Numbers) -> Numbers:
    """Pairs of operations, the second of which waits for the first: within streams, and what is read across."""
    if not len(streams):
        return edges
    key = rank_of * (streams.max() + 1) + streams
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    return np.concatenate((np.stack((order[:-1][same], order[1:][same])), edges), axis=1)


def _waits(edges: Numbers, task_of: Numbers, num_compute: int, num_tasks: int) -> tuple[Numbers, list[list[int]]]:
    """Between tasks: how many each waits for, and who waits for each."""
    before, after = task_of[edges]
    between = (before != after) | (before >= num_compute)
    before, after = before[between], after[between]
    order = np.argsort(before, kind="stable")
    targets = after[order].tolist()
    ends = np.cumsum(np.bincount(before, minlength=num_tasks)).tolist()
    followers = [targets[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return np.bincount(after, minlength=num_tasks), followers


def waits_across(operations: Sequence[Operation]) -> list[tuple[int, ...]]:
    """For every operation of a rank, those on other streams whose values it reads."""
    writer: dict[str, int] = {}
    found: list[tuple[int, ...]] = []
    for index, operation in enumerate(operations):
        key, sources = stream_key(operation), [writer[name] for name in operation.reads if name in writer]
        found.append(tuple(dict.fromkeys(source for source in sources if stream_key(operations[source]) != key)))
        writer |= dict.fromkeys(operation.writes, index)
    return found


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
