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
from simulator.fabric.copies import Copies, copies_on
from simulator.fabric.network import CollectiveFlow, Network
from simulator.fabric.topology import Topology
from simulator.fold import UnfoldableError
from simulator.profile import Profile
from simulator.program import Collective, Program, Recv, Send
from simulator.simulation.clock import Clock, collector_paused, picoseconds
from simulator.simulation.deadlock import Stuck, deadlock_message
from simulator.simulation.lateness import Late, latest_starts
from simulator.simulation.streams import COLLECTIVE, COMPUTE, tasks_of
from simulator.simulation.timeline import Timeline
from simulator.simulation.world import Seconds, World, world_of
from simulator.units import PICOSECONDS_PER_S

__all__ = ["World", "run", "run_until", "simulate", "world_of"]

Transfer = Send | Recv | Collective
Picoseconds = npt.NDArray[np.int64]


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


def _copies(program: Program, topology: Topology) -> Copies | None:
    """How many blocks of a folded program share its links; UnfoldableError where the cluster has none like them."""
    if program.fold is None:
        return None
    copies = copies_on(program.fold, topology)
    if copies is None:
        raise UnfoldableError(f"cluster {topology.cluster.name} does not treat the {program.fold.blocks} blocks alike")
    return copies


class _Run:
    """The state of one run. Per task (``streams.py``): when it began and ended, how many it waits for, who waits for
    it. ``before[i]``: picoseconds of compute issued before operation i on a device of its own."""

    def __init__(self, program: Program, topology: Topology, durations_s: Sequence[Seconds], world: World) -> None:
        self.program, self.topology, self.world = program, topology, world
        self.clock = Clock()
        self.network = Network(
            self.clock,
            topology,
            world.hosts,
            world.interference,
            copies=_copies(program, topology),
            record_load=world.record_load,
        )
        shared = [
            place.node in self.network.cores or rank in self.network.devices
            for rank, place in enumerate(topology.places)
        ]
        self.tasks = tasks_of(program.ranks, [not one for one in shared])
        rows = [
            np.asarray(durations, dtype=np.float64) * topology.places[rank].spec.slowdown
            for rank, durations in enumerate(durations_s)
        ]
        self.seconds = np.concatenate(rows) if rows else np.empty(0)
        self.began, self.ended = [-1] * len(self.tasks), [-1] * len(self.tasks)
        self.left, self.followers, self.operations = self.tasks.left, self.tasks.followers, self.tasks.operations
        self.task_of = np.array(self.tasks.task_of, dtype=np.int64)
        self.timed = self._timed(shared)
        self.before = self._compute_before()
        self.length = self._lengths()
        self.arrived: dict[tuple[int, int, int], int] = {}
        self.meetings: dict[tuple[int, int], list[int]] = {}
        self.groups: dict[tuple[int, ...], tuple[int, int]] = {}
        self.flows: dict[Call, CollectiveFlow] = {}
        self.latest: list[int] | None = None

    def play(self, deadline_s: float) -> Timeline | None:
        if not math.isinf(deadline_s):
            self.latest = self._latest(picoseconds(deadline_s))
        for task, left in enumerate(self.left):
            if not left:
                self.clock.after(0, partial(self._start, task))
        try:
            self.clock.run(None if math.isinf(deadline_s) else picoseconds(deadline_s) + 1)
        except Late:
            return None
        if min(self.ended, default=0) < 0:
            if not math.isinf(self.clock.peek()):
                return None
            raise ExecutionError(deadlock_message(self.program, self._stuck()))
        return self._timeline()

    def _timed(self, shared: Sequence[bool]) -> npt.NDArray[np.bool_]:
        """By task: it computes on a device of its own, for a time known before."""
        alone = ~np.array(shared, dtype=np.bool_)[np.array(self.tasks.rank, dtype=np.int64)]
        found: npt.NDArray[np.bool_] = alone & (np.array(self.tasks.stream, dtype=np.int64) == COMPUTE)
        return found

    def _compute_before(self) -> Picoseconds:
        """One entry more than operations."""
        length = np.rint(self.seconds * PICOSECONDS_PER_S).astype(np.int64) * self.timed[self.task_of]
        return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(length)))

    def _lengths(self) -> list[int]:
        """Picoseconds of every task that is timed; −1 for transfers and on shared cores."""
        first, last = np.array(self.tasks.first, dtype=np.int64), np.array(self.tasks.last, dtype=np.int64)
        lengths: list[int] = np.where(self.timed, self.before[last + 1] - self.before[first], -1).tolist()
        return lengths

    def _latest(self, deadline_ps: int) -> list[int]:
        """When every task must begin; lengths on shared cores are not known before."""
        alone_ps = [max(length, 0) for length in self.length]
        for task, stream in enumerate(self.tasks.stream):
            if stream == COLLECTIVE:
                operation = self.tasks.operation(task)
                assert isinstance(operation, Collective)
                alone_ps[task] = self._flow(operation).least_ps
        return latest_starts(self.followers, alone_ps, deadline_ps)

    def _start(self, task: int) -> None:
        """All that a task waits for has ended."""
        if self.latest is not None and self.clock.now_ps > self.latest[task]:
            raise Late
        length = self.length[task]
        if length >= 0:
            self.began[task] = self.clock.now_ps
            self.clock.after(length, partial(self._end, task))
            return
        operation = self.operations[self.tasks.first[task]]
        if isinstance(operation, Send):
            self._message(task, operation, (self.tasks.rank[task], operation.to, operation.tag))
        elif isinstance(operation, Recv):
            self._message(task, operation, (operation.source, self.tasks.rank[task], operation.tag))
        elif isinstance(operation, Collective):
            number, size = self.groups.get(operation.ranks) or self._group(operation.ranks)
            self._collective(task, operation, (number, operation.tag), size)
        else:
            self._compute_on_cores(task)

    def _compute_on_cores(self, task: int) -> None:
        """An operation on shared cores, or on a device that transfers slow down, is an activity there."""
        rank, number, moved = self.tasks.rank[task], self.tasks.first[task], self.world.moved_bytes
        self.began[task] = self.clock.now_ps
        num_bytes = 0.0 if moved is None else float(moved[rank][number - self.tasks.offsets[rank]])
        self.network.kernel(rank, float(self.seconds[number]), num_bytes, partial(self._end, task))

    def _end(self, task: int) -> None:
        self.ended[task] = self.clock.now_ps
        left = self.left
        for follower in self.followers[task]:
            waits = left[follower] = left[follower] - 1
            if not waits:
                self._start(follower)

    def _end_all(self, tasks: list[int]) -> None:
        for task in tasks:
            self._end(task)

    def _group(self, ranks: tuple[int, ...]) -> tuple[int, int]:
        """A number for a collective's ranks, and how many of them are played: of a folded program, block 0's."""
        fold = self.program.fold
        size = len(ranks) if fold is None else sum(rank in fold.kept for rank in ranks)
        self.groups[ranks] = found = len(self.groups), size
        return found

    def _message(self, task: int, operation: Send | Recv, key: tuple[int, int, int]) -> None:
        """Arrive at one end of a message; the later of the two starts it."""
        other = self.arrived.pop(key, -1)
        if other < 0:
            self.arrived[key] = task
            return
        self.began[task] = self.began[other] = self.clock.now_ps
        self._check(operation, task, other)
        self.network.message(key[0], key[1], operation.num_bytes, partial(self._end_both, other, task))

    def _end_both(self, one: int, other: int) -> None:
        self._end(one)
        self._end(other)

    def _collective(self, task: int, operation: Collective, key: tuple[int, int], size: int) -> None:
        """Arrive at a collective of ``size`` ends; the last to arrive starts it, and it ends for all at once."""
        ends = self.meetings.setdefault(key, [])
        ends.append(task)
        if len(ends) < size:
            return
        del self.meetings[key]
        for end in ends:
            self.began[end] = self.clock.now_ps
            self._check(operation, task, end)
        self.network.collective(self._flow(operation), partial(self._end_all, ends))

    def _check(self, operation: Transfer, task: int, end: int) -> None:
        """The ends of a transfer must agree on its kind and size."""
        other = self.operations[self.tasks.first[end]]
        assert isinstance(other, Send | Recv | Collective)
        same_kind = not isinstance(operation, Collective) or (
            isinstance(other, Collective) and other.kind == operation.kind
        )
        if other.num_bytes != operation.num_bytes or not same_kind:
            raise ExecutionError(
                f"tag {operation.tag}: rank {self.tasks.rank[end]} has {other!r:.120} "
                f"but rank {self.tasks.rank[task]} has {operation!r:.120}; their kinds and sizes must agree"
            )

    def _flow(self, operation: Collective) -> CollectiveFlow:
        call = Call(operation.kind, operation.algorithm, operation.ranks, operation.num_bytes)
        flow = self.flows.get(call)
        if flow is None:
            cost = collective_cost(call, self.topology, self.world.in_node)
            groups = 1 if self.program.fold is None else self.program.fold.groups_like(operation.ranks)
            flow = self.flows[call] = self.network.collective_flow(cost, operation.ranks, groups)
        return flow

    def _stuck(self) -> list[Stuck]:
        """The first unfinished task of every stream that has one, and the task it waits for on its own rank."""
        found: dict[tuple[int, int], Stuck] = {}
        tasks = self.tasks
        for task, ended in enumerate(self.ended):
            rank, stream = tasks.rank[task], tasks.stream[task]
            if ended < 0 and (rank, stream) not in found:
                offset = tasks.offsets[rank]
                blocker = next((wait for wait in tasks.waits[task] if self.ended[wait] < 0), None)
                behind = None if blocker is None else tasks.last[blocker] - offset
                found[rank, stream] = Stuck(rank, tasks.first[task] - offset, behind)
        return list(found.values())

    def _timeline(self) -> Timeline:
        start, end = self._spans()
        edges = self.tasks.offsets[1:-1]
        sharing = self.network.sharing
        return Timeline(
            program=self.program,
            start_ps=tuple(np.split(start, edges)) if self.program.ranks else (),
            end_ps=tuple(np.split(end, edges)) if self.program.ranks else (),
            resources=tuple(self.network.resources),
            resource_units=tuple(sharing.used),
            loads=tuple(sharing.loads or ()),
            launch_s=self.world.launch_s or (0.0,) * len(self.program.ranks),
        )

    def _spans(self) -> tuple[Picoseconds, Picoseconds]:
        """Start and end of every operation; inside a task of several, each begins when the one before it ends."""
        task_of, before, first = self.task_of, self.before, np.array(self.tasks.first, dtype=np.int64)
        began, ended = np.array(self.began, dtype=np.int64), np.array(self.ended, dtype=np.int64)
        timed = self.timed[task_of]
        start = (began - before[first])[task_of] + before[:-1]
        return np.where(timed, start, began[task_of]), np.where(timed, start + np.diff(before), ended[task_of])
