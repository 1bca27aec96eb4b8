"""In steps: kernels' rows from programs that were played whole, so that what surrounds a kernel is in its seconds.

An operation of one kernel is a row of that kernel. Operations of several kernels (attention over two blocks) are left
to rows timed alone. What operations of a class take beyond their kernels is a correction of the class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from calibration.corrections import with_corrections
from calibration.rows import TimedRow
from simulator.cluster import Cluster
from simulator.costs.pricing import price
from simulator.costs.work import kernels_of
from simulator.host import Host
from simulator.kernel import ComputeKernel, Memory
from simulator.profile import Profile
from simulator.program import Collective, Program, Recv, Send

Played = tuple[Program, Sequence[Sequence[float]]]
"""A program and the seconds of every rank's operations."""
SOURCE = "timed by attnplan on this machine, inside steps"


def rows_in_steps(played: Iterable[Played]) -> tuple[TimedRow, ...]:
    """One row a distinct kernel: the median over all places it was found in."""
    found: dict[ComputeKernel, list[float]] = {}
    for program, ranks in played:
        for operations, seconds in zip(program.ranks, ranks, strict=True):
            for operation, spent_s in zip(operations, seconds, strict=True):
                kernels = kernels_of(operation, program.dtype)
                if len(kernels) == 1:
                    found.setdefault(kernels[0], []).append(spent_s)
    return tuple(TimedRow(kernel, float(np.median(seconds)), SOURCE) for kernel, seconds in found.items())


def preferred(in_steps: Sequence[TimedRow], alone: Sequence[TimedRow]) -> tuple[TimedRow, ...]:
    """Rows of both, but of a kernel found in steps only that, and of memory kernels alone only those larger than any
    of their kind in steps."""
    kernels = {row.kernel for row in in_steps}
    largest: dict[str, int] = {}
    for row in in_steps:
        if isinstance(row.kernel, Memory):
            largest[row.kernel.kind] = max(largest.get(row.kernel.kind, 0), row.kernel.bytes_moved)
    kept = [
        row
        for row in alone
        if row.kernel not in kernels
        and not (isinstance(row.kernel, Memory) and row.kernel.bytes_moved <= largest.get(row.kernel.kind, -1))
    ]
    return (*in_steps, *kept)


def covering(programs: Sequence[Program], times: int = 2) -> list[int]:
    """Indices of programs to play so that every kernel is met in ``times`` of them, where that many hold it; the
    programs with the fewest operations are preferred."""
    seen: dict[ComputeKernel, int] = {}
    chosen = []
    for index in sorted(range(len(programs)), key=lambda index: programs[index].num_operations):
        program = programs[index]
        kernels = {k for ops in program.ranks for op in ops for k in kernels_of(op, program.dtype)}
        if any(seen.get(kernel, 0) < times for kernel in kernels):
            chosen.append(index)
            for kernel in kernels:
                seen[kernel] = seen.get(kernel, 0) + 1
    return chosen


def view_seconds(played: Iterable[Played]) -> list[float]:
    """Seconds of every operation that launches no kernel."""
    return [
        spent_s
        for program, ranks in played
        for operations, seconds in zip(program.ranks, ranks, strict=True)
        for operation, spent_s in zip(operations, seconds, strict=True)
        if not isinstance(operation, Send | Recv | Collective) and not kernels_of(operation, program.dtype)
    ]


def with_classes(profile: Profile, played: Sequence[Played], cluster: Cluster) -> Profile:
    """The profile with corrections of operation classes, from what they took in steps on ``cluster``'s devices against
    their kernels' prices, and with its host's seconds of a view."""
    profiles = {profile.gpu.name: profile}
    observed: dict[str, list[tuple[float, float]]] = {}
    for program, ranks in played:
        kernels_s = price(program, cluster, profiles).kernels_s
        for operations, priced, spent in zip(program.ranks, kernels_s, ranks, strict=True):
            for operation, predicted_s, measured_s in zip(operations, priced, spent, strict=True):
                if not isinstance(operation, Send | Recv | Collective):
                    observed.setdefault(type(operation).__name__, []).append((float(predicted_s), measured_s))
    views = view_seconds(played)
    host = (profile.host or Host()).model_copy(update={"view_s": float(np.median(views)) if views else 0.0})
    return with_corrections(profile, observed).model_copy(update={"host": host})
