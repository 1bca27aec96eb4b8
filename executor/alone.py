"""Alone: one rank's step without the others, with what they sent it when all ran.

A rank that has a process of its own finds nothing of its neighbours' work in the caches, neither their data nor the
code they have just run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from executor.interpreter import Pending, Transport
from executor.transfers import Issued
from simulator import program as p

Arrivals = dict[p.Operation, Tensor]
"""What each receive and collective brought."""


class Noting:
    """A transport that notes what arrives through another one."""

    def __init__(self, transport: Transport) -> None:
        self.transport, self.arrivals = transport, Arrivals()
        self.issued = transport.issued

    def begin(self, operations: Sequence[p.Operation]) -> None:
        self.transport.begin(operations)
        self.issued = self.transport.issued

    def send(self, operation: p.Send, value: Tensor) -> None:
        self.transport.send(operation, value)

    def receive(self, operation: p.Recv) -> Pending:
        return _Noted(self.transport.receive(operation), operation, self.arrivals)

    def collective(self, operation: p.Collective, value: Tensor | None) -> Pending:
        return _Noted(self.transport.collective(operation, value), operation, self.arrivals)

    def finish(self) -> None:
        self.transport.finish()


@dataclass(frozen=True, slots=True)
class _Noted:
    pending: Pending
    operation: p.Operation
    arrivals: Arrivals

    def wait(self) -> Tensor:
        value = self.pending.wait()
        self.arrivals[self.operation] = value.clone()
        return value


class AloneTransport:
    """Every value has arrived; what is sent goes nowhere."""

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.issued = Issued()

    def begin(self, operations: Sequence[p.Operation]) -> None:
        self.issued = Issued()

    def send(self, operation: p.Send, value: Tensor) -> None:
        self.issued.send(value)

    def receive(self, operation: p.Recv) -> Pending:
        return _Here(self.arrivals[operation])

    def collective(self, operation: p.Collective, value: Tensor | None) -> Pending:
        return _Here(self.arrivals[operation])

    def finish(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Here:
    value: Tensor

    def wait(self) -> Tensor:
        """A copy, fresh in the cache as what a socket has just brought is, and the reader's own."""
        return self.value.clone()
