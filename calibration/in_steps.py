"""In steps: kernels' rows from programs that were played whole, so that what surrounds a kernel is in its seconds.

An operation of one kernel is a row of that kernel. Operations of several kernels (attention over two blocks) are left
to rows timed alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from calibration.rows import TimedRow
from simulator.costs.work import kernels_of
from simulator.kernel import ComputeKernel, Memory
from simulator.program import Collective, Program, Recv, Send

SOURCE = "timed by attnplan on this machine, inside steps"


def rows_in_steps(played: Iterable[tuple[Program, Sequence[Sequence[float]]]]) -> tuple[TimedRow, ...]:
    """One row a distinct kernel: the median over all places it was found in. ``played``: (program, seconds of every
    rank's operations)."""
    found: dict[ComputeKernel, list[float]] = {}
    for program, ranks in played:
        for operations, seconds in zip(program.ranks, ranks, strict=True):
            for operation, spent_s in zip(operations, seconds, strict=True):
                kernels = kernels_of(operation, program.dtype)
                if len(kernels) == 1:
                    found.setdefault(kernels[0], []).append(spent_s)
    return tuple(TimedRow(kernel, float(np.median(seconds)), SOURCE) for kernel, seconds in found.items())


def preferred(in_steps: Sequence[TimedRow], alone: Sequence[TimedRow]) -> tuple[TimedRow, ...]:
    """Rows of both, but of a kernel (of a kind of memory kernel: of all sizes) found in steps only those."""
    kernels = {row.kernel for row in in_steps}
    kinds = {row.kernel.kind for row in in_steps if isinstance(row.kernel, Memory)}
    kept = [
        row
        for row in alone
        if row.kernel not in kernels and not (isinstance(row.kernel, Memory) and row.kernel.kind in kinds)
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


def view_seconds(played: Iterable[tuple[Program, Sequence[Sequence[float]]]]) -> list[float]:
    """Seconds of every operation that launches no kernel."""
    return [
        spent_s
        for program, ranks in played
        for operations, seconds in zip(program.ranks, ranks, strict=True)
        for operation, spent_s in zip(operations, seconds, strict=True)
        if not isinstance(operation, Send | Recv | Collective) and not kernels_of(operation, program.dtype)
    ]
