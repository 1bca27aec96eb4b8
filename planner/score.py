"""Score: the objective of a candidate, lower is better, as a factor on the seconds of its step (``objective.py``)."""

from __future__ import annotations

import numpy as np

from planner.bounds.rates import Array
from planner.candidate import Table
from planner.evaluate import Evaluated
from planner.objective import least_weight, weight, weights
from planner.problem import Problem
from planner.question import Question


def score_factor(problem: Problem, question: Question, table: Table) -> Array:
    """What every candidate's step seconds are multiplied with to give the objective."""
    return np.asarray(weights(problem, question, table) / _tokens(problem, question))


def score_of(problem: Problem, question: Question, found: Evaluated) -> float:
    """The objective of a simulated candidate."""
    return found.step_s * weight(problem, found.placement.ranks) / _tokens(problem, question)


def least_factor(problem: Problem, question: Question, gpus: int) -> float:
    """No factor of a candidate on so many GPUs or more is less."""
    return least_weight(problem, gpus) / _tokens(problem, question)


def _tokens(problem: Problem, question: Question) -> int:
    """What seconds are divided by: a step is asked for as it is, the others a token."""
    return 1 if problem.objective in ("ttft", "tpot") else question.step.num_tokens
