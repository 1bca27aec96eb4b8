"""World timing: what ranks of one machine cost each other — cores under load, messages, collectives.

Runs on a supervisor's world through the transport that programs use, so the interpreter's own costs are inside.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, cast

import numpy as np
import torch

from executor.bench import Bench
from executor.clock import HostClock
from executor.interpreter import Interpreter, Schedule, schedule
from executor.operations import Rank
from executor.progress import State
from executor.supervisor import Supervisor
from executor.timing import calls_of
from executor.worker import Worker
from executor.world import DistributedTransport
from simulator import program as p
from simulator.costs.collective_cost import Requested as Algorithm
from simulator.costs.collective_cost import exchanged
from simulator.kernel import ComputeKernel, GroupCollective, Memory
from simulator.units import MiB

STREAM_BYTES = 48 * MiB  # far beyond a cache
MESSAGE_BYTES = tuple(2**power for power in (12, 15, 18, 20, 22))
COLLECTIVE_BYTES = tuple(2**power for power in (12, 15, 16, 18, 20, 22))  # 2¹⁵: the largest that goes whole
COLLECTIVE_KINDS: tuple[p.CollectiveKind, ...] = ("all_reduce", "all_gather", "all_to_all", "reduce_scatter")
COLD_VALUES = 2**18  # 1 MiB in fp32: a core's L2
BURST = 3  # messages one after another: what a rank sends and takes in for an operation; the first costs most
TAKEN_IN = 9  # values of each size that are taken in long after they came
REST_S = 1e-3  # after each, for members that share a core with one that is done
LARGE_BYTES = 2**20  # from here on a message is all bandwidth


@dataclass(frozen=True, slots=True)
class Load:
    """Calls a second that each of ``ranks`` ranks finished while all of them worked."""

    ranks: int
    calls_per_s: float


@dataclass(frozen=True, slots=True)
class MessageTime:
    """One way, from the send to the value in hand; core seconds of both ends together, of the sender's own thread while
    it sends, and of the receiver's while it takes the value in."""

    num_bytes: int
    seconds: float
    core_s: float
    issue_s: float
    receive_s: float


@dataclass(frozen=True, slots=True)
class MessageLog:
    """One rank's view of its messages of one size: instants on the machine's clock, core seconds a message."""

    sent_s: tuple[float, ...]
    arrived_s: tuple[float, ...]
    core_s: float
    issue_s: float
    receive_s: float


def load(worker: Worker, kernel: ComputeKernel, num_busy: int, duration_s: float) -> float:
    """Job: the first ``num_busy`` ranks run the kernel at once; each one's calls a second."""
    worker.progress.note(State.RUNNING)
    rank = worker.world.rank
    with torch.inference_mode():
        calls = calls_of(kernel, Bench(torch.device("cpu"), "fp32")) if rank < num_busy else []
        for call in calls:
            call()
        worker.world.barrier()
        began_s, done = time.perf_counter(), 0
        while calls and time.perf_counter() - began_s < duration_s:
            calls[done % len(calls)]()
            done += 1
        return done / (time.perf_counter() - began_s) if calls else 0.0


def messages(
    worker: Worker, sizes: Sequence[int], round_trips: int, pair: tuple[int, int] = (0, 1)
) -> list[MessageLog]:
    """Job: the two ranks of ``pair`` send bursts of values of each size to and fro, each after computing for a while.
    What a message costs of a thread is the mean of its burst; how long it is under way, the first's."""
    rank, found = worker.world.rank, []
    for tag, size in enumerate(sizes):
        worker.progress.note(State.RUNNING, tag)
        worker.world.barrier()
        if rank in pair:
            found.append(_to_and_fro(worker, size, round_trips, pair))
    return found


