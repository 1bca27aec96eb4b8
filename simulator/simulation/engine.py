"""Engine: a program on a SimPy clock of integer picoseconds.

A process plays each stream of each rank in order (``streams.py``: CUDA's rule). Compute on a GPU of its own is a
timeout; on a CPU node it shares the cores. A Send meets its Recv by (sender, receiver, tag), a Collective its peers
by (ranks, tag); when all are there the transfer starts, on links shared with every other (``network.py``).
Overlap is what these rules allow, nothing else. Whatever has not ended when the clock stops is a deadlock: an
ExecutionError names ranks, operations and what each waits for.
What it ignores: host threads (an operation is issued long before it can run), memory copies within a device.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from simulator.cluster import Cluster
from simulator.costs.collective_cost import Call, collective_cost
from simulator.costs.pricing import Quantile, as_measured, price
from simulator.errors import ExecutionError, InfeasibleError
from simulator.fabric.network import CollectiveFlow, Network
from simulator.fabric.topology import Topology
from simulator.profile import Profile
from simulator.program import Collective, Program, Recv, Send
from simulator.simulation.clock import Clock, collector_paused, picoseconds
from simulator.simulation.deadlock import Stuck, deadlock_message
from simulator.simulation.streams import COMPUTE, RankStreams, StreamKey, streams_of
from simulator.simulation.timeline import Timeline
from simulator.simulation.world import Seconds, World, world_of
from simulator.units import PICOSECONDS_PER_S

__all__ = ["World", "run", "run_until", "simulate", "world_of"]

Process = Generator[simpy.Event, Any, None]
TRANSFERS = (Send, Recv, Collective)


def run(program: Program, cluster: Cluster, durations_s: Sequence[Seconds], world: World | None = None) -> Timeline:
    """The timeline of ``program`` when operation i of rank r computes ``durations_s[r][i]`` seconds on its own device
    (transfers' entries are ignored; a node's slowdown comes on top). ExecutionError on a deadlock."""
    timeline = run_until(program, cluster, durations_s, math.inf, world)
    assert timeline is not None, "no deadline was passed"
    return timeline


def run_until(
    program: Program, cluster: Cluster, durations_s: Sequence[Seconds], deadline_s: float, world: World | None = None
) -> Timeline | None:
    """As ``run``; None as soon as the clock passes ``deadline_s``: the program takes longer."""
    _check_size(program, cluster)
    with collector_paused():
        return _Run(program, Topology(cluster), durations_s, world or World()).play(deadline_s)


def simulate(
    program: Program,
    cluster: Cluster,
    profiles: Mapping[str, Profile],
    *,
    quantile: Quantile = "median",
    record_load: bool = False,
) -> Timeline:
    """The timeline of ``program`` on ``cluster``, its devices priced from ``profiles`` (by GPU name).

    ProfileError where measurements lack, InfeasibleError where ranks do, ExecutionError on a deadlock.
    """
    _check_size(program, cluster)
    prices = price(program, cluster, profiles, quantile)
    world = replace(world_of(profiles, quantile), record_load=record_load)
    return run(program, as_measured(cluster, profiles), prices.durations_s, world.priced(prices))


def _check_size(program: Program, cluster: Cluster) -> None:
    if len(program.ranks) > cluster.num_ranks:
        raise InfeasibleError(
            f"program uses {len(program.ranks)} ranks but cluster {cluster.name} has {cluster.num_ranks}"
        )


@dataclass(slots=True)
class _Meeting:
    """A transfer some of whose ends have arrived: (rank, task) each, and the event that ends it for all."""

    ended: simpy.Event
    ends: list[tuple[int, int]]


class _Run:
    """The state of one run. Per rank: tasks, when each began and ended, the event others wait for."""

    def __init__(self, program: Program, topology: Topology, durations_s: Sequence[Seconds], world: World) -> None:
        self.program, self.topology, self.world = program, topology, world
        self.clock = Clock()
        self.network = Network(self.clock, topology, world.hosts, record_load=world.record_load)
        self.seconds = [
            np.asarray(durations, dtype=np.float64) * topology.places[rank].spec.slowdown
            for rank, durations in enumerate(durations_s)
        ]
        shared = [place.node in self.network.cores for place in topology.places]
        self.streams = [streams_of(ops, coalesce=not shared[rank]) for rank, ops in enumerate(program.ranks)]
        self.began = [[-1] * len(streams.tasks) for streams in self.streams]
        self.ended = [[-1] * len(streams.tasks) for streams in self.streams]
        self.events: list[dict[int, simpy.Event]] = [{} for _ in self.streams]  # made by the first that waits
        self.shared = shared
        self.meetings: dict[tuple[int, ...], _Meeting] = {}
        self.groups: dict[tuple[int, ...], int] = {}
        self.flows: dict[Call, CollectiveFlow] = {}

    def play(self, deadline_s: float) -> Timeline | None:
        for rank, streams in enumerate(self.streams):
            for key, numbers in streams.streams.items():
                self.clock.process(self._stream(rank, key, numbers))
        self.clock.run(None if math.isinf(deadline_s) else picoseconds(deadline_s) + 1)
        stuck = self._stuck()
        if stuck and not math.isinf(self.clock.peek()):
            return None
        if stuck:
            raise ExecutionError(deadlock_message(self.program, stuck))
        return self._timeline()

    def _stream(self, rank: int, key: StreamKey, numbers: list[int]) -> Process:
        if key is not COMPUTE:
            return self._transfers(rank, numbers)
        return self._shared_compute(rank, numbers) if self.shared[rank] else self._compute(rank, numbers)

    def _compute(self, rank: int, numbers: list[int]) -> Process:
        """A GPU's compute stream: one timeout a task, however many operations it has."""
        clock, ended, tasks, began = self.clock, self.ended[rank], self.streams[rank].tasks, self.began[rank]
        total = self._compute_before(rank).tolist()
        for number in numbers:
            task = tasks[number]
            for wait in task.waits:
                if ended[wait] < 0:
                    yield self._end_of(rank, wait)
            began[number] = clock.now_ps
            yield clock.timeout(total[task.last + 1] - total[task.first])
            self._end(rank, number)

    def _compute_before(self, rank: int) -> npt.NDArray[np.int64]:
        """Picoseconds of compute issued before each operation of a rank; one entry more than operations."""
        compute = np.zeros(len(self.program.ranks[rank]), dtype=np.bool_)
        streams = self.streams[rank]
        of_compute = np.zeros(len(streams.tasks), dtype=np.bool_)
        of_compute[streams.streams.get(COMPUTE, [])] = True
        compute = of_compute[np.array(streams.task_of, dtype=np.int64)] if len(compute) else compute
        length = np.rint(self.seconds[rank] * PICOSECONDS_PER_S).astype(np.int64) * compute
        return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(length)))

    def _shared_compute(self, rank: int, numbers: list[int]) -> Process:
        """A CPU rank's compute: every operation is an activity on its node's cores."""
        moved = self.world.moved_bytes
        for number in numbers:
            task = self.streams[rank].tasks[number]
            yield from self._waits(rank, task.waits)
            self.began[rank][number] = self.clock.now_ps
            over = simpy.Event(self.clock)
            num_bytes = 0.0 if moved is None else float(moved[rank][task.first])
            self.network.kernel(rank, float(self.seconds[rank][task.first]), num_bytes, over.succeed)
            yield over
            self._end(rank, number)

    def _transfers(self, rank: int, numbers: list[int]) -> Process:
        operations, tasks = self.program.ranks[rank], self.streams[rank].tasks
        for number in numbers:
            task = tasks[number]
            if task.waits:
                yield from self._waits(rank, task.waits)
            operation = operations[task.first]
            assert isinstance(operation, TRANSFERS)
            yield self._meet(rank, number, operation)
            self._end(rank, number)

    def _waits(self, rank: int, waits: tuple[int, ...]) -> Process:
        for wait in waits:
            if self.ended[rank][wait] < 0:
                yield self._end_of(rank, wait)

    def _end_of(self, rank: int, number: int) -> simpy.Event:
        """The event of a task that has not ended yet."""
        event = self.events[rank].get(number)
        if event is None:
            event = self.events[rank][number] = simpy.Event(self.clock)
        return event

    def _end(self, rank: int, number: int) -> None:
        self.ended[rank][number] = self.clock.now_ps
        event = self.events[rank].pop(number, None)
        if event is not None:
            event.succeed()

    def _meet(self, rank: int, number: int, operation: Send | Recv | Collective) -> simpy.Event:
        """Arrive at a transfer; the last to arrive starts it. The event that ends it for everybody."""
        key: tuple[int, ...]
        match operation:
            case Send(to=to, tag=tag):
                key, size = (rank, to, tag), 2
            case Recv(source=source, tag=tag):
                key, size = (source, rank, tag), 2
            case Collective(ranks=ranks, tag=tag):
                key, size = (self.groups.setdefault(ranks, len(self.groups)), tag), len(ranks)
        meeting = self.meetings.get(key)
        if meeting is None:
            meeting = self.meetings[key] = _Meeting(simpy.Event(self.clock), [])
        meeting.ends.append((rank, number))
        if len(meeting.ends) == size:
            del self.meetings[key]
            self._begin(operation, meeting)
        return meeting.ended

    def _begin(self, operation: Send | Recv | Collective, meeting: _Meeting) -> None:
        for rank, number in meeting.ends:
            self.began[rank][number] = self.clock.now_ps
        self._check(operation, meeting)
        done = meeting.ended.succeed
        match operation:
            case Send(to=to, num_bytes=num_bytes):
                self.network.message(meeting.ends[1][0], to, num_bytes, done)
            case Recv(source=source, num_bytes=num_bytes):
                self.network.message(source, meeting.ends[1][0], num_bytes, done)
            case Collective():
                self.network.collective(self._flow(operation), done)

    def _check(self, operation: Send | Recv | Collective, meeting: _Meeting) -> None:
        """All ends of a transfer must agree on its kind and size."""
        for rank, number in meeting.ends[:-1]:
            other = self.program.ranks[rank][self.streams[rank].tasks[number].first]
            assert isinstance(other, TRANSFERS)
            same_kind = not isinstance(operation, Collective) or (
                isinstance(other, Collective) and other.kind == operation.kind
            )
            if other.num_bytes != operation.num_bytes or not same_kind:
                raise ExecutionError(
                    f"tag {operation.tag}: rank {rank} has {other!r:.120} "
                    f"but rank {meeting.ends[-1][0]} has {operation!r:.120}; their kinds and sizes must agree"
                )

    def _flow(self, operation: Collective) -> CollectiveFlow:
        call = Call(operation.kind, operation.algorithm, operation.ranks, operation.num_bytes)
        flow = self.flows.get(call)
        if flow is None:
            cost = collective_cost(call, self.topology, self.world.in_node)
            flow = self.flows[call] = self.network.collective_flow(cost)
        return flow

    def _stuck(self) -> list[Stuck]:
        """The first unfinished task of every stream that has one, and the task it waits for on its own rank."""
        found = []
        for rank, streams in enumerate(self.streams):
            for numbers in streams.streams.values():
                number = next((n for n in numbers if self.ended[rank][n] < 0), None)
                if number is not None:
                    task = streams.tasks[number]
                    blocker = next((w for w in task.waits if self.ended[rank][w] < 0), None)
                    found.append(Stuck(rank, task.first, None if blocker is None else streams.tasks[blocker].last))
        return found

    def _timeline(self) -> Timeline:
        spans = [self._spans(rank, streams) for rank, streams in enumerate(self.streams)]
        sharing = self.network.sharing
        return Timeline(
            program=self.program,
            start_ps=tuple(start for start, _ in spans),
            end_ps=tuple(end for _, end in spans),
            resources=tuple(self.network.resources),
            resource_units=tuple(sharing.used),
            loads=tuple(sharing.loads or ()),
            launch_s=self.world.launch_s or (0.0,) * len(self.program.ranks),
        )

    def _spans(self, rank: int, streams: RankStreams) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Start and end of every operation; inside a task of several, each begins when the one before it ends."""
        if not streams.tasks:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        task_of = np.array(streams.task_of, dtype=np.int64)
        began, ended = np.array(self.began[rank]), np.array(self.ended[rank])
        if self.shared[rank]:
            return began[task_of], ended[task_of]
        before = self._compute_before(rank)
        first = np.array([task.first for task in streams.tasks], dtype=np.int64)
        start = began[task_of] + before[:-1] - before[first][task_of]
        is_compute = np.zeros(len(streams.tasks), dtype=np.bool_)
        is_compute[streams.streams.get(COMPUTE, [])] = True
        start = np.where(is_compute[task_of], start, began[task_of])
        end = np.where(is_compute[task_of], start + np.diff(before), ended[task_of])
        return start, end
