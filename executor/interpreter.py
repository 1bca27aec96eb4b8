"""Interpreter: one rank's list of operations over a dictionary of values.

A loop with one ``match``: a compute operation runs at once; Send, Recv and Collective are handed to the rank's
transport, whose pending results are waited for only when an operation reads them. A value is freed after its last
reader. Spans are marks of the rank's clock; nothing here waits for a device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from executor.clock import Clock, Mark
from executor.compression import pack, unpack
from executor.operations import Rank, Value, compute
from executor.transfers import Issued
from executor.weights import TORCH_DTYPES
from simulator import program as p


class Pending(Protocol):
    """A value on its way."""

    def wait(self) -> Tensor: ...


class Transport(Protocol):
    """How a rank's transfers run: gloo, NCCL, or the replay's mailboxes."""

    issued: Issued  # of the step that runs or ran last

    def begin(self, operations: Sequence[p.Operation]) -> None:
        """A step starts: receives may be posted."""

    def send(self, operation: p.Send, value: Tensor) -> None: ...

    def receive(self, operation: p.Recv) -> Pending: ...

    def collective(self, operation: p.Collective, value: Tensor | None) -> Pending: ...

    def finish(self) -> None:
        """Wait until everything sent has left."""


class Progress(Protocol):
    """Told before each operation what the rank is about to do, for the supervisor."""

    def preparing(self) -> None: ...

    def running(self, index: int) -> None: ...

    def waiting(self, index: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """A rank's operations, the same as the transport sees them, and the values to free after each."""

    operations: tuple[p.Operation, ...]
    freed: tuple[tuple[str, ...], ...]
    wire: tuple[p.Operation, ...]


def wire(operation: p.Recv) -> p.Recv:
    """What travels: of a packed value its bytes."""
    if operation.packing == "none":
        return operation
    return replace(operation, shape=(operation.num_bytes,), dtype="int8", packing="none")


@dataclass(frozen=True, slots=True)
class Unpacking:
    """A packed value on its way."""

    pending: Pending
    operation: p.Recv

    def wait(self) -> Tensor:
        operation = self.operation
        return unpack(self.pending.wait(), operation.packing, operation.shape, TORCH_DTYPES[operation.dtype])


def schedule(operations: tuple[p.Operation, ...], keep: Sequence[str]) -> Schedule:
    """Values are freed after their last reader, or when written if nobody reads them; ``keep`` are not."""
    last: dict[str, int] = {}
    for index, operation in enumerate(operations):
        for name in (*operation.reads, *operation.writes):
            last[name] = index
    freed: list[list[str]] = [[] for _ in operations]
    for name, index in last.items():
        if name not in keep and not name.startswith("cache."):
            freed[index].append(name)
    seen = tuple(wire(operation) if isinstance(operation, p.Recv) else operation for operation in operations)
    return Schedule(operations, tuple(tuple(names) for names in freed), seen)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pending value and the transfer that brings it."""

    pending: Pending
    index: int


@dataclass
class Interpreter:
    """Runs steps on one rank. ``spans[i]`` are the marks of operation i's beginning and end; of a Recv or Collective
    those of the wait for its value (of its issue if nobody reads it)."""

    rank: Rank
    transport: Transport
    clock: Clock
    progress: Progress
    slowdown: float = 1.0

    def run(self, plan: Schedule, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Value], list[tuple[Mark, Mark]]]:
        """One step; returns the values kept and every operation's span."""
        values: dict[str, Value | Waiting] = dict(inputs)
        mark, clock = self.clock.mark, self.clock
        spans = [(clock.origin, clock.origin)] * len(plan.operations)
        self.transport.begin(plan.wire)
        for index, operation in enumerate(plan.operations):
            reads = [self._value(values, name, spans) for name in operation.reads if not name.startswith("cache.")]
            self.progress.running(index)
            start = clock.beginning()
            written = self._one(operation, reads, index, plan.freed[index])
            spans[index] = (start, mark())
            values.update(zip(operation.writes, written, strict=False))
            for name in plan.freed[index]:
                values.pop(name, None)
            del reads, written  # what was freed is gone before the next operation waits or computes
        kept = {name: self._value(values, name, spans) for name in list(values)}
        self.transport.finish()
        return kept, spans

    def _value(self, values: dict[str, Value | Waiting], name: str, spans: list[tuple[Mark, Mark]]) -> Value:
        value = values[name]
        if not isinstance(value, Waiting):
            return value
        self.progress.waiting(value.index)
        start = self.clock.mark()
        arrived = value.pending.wait()
        spans[value.index] = (start, self.clock.mark())
        values[name] = arrived
        return arrived

    def _one(
        self, operation: p.Operation, reads: list[Value], index: int, freed: tuple[str, ...]
    ) -> Sequence[Value | Waiting]:
        match operation:
            case p.Send():
                whole = _tensor(reads[0])
                part = whole if operation.rows is None else whole[slice(*operation.rows)]
                self.transport.send(operation, part if operation.packing == "none" else pack(part, operation.packing))
                return ()
            case p.Recv():
                arriving = self.transport.receive(wire(operation))
                return (Waiting(arriving if operation.packing == "none" else Unpacking(arriving, operation), index),)
            case p.Collective():
                given = _own(operation, _tensor(reads[0]), freed) if reads else None
                return (Waiting(self.transport.collective(operation, given), index),)
            case _ if self.slowdown > 1:
                return _slowed(operation, reads, self.rank, self.slowdown)
            case _:
                return compute(operation, reads, self.rank)


def _slowed(operation: p.Compute, reads: list[Value], rank: Rank, slowdown: float) -> Sequence[Value]:
    """Compute, then keep the core busy until ``slowdown`` times its own time has passed on it."""
    began_s = time.thread_time()
    written = compute(operation, reads, rank)
    until_s = began_s + slowdown * (time.thread_time() - began_s)
    while time.thread_time() < until_s:
        pass
    return written


def _own(operation: p.Collective, value: Tensor, freed: tuple[str, ...]) -> Tensor:
    """The value, or a copy if the collective would overwrite what somebody else may still read."""
    in_place = operation.kind in ("all_reduce", "broadcast")
    alone = operation.reads[0] in freed and value.untyped_storage().nbytes() == value.nbytes
    return value.clone() if in_place and not alone else value


def _tensor(value: Value) -> Tensor:
    assert isinstance(value, Tensor), f"only tensors travel, not {type(value).__name__}"
    return value
