"""The ceiling is above what any rank needs, so that what fits below it fits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.evaluate import evaluate_until, lacking, memory_of, shortage
from planner.problem import Problem, load_problem
from planner.space import enumerate_space, placement_of
from simulator.errors import InfeasibleError
from simulator.memory_ceiling import most_bytes
from simulator.presets import scenario
from simulator.program import Program
from simulator.workload import Phase
from tests.instances import random_problem

PHASES: tuple[Phase, ...] = ("prefill", "decode")


def programs_of(problem: Problem, seed: int, num: int) -> list[Program]:
    """Of candidates drawn in both phases, folded and shallow as races simulate them."""
    random, found = np.random.default_rng(seed), list[Program]()
    for phase in PHASES:
        question = problem.question(phase, problem.workload.buckets[0])
        table = enumerate_space(question)
        for row in random.integers(len(table), size=num):
            try:
                one = evaluate_until(problem, question, placement_of(question, table[row]), None, math.inf)
            except InfeasibleError:
                continue
            assert one is not None
            found.append(one.program)
    return found


@pytest.mark.parametrize("problem", [*map(random_problem, range(3)), load_problem(scenario("ma-separation"))])
def test_no_rank_needs_more_than_the_ceiling(problem: Problem) -> None:
    programs = programs_of(problem, 0, 5)
    for one, other in zip(programs, reversed(programs), strict=True):
        for resident in ([one], [one, other]):
            most = most_bytes(problem.model, [problem.ceiling(program) for program in resident])
            used = [row.capacity_bytes - row.headroom_bytes for row in memory_of(problem, resident)]
            assert max(used) <= most


def test_what_lacks_memory_is_named_with_the_exact_figure() -> None:
    problem = random_problem(0)
    program = programs_of(problem, 0, 1)[0]
    assert shortage(problem, [program]) is None
    gpus = tuple(gpu.model_copy(update={"memory_bytes": 1}) for gpu in problem.cluster.gpus)
    small = replace(problem, cluster=problem.cluster.model_copy(update={"gpus": gpus}))
    assert shortage(small, [program]) == lacking(memory_of(small, [program])) is not None