def _to_and_fro(worker: Worker, size: int, round_trips: int, pair: tuple[int, int]) -> MessageLog:
    rank, transport = worker.world.rank, DistributedTransport(worker.world)
    value = torch.ones(size // 4)
    send, receive = _both_ways(value, pair[1] if rank == pair[0] else pair[0])
    transport.begin([receive] * (BURST * (round_trips + 1 + TAKEN_IN)))
    own = Interpreted(transport, worker)
    sent, arrived, core_s, issue_s = [], [], 0.0, []
    for turn in range(2 * (round_trips + 1)):
        began_core_s = time.process_time()
        if (turn % 2 == 0) == (rank == pair[0]):
            _compute()
            began_core_s = time.process_time()
            sent.append(time.perf_counter())
            issue_s.append(mean(own.seconds(send, value) for _ in range(BURST)))
        else:
            value = transport.receive(receive).wait()
            arrived.append(time.perf_counter())
            for _ in range(BURST - 1):
                transport.receive(receive).wait()
        core_s += time.process_time() - began_core_s if turn > 1 else 0.0
    rest_s = 2 * (arrived[-1] - arrived[0]) / (len(arrived) - 1)
    receive_s = [_taken_in(own, send, receive, value, rest_s) for _ in range(TAKEN_IN)]
    transport.finish()
    core_s /= 2 * round_trips * BURST
    return MessageLog(tuple(sent[1:]), tuple(arrived[1:]), core_s, median(issue_s[1:]), median(receive_s))


class Interpreted:
    """Thread seconds of single transfers as steps play them, less those of a step without operations."""

    def __init__(self, transport: DistributedTransport, worker: Worker) -> None:
        nothing = cast(Rank, None)  # transfers need nothing of a rank that computes
        self._interpreter = Interpreter(nothing, transport, HostClock(), worker.progress)
        self._empty_s = median(self._played(schedule((), ()), {}) for _ in range(TAKEN_IN))

    def _played(self, plan: Schedule, values: dict[str, torch.Tensor]) -> float:
        began_s = time.thread_time()
        self._interpreter.run(plan, values)
        return time.thread_time() - began_s

    def seconds(self, operation: p.Send | p.Recv, value: torch.Tensor | None = None) -> float:
        """Of sending ``value``, or of receiving one."""
        values = {} if value is None else {operation.reads[0]: value}
        return max(self._played(schedule((operation,), operation.writes), values) - self._empty_s, 0.0)


def _both_ways(value: torch.Tensor, other: int) -> tuple[p.Send, p.Recv]:
    about: dict[str, Any] = {"layer": 0, "micro_batch": 0, "tag": 0, "num_bytes": value.nbytes}
    send = p.Send(reads=("x",), writes=(), to=other, **about)
    return send, p.Recv(reads=(), writes=("y",), source=other, shape=tuple(value.shape), dtype="fp32", **about)


def _taken_in(own: Interpreted, send: p.Send, receive: p.Recv, value: torch.Tensor, rest_s: float) -> float:
    """Seconds to take in a value of a burst that has come already; both ends send one and rest meanwhile."""
    for _ in range(BURST):
        own.seconds(send, value)
    time.sleep(rest_s)
    _compute()
    return mean(own.seconds(receive) for _ in range(BURST))


def collectives(
    worker: Worker,
    kind: p.CollectiveKind,
    ranks: tuple[int, ...],
    sizes: Sequence[int],
    algorithm: Algorithm = "auto",
) -> list[list[tuple[float, float, float]]]:
    """Job: when this rank began and ended each repeat of a collective of ``ranks``, and its thread's seconds meanwhile,
    by size (nccl-tests' bytes)."""
    worker.world.meet(ranks)
    found = []
    for tag, size in enumerate(sizes):
        worker.progress.note(State.RUNNING, tag)
        worker.world.barrier()
        if worker.world.rank in ranks:
            found.append(_collective_times(worker, kind, ranks, size, algorithm))
    return found


def _compute() -> None:
    """A part of a step: a matmul, and as much data as a core's own cache holds, so that the code and the buffers of a
    transfer are as cold as a step's kernels leave them, and peers sleep."""
    torch.mm(torch.ones(64, 512), torch.ones(512, 512))
    torch.ones(COLD_VALUES).sum()


def _collective_times(
    worker: Worker, kind: p.CollectiveKind, ranks: tuple[int, ...], size: int, algorithm: Algorithm
) -> list[tuple[float, float, float]]:
    rows = max(1, size // (4 * 256 * len(ranks))) * len(ranks)
    shape = (rows // len(ranks), 256) if kind == "all_gather" else (rows, 256)
    operation = p.Collective(
        reads=("x",), writes=("y",), layer=0, micro_batch=0, kind=kind, algorithm=algorithm, ranks=ranks, tag=0,
        num_bytes=rows * 1024, shape=shape, dtype="fp32",
    )  # fmt: skip
    transport, value = DistributedTransport(worker.world), torch.ones(shape)
    times = []
    for _ in range(2 + (15 if size < LARGE_BYTES else 7)):
        _compute()
        thread_s, began_s = time.thread_time(), time.perf_counter()
        transport.collective(operation, value).wait()
        times.append((began_s, time.perf_counter(), time.thread_time() - thread_s))
        time.sleep(REST_S)
    return times[2:]


def time_load(world: Supervisor, kernel: ComputeKernel, counts: Sequence[int], duration_s: float) -> list[Load]:
    """Throughput of a kernel with more and more ranks at it."""
    loads = []
    for count in counts:
        rates = world.run(load, kernel, count, duration_s)
        loads.append(Load(count, sum(rates) / count))
    return loads


def memory_bandwidth_bytes_per_s(world: Supervisor, cores: int, duration_s: float) -> float:
    """The most that one or several ranks stream together."""
    kernel = Memory("add", STREAM_BYTES)
    counts = sorted({1, min(world.size, cores)})
    loads = time_load(world, kernel, counts, duration_s)
    return max(item.ranks * item.calls_per_s for item in loads) * STREAM_BYTES


def time_messages(
    world: Supervisor, sizes: Sequence[int] = MESSAGE_BYTES, round_trips: int = 25, pair: tuple[int, int] = (0, 1)
) -> list[MessageTime]:
    """Both ends' view of a message of each size: the mean time, the sum of core seconds."""
    answers = world.run(messages, tuple(sizes), round_trips, pair)
    return [_one_way(size, *logs) for size, *logs in zip(sizes, *(answers[rank] for rank in pair), strict=True)]


def _one_way(size: int, first: MessageLog, second: MessageLog) -> MessageTime:
    there = [b - a for a, b in zip(first.sent_s, second.arrived_s, strict=True)]
    back = [b - a for a, b in zip(second.sent_s, first.arrived_s, strict=True)]
    issue_s, receive_s = (first.issue_s + second.issue_s) / 2, (first.receive_s + second.receive_s) / 2
    return MessageTime(size, median(there + back), first.core_s + second.core_s, issue_s, receive_s)


def latency_and_bandwidth(times: Sequence[MessageTime]) -> tuple[float, float]:
    """α and β of t = α + bytes/β by least squares of relative errors, t being the time between the two threads': from
    the fixed part of the send to the beginning of taking in. α is at least a tenth of the shortest message."""
    size = np.array([item.num_bytes for item in times], dtype=np.float64)
    whole = np.array([item.seconds for item in times])
    seconds = np.maximum(whole - issue_cost(times)[0] - [item.receive_s for item in times], 0.1 * whole)
    design = np.stack([1 / seconds, size / seconds], axis=1)
    latency_s, inverse = np.linalg.lstsq(design, np.ones(len(size)), rcond=None)[0]
    smallest = float(seconds.min())
    return min(max(float(latency_s), 0.1 * smallest), smallest), 1.0 / max(float(inverse), 1e-12)


def issue_cost(times: Sequence[MessageTime]) -> tuple[float, float]:
    """(seconds a send, seconds a byte sent) of the sender's own thread."""
    return _fixed_and_slope(times, [item.issue_s for item in times])


def receive_cost(times: Sequence[MessageTime]) -> tuple[float, float]:
    """(seconds a value, seconds a byte) of a receiver's thread to take in what has come."""
    return _fixed_and_slope(times, [item.receive_s for item in times])


def _fixed_and_slope(times: Sequence[MessageTime], seconds: Sequence[float]) -> tuple[float, float]:
    """By least squares of relative errors."""
    size, spent = np.array([item.num_bytes for item in times], dtype=np.float64), np.array(seconds)
    design = np.stack([1 / spent, size / spent], axis=1)
    fixed, slope = np.linalg.lstsq(design, np.ones(len(size)), rcond=None)[0]
    return max(float(fixed), float(spent.min()) / 2), max(float(slope), 0.0)


def core_s_per_byte(times: Sequence[MessageTime]) -> float:
    """Core time of a byte at one end, from the large messages."""
    large = [item for item in times if item.num_bytes >= LARGE_BYTES]
    return median(item.core_s / item.num_bytes / 2 for item in large)


@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """A collective: median seconds from its last rank's arrival to its last rank's end, and of a member's thread."""

    kernel: GroupCollective
    seconds: float
    thread_s: float


def time_collective(
    world: Supervisor,
    kind: p.CollectiveKind,
    num_ranks: int,
    sizes: Sequence[int] = COLLECTIVE_BYTES,
    algorithm: Algorithm = "auto",
    ranks: tuple[int, ...] = (),
) -> list[CollectiveTime]:
    """A collective of the first ``num_ranks`` ranks, or of ``ranks``, at each size."""
    answers = world.run(collectives, kind, ranks or tuple(range(num_ranks)), tuple(sizes), algorithm)
    found = []
    for size, members in zip(sizes, zip(*(answer for answer in answers if answer), strict=True), strict=True):
        repeats = list(zip(*members, strict=True))
        seconds = median(max(end for _, end, _ in times) - max(began for began, _, _ in times) for times in repeats)
        thread_s = median(thread_s for times in repeats for _, _, thread_s in times)
        num_bytes = max(1, size // (1024 * num_ranks)) * num_ranks * 1024
        found.append(CollectiveTime(GroupCollective(kind, num_bytes, num_ranks), seconds, thread_s))
    return found


def collective_threads(times: Sequence[CollectiveTime]) -> tuple[float, float]:
    """(seconds a message, seconds a byte sent) of a member's thread, of collectives inside a node, by least squares of
    relative errors."""
    kernels = [time.kernel for time in times]
    sent = np.array([exchanged(kernel.kind, kernel.gpus, kernel.num_bytes) for kernel in kernels], dtype=np.float64)
    spent = np.array([time.thread_s for time in times])
    message_s, per_byte = np.linalg.lstsq(sent / spent[:, None], np.ones(len(spent)), rcond=None)[0]
    return max(float(message_s), 1e-9), max(float(per_byte), 0.0)
