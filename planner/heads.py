"""Heads: how many attention heads each GPU gets, as an integer program over unequal GPUs and links.

minimise the finish time T over head counts h_i ≥ 0, Σ h_i = heads, with KV groups kept whole where asked:

    T ≥ h_i · (compute_s_i + link_s_i) + fixed_s_i·[h_i > 0]        for every GPU i

``compute_s`` is one head's seconds on that GPU, ``link_s`` the seconds its inputs and output need on its link. Among
equal T the fewest GPUs win, so GPUs that bring nothing get no heads: 32 heads on 12 equal GPUs finish no sooner than on
11, as somebody has 3 either way. The documents' rule is ``even_split``: [3]·8 + [2]·4.
Source: MA Separation document, section 3.2.1 (rule); scipy's HiGHS solves the program exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.errors import InfeasibleError
from simulator.placement import even_split

SLACK = 1e-7  # of the finish time: the solver's own tolerance


@dataclass(frozen=True, slots=True)
class Worker:
    """A GPU: seconds a head costs in compute and on its link, and what it costs to take part at all."""

    compute_s: float
    link_s: float = 0.0
    fixed_s: float = 0.0

    @property
    def head_s(self) -> float:
        return self.compute_s + self.link_s


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """Heads of every GPU, the finish time, GPUs without heads, and the documents' rule on the same GPUs."""

    heads: tuple[int, ...]
    finish_s: float
    idle: tuple[int, ...]
    rule: tuple[int, ...]
    rule_finish_s: float


def finish_s(heads: Sequence[int], workers: Sequence[Worker]) -> float:
    """When the last GPU is done."""
    return max((h * w.head_s + w.fixed_s for h, w in zip(heads, workers, strict=True) if h), default=0.0)


def distribute(num_heads: int, workers: Sequence[Worker], *, group_size: int = 1, least: int = 0) -> HeadPlan:
    """The best distribution; ``group_size`` heads share a KV head and stay together (1: every head on its own), every
    GPU gets at least ``least`` groups.

    InfeasibleError without GPUs, where groups do not divide the heads or are too few.
    """
    if not workers:
        raise InfeasibleError(f"{num_heads} heads on 0 GPUs; give at least one")
    if num_heads % group_size:
        raise InfeasibleError(f"{num_heads} heads are not whole groups of {group_size}; use a divisor of the heads")
    if num_heads // group_size < least * len(workers):
        raise InfeasibleError(
            f"{num_heads // group_size} groups of heads give {len(workers)} GPUs no {least} each; use fewer GPUs"
        )
    groups = _solve(num_heads // group_size, [_group(worker, group_size) for worker in workers], least)
    heads = tuple(size * group_size for size in groups)
    rule = tuple(size * group_size for size in even_split(num_heads // group_size, len(workers)))
    idle = tuple(index for index, size in enumerate(heads) if not size)
    return HeadPlan(heads, finish_s(heads, workers), idle, rule, finish_s(rule, workers))


def _group(worker: Worker, size: int) -> Worker:
    return Worker(worker.compute_s * size, worker.link_s * size, worker.fixed_s)


def _solve(units: int, workers: Sequence[Worker], least: int) -> tuple[int, ...]:
    """scipy ``milp`` over (h_0 … h_n−1, used_0 … used_n−1, T), times scaled: the least T, then fewest GPUs at it."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    num = len(workers)
    scale = max(worker.head_s * units + worker.fixed_s for worker in workers)
    rows = np.zeros((2 * num + 1, 2 * num + 1))
    low, high = np.full(2 * num + 1, -np.inf), np.zeros(2 * num + 1)
    for index, worker in enumerate(workers):
        rows[index, index] = worker.head_s / scale
        rows[index, num + index] = worker.fixed_s / scale
        rows[index, -1] = -1.0
        rows[num + index, index], rows[num + index, num + index] = 1.0, -float(units)
    rows[-1, :num], low[-1], high[-1] = 1.0, float(units), float(units)
    constraints = LinearConstraint(rows, low, high)
    lower = np.concatenate((np.full(num, float(least)), np.zeros(num + 1)))
    upper = np.concatenate((np.full(num, units), np.ones(num), [np.inf]))
    for objective in (np.eye(2 * num + 1)[-1], np.repeat([0.0, 1.0, 0.0], [num, num, 1])):
        result = milp(
            objective,
            constraints=constraints,
            integrality=np.concatenate((np.ones(2 * num), [0])),
            bounds=Bounds(lower, upper),
            options={"mip_rel_gap": 0.0},
        )
        if not result.success:
            raise InfeasibleError(f"no distribution of {units} heads over {num} GPUs: {result.message}")
        upper[-1] = float(result.x[-1]) * (1 + SLACK)
    return _canonical([round(float(value)) for value in result.x[:num]], workers)


def _canonical(sizes: list[int], workers: Sequence[Worker]) -> tuple[int, ...]:
    """Equal GPUs in order get more heads first, so that the same input always gives the same answer."""
    result = list(sizes)
    for worker in dict.fromkeys(workers):
        places = [index for index, other in enumerate(workers) if other == worker]
        for place, size in zip(places, sorted((sizes[p] for p in places), reverse=True), strict=True):
            result[place] = size
    return tuple(result)


def useful_gpus(num_heads: int, gpus: int) -> int:
    """The fewest equal GPUs that finish as soon as ``gpus`` do: ceil(heads / ceil(heads / gpus))."""
    most = -(-num_heads // gpus)
    return -(-num_heads // most)
