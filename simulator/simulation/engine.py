"""Engine: a program on a SimPy clock of integer picoseconds.

A task starts when all it waits for has ended (``streams.py``: CUDA's rule). Compute on a GPU of its own is a timeout;
on a CPU node it shares the cores. A transfer is one task: a Send meets its Recv by (sender, receiver, tag), a
Collective its peers by (ranks, tag), and once all are ready it starts, on links shared with every other
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
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from simulator.cluster import Cluster
from simulator.collector import collector_paused
from simulator.costs.collective_cost import Call, collective_cost
from simulator.costs.pricing import Quantile, as_measured, price
from simulator.errors import ExecutionError, InfeasibleError
from simulator.fabric.copies import Copies, copies_on
from simulator.fabric.network import CollectiveFlow, Network
from simulator.fabric.topology import Topology
from simulator.fold import UnfoldableError
from simulator.profile import Profile
from simulator.program import Collective, Program
from simulator.simulation.clock import Clock, picoseconds
from simulator.simulation.deadlock import Stuck, deadlock_message
from simulator.simulation.lateness import Late, latest_starts
from simulator.simulation.streams import stream_key, tasks_of, waits_across
from simulator.simulation.timeline import Timeline
from simulator.simulation.world import Seconds, World, world_of
from simulator.units import PICOSECONDS_PER_S

__all__ = ["World", "run", "run_until", "simulate", "world_of"]

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
    """The state of one run. By task (``streams.py``): when it began and ended, how many it waits for, who waits for it.
    ``before[i]``: picoseconds of compute issued before operation i on a device of its own. ``due``: tasks by the
    instant of their end."""

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
        self.alone = [
            place.node not in self.network.cores and rank not in self.network.devices
            for rank, place in enumerate(topology.places[: len(program.ranks)])
        ]
        self.tasks = tasks_of(program.ranks, self.alone, program.fold)
        rows = [
            np.asarray(durations, dtype=np.float64) * topology.places[rank].spec.slowdown
            for rank, durations in enumerate(durations_s)
        ]
        self.seconds = np.concatenate(rows) if rows else np.empty(0)
        self.began, self.ended = [-1] * len(self.tasks), [-1] * len(self.tasks)
        self.left, self.followers = self.tasks.left, self.tasks.followers
        self.timed = self._timed()
        self.before = self._compute_before()
        self.length = self._lengths()
        self.due: dict[int, list[int]] = {}
        self.flows: dict[Call, CollectiveFlow] = {}
        self.latest: list[int] | None = None

    def play(self, deadline_s: float) -> Timeline | None:
        if not math.isinf(deadline_s):
            alone_ps = [self._alone_ps(task) for task in range(len(self.tasks))]
            self.latest = latest_starts(self.left, self.followers, alone_ps, picoseconds(deadline_s))
        self.clock.after(0, partial(self._start_all, [task for task, left in enumerate(self.left) if not left]))
        try:
            self.clock.run(None if math.isinf(deadline_s) else picoseconds(deadline_s) + 1)
        except Late:
            return None
        if min(self.ended, default=0) < 0:
            if not math.isinf(self.clock.peek()):
                return None
            raise ExecutionError(deadlock_message(self.program, self._stuck()))
        return self._timeline()

    def _timed(self) -> npt.NDArray[np.bool_]:
        """By task: it computes on a device of its own, for a time known before."""
        alone = np.array(self.alone, dtype=np.bool_)[np.array(self.tasks.rank, dtype=np.int64)]
        found: npt.NDArray[np.bool_] = alone & (np.arange(len(self.tasks)) < self.tasks.num_compute)
        return found

    def _compute_before(self) -> Picoseconds:
        """One entry more than operations."""
        length = np.rint(self.seconds * PICOSECONDS_PER_S).astype(np.int64) * self.timed[self.tasks.task_of]
        return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(length)))

    def _lengths(self) -> list[int]:
        """Picoseconds of every task that is timed; −1 for transfers and on shared cores."""
        first, last = np.array(self.tasks.first, dtype=np.int64), np.array(self.tasks.last, dtype=np.int64)
        lengths: list[int] = np.where(self.timed, self.before[last + 1] - self.before[first], -1).tolist()
        return lengths

    def _alone_ps(self, task: int) -> int:
        """How long a task takes at least; on shared cores that is not known before."""
        if task < self.tasks.num_compute:
            return max(self.length[task], 0)
        message = self.tasks.messages[task - self.tasks.num_compute]
        return self._flow(task).least_ps if message[0] < 0 else self.network.least_ps(*message)

    def _start_all(self, tasks: list[int]) -> None:
        for task in tasks:
            self._start(task)

    def _start(self, task: int) -> None:
        """All that a task waits for has ended."""
        now_ps = self.began[task] = self.clock.now_ps
        if self.latest is not None and now_ps > self.latest[task]:
            raise Late
        length = self.length[task]
        if length < 0:
            self._begin(task)
            return
        due = self.due.get(now_ps + length)
        if due is None:
            self.due[now_ps + length] = [task]
            self.clock.after(length, self._end_due)
        else:
            due.append(task)

    def _begin(self, task: int) -> None:
        """A transfer; or a kernel on shared cores, or on a device that transfers slow down: an activity there."""
        tasks, done = self.tasks, partial(self._end, task)
        if task < tasks.num_compute:
            rank, number, moved = tasks.rank[task], tasks.first[task], self.world.moved_bytes
            num_bytes = 0.0 if moved is None else float(moved[rank][number - tasks.offsets[rank]])
            self.network.kernel(rank, float(self.seconds[number]), num_bytes, done)
            return
        source, target, message_bytes = tasks.messages[task - tasks.num_compute]
        if source >= 0:
            self.network.message(source, target, message_bytes, done)
        else:
            self.network.collective(self._flow(task), done)

    def _end_due(self) -> None:
        for task in self.due.pop(self.clock.now_ps):
            self._end(task)

    def _end(self, task: int) -> None:
        self.ended[task] = self.clock.now_ps
        left = self.left
        for follower in self.followers[task]:
            waits = left[follower] = left[follower] - 1
            if not waits:
                self._start(follower)

    def _flow(self, task: int) -> CollectiveFlow:
        operation = self.tasks.operation(task)
        assert isinstance(operation, Collective)
        call = Call(operation.kind, operation.algorithm, operation.ranks, operation.num_bytes)
        flow = self.flows.get(call)
        if flow is None:
            cost = collective_cost(call, self.topology, self.world.in_node)
            groups = 1 if self.program.fold is None else self.program.fold.groups_like(operation.ranks)
            flow = self.flows[call] = self.network.collective_flow(cost, operation.ranks, groups)
        return flow

    def _stuck(self) -> list[Stuck]:
        """The first unfinished operation of every stream that has one, and the one it waits for on its own rank."""
        found: dict[tuple[int, int], Stuck] = {}
        for rank, operations in enumerate(self.program.ranks):
            tasks = self.tasks.task_of[self.tasks.offsets[rank] :].tolist()
            waits = waits_across(operations)
            for index, operation in enumerate(operations):
                key = rank, stream_key(operation)
                if self.ended[tasks[index]] < 0 and key not in found:
                    blocker = next((wait for wait in waits[index] if self.ended[tasks[wait]] < 0), None)
                    found[key] = Stuck(rank, index, blocker)
        return list(found.values())

    def _timeline(self) -> Timeline:
        start, end = self._spans()
        ranks = list(pairwise(self.tasks.offsets))
        sharing = self.network.sharing
        return Timeline(
            program=self.program,
            start_ps=tuple([start[first:stop] for first, stop in ranks]),
            end_ps=tuple([end[first:stop] for first, stop in ranks]),
            resources=tuple(self.network.resources),
            resource_units=tuple(sharing.used),
            loads=tuple(sharing.loads or ()),
            launch_s=self.world.launch_s or (0.0,) * len(self.program.ranks),
        )

    def _spans(self) -> tuple[Picoseconds, Picoseconds]:
        """Start and end of every operation; inside a task of several, each begins when the one before it ends."""
        task_of, before, first = self.tasks.task_of, self.before, np.array(self.tasks.first, dtype=np.int64)
        began, ended = np.array(self.began, dtype=np.int64), np.array(self.ended, dtype=np.int64)
        timed = self.timed[task_of]
        start = (began - before[first])[task_of] + before[:-1]
        return np.where(timed, start, began[task_of]), np.where(timed, start + np.diff(before), ended[task_of])
