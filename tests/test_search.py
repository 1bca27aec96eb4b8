"""The search's choice is brute force's, on random instances; objectives, limits, memory and doubt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from planner.evaluate import Evaluated, evaluate_until, lacking, memory_of, try_evaluate
from planner.exploring.critical_path import Doubt, difference
from planner.problem import Problem
from planner.search import race, score_factor, try_pools
from planner.space import Question, enumerate_space, name_of, placement_of
from simulator.errors import InfeasibleError
from simulator.scenario import Objective
from simulator.workload import Phase
from tests.instances import random_problem
from tests.reliability.scale import of

MOST = 24  # candidates of an instance, so that all can be simulated


def brute_force(problem: Problem, question: Question, rows: npt.NDArray[np.bool_]) -> tuple[float, int, str]:
    """(score, GPUs, name) of the best of all candidates, each simulated."""
    table = enumerate_space(question)[rows]
    factor = score_factor(problem, question, table)
    best: list[tuple[float, int, int, str]] = []
    for row, candidate in enumerate(table):
        result = try_evaluate(problem, question, placement_of(question, candidate), None)
        if isinstance(result, Evaluated) and lacking(memory_of(problem, [result.program])) is None:
            best.append((result.step_s * float(factor[row]), result.num_gpus, row, name_of(candidate)))
    score, gpus, _, name = min(best)
    return score, gpus, name


@pytest.mark.parametrize("seed", range(100, 100 + of(16, 56)))
def test_choice_equals_brute_force_on_random_instances(seed: int) -> None:
    problem = random_problem(seed)
    phase: Phase = "prefill" if seed % 2 else "decode"
    question = problem.question(phase, problem.workload.buckets[0])
    size = len(enumerate_space(question))
    rows = np.zeros(size, dtype=np.bool_)
    rows[np.random.default_rng(seed).choice(size, min(MOST, size), replace=False)] = True
    rows[0] = True
    found = race(problem, question, rows=rows)
    first = found.ranking()[0]
    winner = found.simulated[first.row]
    score, gpus, name = brute_force(problem, question, rows)
    assert found.gap == 0
    assert first.score == pytest.approx(score, rel=1e-12)
    assert (winner.num_gpus, winner.placement.name) == (gpus, name)


def documents_like(objective: Objective, seed: int = 3) -> tuple[Problem, Question]:
    problem = replace(random_problem(seed), objective=objective)
    return problem, problem.question("decode", problem.workload.buckets[0])


def test_cost_takes_fewer_gpus_than_speed() -> None:
    for seed in range(6):
        counts = []
        for objective in ("cost", "tpot"):
            problem, question = documents_like(objective, seed)
            found = race(problem, question, limit=40)
            counts.append(found.simulated[found.ranking()[0].row].num_gpus)
        assert counts[0] <= counts[1]


def test_an_slo_below_every_bound_is_refused_with_the_best_bound() -> None:
    problem, question = documents_like("tpot")
    problem = replace(problem, limits=problem.limits.model_copy(update={"tpot_slo_s": 1e-9}))
    with pytest.raises(InfeasibleError, match=r"no candidate can meet the SLO of 1e-09 s; the best bound is"):
        race(problem, question)


def test_a_model_that_fits_nowhere_names_rank_and_bytes() -> None:
    problem, question = documents_like("tpot")
    gpus = tuple(gpu.model_copy(update={"memory_bytes": 2**20}) for gpu in problem.cluster.gpus)
    problem = replace(problem, cluster=problem.cluster.model_copy(update={"gpus": gpus}))
    question = replace(question, cluster=problem.cluster)
    rows = np.arange(len(enumerate_space(question))) < 5
    with pytest.raises(InfeasibleError, match=r"rank \d+ lacks \d+ bytes; allow more GPUs"):
        race(problem, question, rows=rows)


def test_a_time_limit_states_the_gap() -> None:
    problem, question = documents_like("tpot", 7)
    exact, hasty = race(problem, question), race(problem, question, limit=1)
    assert exact.gap == 0
    assert len(hasty.simulated) <= len(exact.simulated)
    best = [found.ranking()[0].score for found in (exact, hasty)]
    assert best[0] <= best[1]
    assert best[1] * (1 - hasty.gap) <= best[0] * (1 + 1e-9)


def test_errors_of_one_kind_cancel_between_alternatives() -> None:
    ours = Doubt({"gemm": 2.0, "network": 1.0}, {"gemm": 2.0, "network": 1.0})
    alike = difference(ours, Doubt({"gemm": 2.0, "network": 1.0}, {"gemm": 2.0, "network": 1.0}))
    assert alike == (0.0, 0.0)
    # 3 s more doubt in gemm, 4 s in attention, which we do not have: sqrt(3² + 4²) = 5
    other = Doubt({"gemm": 5.0, "network": 1.0, "attention": 4.0}, {"gemm": 5.0, "network": 1.0, "attention": 4.0})
    assert difference(ours, other) == (5.0, 5.0)


def test_a_simulation_stops_at_its_deadline_and_not_before() -> None:
    problem, question = documents_like("tpot")
    placement = placement_of(question, enumerate_space(question)[0])
    full = evaluate_until(problem, question, placement, None, np.inf)
    assert full is not None
    in_time = evaluate_until(problem, question, placement, None, full.step_s)
    assert in_time is not None
    assert in_time.step_s == full.step_s
    assert evaluate_until(problem, question, placement, None, full.step_s - 1e-9) is None


def test_the_best_bound_pools_are_simulated_where_none_can_win() -> None:
    problem, question = documents_like("tpot", 7)
    found = race(problem, question, limit=1)
    first = found.ranking()[0].key
    try_pools(problem, found, (), simulations=3)
    assert found.ranking()[0].key <= first
    assert found.best_pool() is not None
