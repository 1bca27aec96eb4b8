"""Engine: a program on a SimPy clock of integer picoseconds.

A task starts when its stream's previous one and those it waits for have ended (``streams.py``: CUDA's rule). Compute
on a GPU of its own is a timeout; on a CPU node it shares the cores. A Send meets its Recv by (sender, receiver, tag), a
Collective its peers by (ranks, tag); when all are there the transfer starts, on links shared with every other
(``network.py``).
Overlap is what these rules allow, nothing else. Whatever has not ended when the clock stops is a deadlock: an
ExecutionError names ranks, operations and what each waits for.
What it ignores: host threads (an operation is issued long before it can run), memory copies within a device, and
unless a profile has it, what transfers take from kernels beside them (``interference.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

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
from simulator.simulation.lateness import Late, latest_starts
from simulator.simulation.streams import COLLECTIVE, COMPUTE, RankStreams, followers_of, streams_of
from simulator.simulation.timeline import Timeline
from simulator.simulation.world import Seconds, World, world_of
from simulator.units import PICOSECONDS_PER_S

__all__ = ["World", "run", "run_until", "simulate", "world_of"]

End = tuple[int, int]
"""(rank, task)."""
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
    """As ``run``; None as soon as it is certain to take longer than ``deadline_s`` (``lateness.py``)."""
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


class _Run:
    """The state of one run. Per rank and task: when it began and ended, how many it waits for, who waits for it."""

    def __init__(self, program: Program, topology: Topology, durations_s: Sequence[Seconds], world: World) -> None:
        self.program, self.topology, self.world = program, topology, world
        self.clock = Clock()
        self.network = Network(self.clock, topology, world.hosts, world.interference, record_load=world.record_load)
        self.seconds = [
            np.asarray(durations, dtype=np.float64) * topology.places[rank].spec.slowdown
            for rank, durations in enumerate(durations_s)
        ]
        self.shared = [
            place.node in self.network.cores or rank in self.network.devices
            for rank, place in enumerate(topology.places)
        ]
        self.streams = [streams_of(ops, coalesce=not self.shared[rank]) for rank, ops in enumerate(program.ranks)]
        self.began = [[-1] * len(streams.tasks) for streams in self.streams]
        self.ended = [[-1] * len(streams.tasks) for streams in self.streams]
        self.left, self.followers = zip(*(followers_of(streams) for streams in self.streams), strict=True)
        self.before = [self._compute_before(rank) for rank in range(len(self.streams))]
        self.length = [self._lengths(rank) for rank in range(len(self.streams))]
        self.meetings: dict[tuple[int, ...], list[End]] = {}
        self.groups: dict[tuple[int, ...], int] = {}
        self.flows: dict[Call, CollectiveFlow] = {}
        self.latest: list[list[int]] | None = None

    def play(self, deadline_s: float) -> Timeline | None:
        if not math.isinf(deadline_s):
            self.latest = self._latest(picoseconds(deadline_s))
        for rank, streams in enumerate(self.streams):
            for numbers in streams.streams.values():
                if not self.left[rank][numbers[0]]:
                    self.clock.after(0, partial(self._start, rank, numbers[0]))
        try:
            self.clock.run(None if math.isinf(deadline_s) else picoseconds(deadline_s) + 1)
        except Late:
            return None
        stuck = self._stuck()
        if stuck and not math.isinf(self.clock.peek()):
            return None
        if stuck:
            raise ExecutionError(deadlock_message(self.program, stuck))
        return self._timeline()

    def _compute_before(self, rank: int) -> npt.NDArray[np.int64]:
        """Picoseconds of compute issued before each operation of a rank; one entry more than operations."""
        streams = self.streams[rank]
        length = np.rint(self.seconds[rank] * PICOSECONDS_PER_S).astype(np.int64)
        of_compute = np.zeros(len(streams.tasks), dtype=np.bool_)
        of_compute[streams.streams.get(COMPUTE, [])] = True
        if len(length):
            length = length * of_compute[np.array(streams.task_of, dtype=np.int64)]
        return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(length)))

    def _lengths(self, rank: int) -> list[int]:
        """Picoseconds of every compute task on a device of its own; −1 for transfers and on shared cores."""
        streams = self.streams[rank]
        lengths = [-1] * len(streams.tasks)
        before = self.before[rank].tolist()
        for number in () if self.shared[rank] else streams.streams.get(COMPUTE, ()):
            task = streams.tasks[number]
            lengths[number] = before[task.last + 1] - before[task.first]
        return lengths

    def _latest(self, deadline_ps: int) -> list[list[int]]:
        """When every task must begin; lengths on shared cores are not known before."""
        found = []
        for rank, streams in enumerate(self.streams):
            alone_ps = [max(length, 0) for length in self.length[rank]]
            for number in streams.streams.get(COLLECTIVE, ()):
                operation = self.program.ranks[rank][streams.tasks[number].first]
                assert isinstance(operation, Collective)
                alone_ps[number] = self._flow(operation).least_ps
            found.append(latest_starts(self.followers[rank], alone_ps, deadline_ps))
        return found

    def _start(self, rank: int, number: int) -> None:
        """All that a task waits for has ended."""
        if self.latest is not None and self.clock.now_ps > self.latest[rank][number]:
            raise Late
        length = self.length[rank][number]
        if length >= 0:
            self.began[rank][number] = self.clock.now_ps
            self.clock.after(length, partial(self._end, rank, number))
            return
        operation = self.program.ranks[rank][self.streams[rank].tasks[number].first]
        if isinstance(operation, TRANSFERS):
            self._meet(rank, number, operation)
        else:
            self._compute_on_cores(rank, number)

    def _compute_on_cores(self, rank: int, number: int) -> None:
        """An operation on shared cores, or on a device that transfers slow down, is an activity there."""
        index, moved = self.streams[rank].tasks[number].first, self.world.moved_bytes
        self.began[rank][number] = self.clock.now_ps
        num_bytes = 0.0 if moved is None else float(moved[rank][index])
        self.network.kernel(rank, float(self.seconds[rank][index]), num_bytes, partial(self._end, rank, number))

    def _end(self, rank: int, number: int) -> None:
        self.ended[rank][number] = self.clock.now_ps
        left = self.left[rank]
        for follower in self.followers[rank][number]:
            left[follower] -= 1
            if not left[follower]:
                self._start(rank, follower)

    def _end_all(self, ends: list[End]) -> None:
        for rank, number in ends:
            self._end(rank, number)

    def _meet(self, rank: int, number: int, operation: Send | Recv | Collective) -> None:
        """Arrive at a transfer; the last to arrive starts it, and it ends for all at once."""
        key: tuple[int, ...]
        match operation:
            case Send(to=to, tag=tag):
                key, size = (rank, to, tag), 2
            case Recv(source=source, tag=tag):
                key, size = (source, rank, tag), 2
            case Collective(ranks=ranks, tag=tag):
                key, size = (self.groups.setdefault(ranks, len(self.groups)), tag), len(ranks)
        ends = self.meetings.get(key)
        if ends is None:
            ends = self.meetings[key] = []
        ends.append((rank, number))
        if len(ends) == size:
            del self.meetings[key]
            self._begin(operation, ends)

    def _begin(self, operation: Send | Recv | Collective, ends: list[End]) -> None:
        for rank, number in ends:
            self.began[rank][number] = self.clock.now_ps
        self._check(operation, ends)
        done = partial(self._end_all, ends)
        match operation:
            case Send(to=to, num_bytes=num_bytes):
                self.network.message(ends[1][0], to, num_bytes, done)
            case Recv(source=source, num_bytes=num_bytes):
                self.network.message(source, ends[1][0], num_bytes, done)
            case Collective():
                self.network.collective(self._flow(operation), done)

    def _check(self, operation: Send | Recv | Collective, ends: list[End]) -> None:
        """All ends of a transfer must agree on its kind and size."""
        for rank, number in ends[:-1]:
            other = self.program.ranks[rank][self.streams[rank].tasks[number].first]
            assert isinstance(other, TRANSFERS)
            same_kind = not isinstance(operation, Collective) or (
                isinstance(other, Collective) and other.kind == operation.kind
            )
            if other.num_bytes != operation.num_bytes or not same_kind:
                raise ExecutionError(
                    f"tag {operation.tag}: rank {rank} has {other!r:.120} "
                    f"but rank {ends[-1][0]} has {operation!r:.120}; their kinds and sizes must agree"
                )

    def _flow(self, operation: Collective) -> CollectiveFlow:
        call = Call(operation.kind, operation.algorithm, operation.ranks, operation.num_bytes)
        flow = self.flows.get(call)
        if flow is None:
            cost = collective_cost(call, self.topology, self.world.in_node)
            flow = self.flows[call] = self.network.collective_flow(cost, operation.ranks)
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
        before = self.before[rank]
        first = np.array([task.first for task in streams.tasks], dtype=np.int64)
        start = began[task_of] + before[:-1] - before[first][task_of]
        is_compute = np.zeros(len(streams.tasks), dtype=np.bool_)
        is_compute[streams.streams.get(COMPUTE, [])] = True
        start = np.where(is_compute[task_of], start, began[task_of])
        end = np.where(is_compute[task_of], start + np.diff(before), ended[task_of])
        return start, end
