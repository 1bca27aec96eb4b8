"""Choosing: which shapes to time, in which order, so that few points teach most.

A Gaussian process over a class's physical features knows how unsure it would be of every candidate before anything is
timed: its variance does not depend on what the timings say. The next point is the candidate with the largest variance,
times HINT_WEIGHT for kernels of the plan at hand. This is the pivoted Cholesky factorisation of the kernel matrix; and
because no measured second enters, an interrupted calibration goes on with the very points it would have timed.
Source: Rasmussen & Williams 2006, equation 2.26; Krause et al. 2008 (greedy choice of sensors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.fit import starts
from simulator.costs.columns import class_of, rows_of
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.gaussian_kernel import matern
from simulator.costs.physics import Array, Device
from simulator.kernel import ComputeKernel, Memory

HINT_WEIGHT = 4.0  # a variance is worth so much more where the planner looks
LENGTH = 5.0  # standard deviations of the features: the prior of calibration/gaussian.py
NOISE = 1e-3
MEMORY_EVERY = 6  # an element-wise kernel is a straight line: one point in so many is enough


@dataclass(slots=True)
class _Pool:
    """Candidates of one class: what remains unsure of each, and the factor's columns so far."""

    kernels: list[ComputeKernel]
    features: Array
    weight: Array
    variance: Array
    columns: list[Array]

    def best(self) -> tuple[float, int]:
        value = self.variance * self.weight
        index = int(np.argmax(value))
        return float(value[index]), index

    def take(self, index: int) -> ComputeKernel:
        """One step of the factorisation: what ``index`` tells about every other candidate."""
        with_all = matern(self.features, self.features[index : index + 1], LENGTH)[:, 0]
        known = sum((column * column[index] for column in self.columns), np.zeros(len(with_all)))
        column = (with_all - known) / np.sqrt(max(float(self.variance[index]), 0.0) + NOISE)
        self.columns.append(column)
        self.variance = np.maximum(self.variance - column * column, 0.0)
        self.weight[index] = 0.0
        return self.kernels[index]


def in_order(
    classes: Sequence[Sequence[ComputeKernel]], device: Device, hints: Sequence[ComputeKernel], most: int
) -> tuple[ComputeKernel, ...]:
    """Up to ``most`` kernels of ``classes`` and ``hints``, the most telling first; the same every time."""
    hinted = dict.fromkeys(hints)
    every = dict.fromkeys((*hinted, *(kernel for kernels in classes for kernel in kernels)))
    memory = [kernel for kernel in every if isinstance(kernel, Memory)]
    pools = _pools([kernel for kernel in every if not isinstance(kernel, Memory)], device, hinted)
    spread = [memory[i] for i in np.random.default_rng(0).permutation(len(memory))]
    spread.sort(key=lambda kernel: kernel not in hinted)
    chosen: list[ComputeKernel] = []
    while len(chosen) < most:
        (value, index), pool = max(((pool.best(), pool) for pool in pools), key=lambda item: item[0][0],
                                   default=((0.0, 0), None))  # fmt: skip
        if spread and (len(chosen) % MEMORY_EVERY == MEMORY_EVERY - 1 or value <= 0.0):
            chosen.append(spread.pop(0))
        elif pool is not None and value > 0.0:
            chosen.append(pool.take(index))
        else:
            break
    return tuple(chosen)


def _pools(kernels: Sequence[ComputeKernel], device: Device, hinted: dict[ComputeKernel, None]) -> list[_Pool]:
    groups: dict[str, list[ComputeKernel]] = {}
    for kernel in kernels:
        groups.setdefault(class_of(kernel), []).append(kernel)
    return [_pool(name, group, device, hinted) for name, group in groups.items()]


def _pool(name: str, kernels: list[ComputeKernel], device: Device, hinted: dict[ComputeKernel, None]) -> _Pool:
    start, variants = starts(name, device)
    coefficients = dict(start) | {key: values[0] for key, values in variants.items()}
    features = PHYSICAL_MODELS[name](rows_of(kernels), coefficients, device).features
    scale = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(scale > 1e-9, scale, 1.0)
    weight = np.array([HINT_WEIGHT if kernel in hinted else 1.0 for kernel in kernels])
    return _Pool(kernels, standard, weight, np.ones(len(kernels)), [])
