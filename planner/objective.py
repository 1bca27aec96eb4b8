"""Objective: what a second of a step counts, by the GPUs that it holds; lower is better.

ttft, tpot, tps      time alone
tps_per_gpu, cost    a second of every GPU held: 1e6/3600 of GPU-seconds a token are GPU-hours a million tokens
joule                every GPU's board limit in watts, so that a second counts the joules drawn in it, at most
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from planner.candidate import Table, num_gpus
from planner.problem import Problem
from planner.question import Question

Array = npt.NDArray[np.float64]


def weight(problem: Problem, ranks: Iterable[int]) -> float:
    """What a second counts while a step holds these ranks."""
    match problem.objective:
        case "ttft" | "tpot" | "tps":
            return 1.0
        case "tps_per_gpu" | "cost":
            return float(len(set(ranks)))
        case "joule":
            watts = problem.rank_power_w
            return sum(watts[rank] for rank in set(ranks))


def weights(problem: Problem, question: Question, table: Table) -> Array:
    """Of every candidate, which takes the first ranks of its order."""
    held = num_gpus(table)
    match problem.objective:
        case "ttft" | "tpot" | "tps":
            return np.ones(len(table))
        case "tps_per_gpu" | "cost":
            return held.astype(np.float64)
        case "joule":
            watts = np.array(problem.rank_power_w)[np.array(question.orders)]
            return np.asarray(np.cumsum(watts, axis=1)[table["order"], held - 1])


def least_weight(problem: Problem, gpus: int) -> float:
    """At least what a second counts while so many GPUs are held, whichever they are."""
    match problem.objective:
        case "ttft" | "tpot" | "tps":
            return 1.0
        case "tps_per_gpu" | "cost":
            return float(gpus)
        case "joule":
            return gpus * min(problem.rank_power_w)
