"""Faults for the supervisor's tests: a rank that dies, hangs, stops or raises in the middle of a step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Literal

from executor import interpreter
from executor.generate import Answer, generate
from executor.operations import Rank, Value, compute
from executor.session import Generation
from executor.supervisor import Supervisor
from executor.worker import Worker
from simulator import program as p

Fault = Literal["kill", "hang", "stop", "raise"]


def generate_with_fault(worker: Worker, generation: Generation, rank: int, step: int, fault: Fault) -> Answer:
    """Job: as ``generate``, but ``rank`` has ``fault`` in its first Linear of ``step``."""

    def faulty(operation: p.Compute, reads: Sequence[Value], state: Rank) -> tuple[Value, ...]:
        if worker.progress.step == step and isinstance(operation, p.Linear):
            strike(fault)
        return compute(operation, reads, state)

    if worker.world.rank == rank:
        interpreter.compute = faulty  # type: ignore[assignment]
    return generate(worker, generation)


def strike(fault: Fault) -> None:
    match fault:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise ValueError("the matrix is singular")


def start_and_die() -> None:
    """A supervisor that is killed: prints its workers' ids first."""
    world = Supervisor(2)
    print(*(process.popen.pid for process in world.processes), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    start_and_die()
