"""Timed rows: what every source of measurements is turned into, and what every fit starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.costs.columns import class_of, rows_of
from simulator.costs.physics import Array
from simulator.kernel import GroupCollective, Kernel, Memory


@dataclass(frozen=True, slots=True)
class TimedRow:
    """One kernel, its median seconds, and where the number comes from."""

    kernel: Kernel
    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one class and dtype as arrays: ``x`` [n, columns of physics.COLUMNS], ``seconds`` [n]."""

    kernel: str
    dtype: str
    x: Array
    seconds: Array

    def take(self, chosen: np.typing.NDArray[np.bool_] | np.typing.NDArray[np.int64]) -> Table:
        return Table(self.kernel, self.dtype, self.x[chosen], self.seconds[chosen])


def tables(rows: Sequence[TimedRow]) -> tuple[Table, ...]:
    """One table a class and dtype, in order of first appearance; equal kernels become their geometric mean."""
    groups: dict[tuple[str, str], list[TimedRow]] = {}
    for row in rows:
        if not isinstance(row.kernel, (Memory, GroupCollective)):
            groups.setdefault((class_of(row.kernel), row.kernel.dtype), []).append(row)
    return tuple(_table(kernel, dtype, group) for (kernel, dtype), group in groups.items())


def _table(kernel: str, dtype: str, group: list[TimedRow]) -> Table:
    x, which = np.unique(rows_of([row.kernel for row in group]), axis=0, return_inverse=True)
    which = which.reshape(-1)
    log_seconds = np.log([row.seconds for row in group])
    mean = np.bincount(which, log_seconds) / np.bincount(which)
    return Table(kernel, dtype, x, np.exp(mean))
