"""A deep model simulated shallow takes, weighs and doubts what the whole one does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.depth import period_ps, shallow_versions
from planner.evaluate import doubt_of, evaluate, evaluate_until, memory_of
from planner.problem import Problem
from planner.space import Question, enumerate_space, name_of, placement_of
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.workload import Phase
from tests.instances import random_problem


def deep_problem(seed: int, layers: int) -> Problem:
    problem = random_problem(seed)
    model = problem.model.model_copy(update={"layers": (problem.model.layers[0],) * layers})
    return replace(problem, model=model)


def placements(question: Question, seed: int, num: int) -> list[Placement]:
    table = enumerate_space(question)
    table = table[table["stages"] == 1]
    return [placement_of(question, table[row]) for row in np.random.default_rng(seed).integers(len(table), size=num)]


@pytest.mark.parametrize("seed", range(14))
def test_a_shallow_model_takes_the_same_picoseconds_and_bytes_as_the_whole_one(seed: int) -> None:
    problem = deep_problem(seed, layers=14)
    compared = 0
    phases: tuple[Phase, ...] = ("prefill", "decode")
    for phase in phases:
        question = problem.question(phase, problem.workload.buckets[0])
        for placement in placements(question, seed, 3):
            try:
                whole = evaluate(problem, question, placement, None)
            except InfeasibleError:
                continue
            found = evaluate_until(problem, question, placement, None, math.inf)
            assert found is not None
            assert round(found.step_s * 1e12) == whole.timeline.makespan_ps, placement.name
            assert memory_of(problem, [found.program]) == memory_of(problem, [whole.program]), placement.name
            assert found.path.seconds() == pytest.approx(whole.path.seconds(), abs=1e-9), placement.name
            assert doubt_of(problem, found).up_s == pytest.approx(doubt_of(problem, whole).up_s, abs=1e-9)
            compared += found.program.repeated is not None
    assert compared


def test_replicas_that_drift_apart_are_simulated_whole() -> None:
    problem = deep_problem(0, layers=14)
    question = replace(problem.question("decode", problem.workload.buckets[0]), tokens=65536, batch=33)
    table = enumerate_space(question)
    uneven = next(row for row in table if "cp2" in name_of(row))  # 17 sequences on one replica, 16 on the other
    found = evaluate_until(problem, question, placement_of(question, uneven), None, math.inf)
    assert found is not None
    assert found.program.repeated is None


def test_pipelines_and_models_of_unlike_layers_have_no_shallow_version() -> None:
    problem = deep_problem(3, layers=14)
    question = problem.question("decode", problem.workload.buckets[0])
    table = enumerate_space(question)
    pipeline = placement_of(question, table[table["stages"] == 2][0])
    assert shallow_versions(problem.model, pipeline, None) == ()
    layer = problem.model.layers[0]
    mixed = (*problem.model.layers[:-1], layer.model_copy(update={"window": 8}))
    one = placement_of(question, table[table["stages"] == 1][0])
    assert shallow_versions(problem.model.model_copy(update={"layers": mixed}), one, None) == ()
    assert [version.depth for version in shallow_versions(problem.model, one, None)] == [6]


def test_no_period_is_found_where_a_layer_differs_from_the_one_before() -> None:
    problem = deep_problem(5, layers=6)
    question = problem.question("decode", problem.workload.buckets[0])
    placement = placements(question, 5, 1)[0]
    timeline = evaluate(problem, question, placement, None).timeline
    assert period_ps(timeline, 6) is not None
    rank = timeline.ranks[0]
    late = timeline.end_ps[rank].copy()
    late[[operation.layer == 4 for operation in timeline.program.ranks[rank]]] += 1
    ends = tuple(late if index == rank else end for index, end in enumerate(timeline.end_ps))
    assert period_ps(replace(timeline, end_ps=ends), 6) is None
