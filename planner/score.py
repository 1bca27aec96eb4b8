"""Score: the objective of a candidate, lower is better, as a factor on the seconds of its step.

ttft and tpot are a step's seconds; tps tokens/s (the same order at a given batch); tps_per_gpu and cost GPU-seconds a
token.
"""

from __future__ import annotations

import numpy as np

from planner.bounds.rates import Array
from planner.candidate import Table, num_gpus
from planner.evaluate import Evaluated
from planner.problem import Problem
from planner.question import Question


def score_factor(problem: Problem, question: Question, table: Table) -> Array:
    """What every candidate's step seconds are multiplied with to give the objective."""
    return np.broadcast_to(_factor(problem, question, num_gpus(table).astype(np.float64)), len(table))


def score_of(problem: Problem, question: Question, found: Evaluated) -> float:
    """The objective of a simulated candidate."""
    return found.step_s * float(_factor(problem, question, np.float64(found.num_gpus)))


def least_factor(problem: Problem, question: Question, gpus: int) -> float:
    """No factor of a candidate on so many GPUs or more is less."""
    return float(_factor(problem, question, np.float64(gpus)))


def _factor(problem: Problem, question: Question, gpus: Array | np.float64) -> Array | np.float64:
    tokens = question.step.num_tokens
    match problem.objective:
        case "ttft" | "tpot":
            return np.float64(1.0)
        case "tps":
            return np.float64(1.0 / tokens)
        case "tps_per_gpu" | "cost":
            return gpus / tokens
