"""The bound is never above what the simulator finds, on any candidate of any instance; and it is fast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.bounds.bound import step_bound
from planner.evaluate import Evaluated, try_evaluate
from planner.problem import Problem, load_problem
from planner.space import Question, Scheme, enumerate_space, name_of, placement_of
from simulator import presets
from simulator.profile import load_profile
from simulator.workload import Phase
from tests.instances import random_problem
from tests.reliability.scale import of

CANDIDATES = 14


def sample(problem: Problem, question: Question, random: np.random.Generator) -> list[tuple[str, float, float]]:
    """(name, bound, simulated) of some candidates, the lowest bounds among them."""
    table = enumerate_space(question)
    bounds = step_bound(question, table, problem.rates)
    rows = [*np.argsort(bounds, kind="stable")[:4], *random.integers(len(table), size=CANDIDATES - 4)]
    found = []
    for row in dict.fromkeys(int(row) for row in rows):
        result = try_evaluate(problem, question, placement_of(question, table[row]), None)
        if isinstance(result, Evaluated):
            found.append((name_of(table[row]), float(bounds[row]), result.step_s))
    return found


@pytest.mark.parametrize("seed", range(of(16, 60)))
def test_bound_is_at_most_the_simulated_time_on_random_instances(seed: int) -> None:
    problem, random = random_problem(seed), np.random.default_rng(seed)
    compared = 0
    for phase in ("prefill", "decode"):
        question = problem.question(phase, problem.workload.buckets[0])
        for name, bound, simulated in sample(problem, question, random):
            assert 0 < bound <= simulated * (1 + 1e-9), f"{phase} {name}: bound {bound} above simulated {simulated}"
            compared += 1
    assert compared


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_bound_holds_on_the_documents_cluster(phase: str) -> None:
    problem = documents()
    for bucket in problem.workload.buckets[::2]:
        question = problem.question("prefill" if phase == "prefill" else "decode", bucket)
        table = enumerate_space(question)
        small = np.flatnonzero(table["queries"] * table["keys"] * table["heads"] <= 16)
        bounds = step_bound(question, table, problem.rates)
        for row in np.random.default_rng(1).choice(small, 6, replace=False):
            result = try_evaluate(problem, question, placement_of(question, table[row]), None)
            assert isinstance(result, Evaluated)
            assert bounds[row] <= result.step_s * (1 + 1e-9), name_of(table[row])


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_bound_holds_for_attention_and_experts_apart_on_several_nodes(phase: Phase) -> None:
    problem = load_problem(presets.scenario("ma-separation"))
    question = problem.question(phase, problem.workload.buckets[0])
    table = enumerate_space(question)
    apart = np.flatnonzero(table["scheme"] == Scheme.SEPARATED)
    bounds, tightest = step_bound(question, table, problem.rates), 0.0
    wanted = {"ma4-8", "ma4-8-mb2", "ma8-8-mb2", "ma3-1-mb2", "ma4-4-all_reduce"}  # dealt to several nodes' experts
    named = [row for row in apart if name_of(table[row]) in wanted]
    for row in (*named, *np.random.default_rng(1).choice(apart, 8, replace=False)):
        result = try_evaluate(problem, question, placement_of(question, table[row]), None)
        if isinstance(result, Evaluated):
            assert bounds[row] <= result.step_s * (1 + 1e-9), name_of(table[row])
            tightest = max(tightest, bounds[row] / result.step_s)
    assert tightest > 0.8


def documents() -> Problem:
    return load_problem(presets.scenario("fa-pool"))


def test_one_stage_without_micro_batches_is_bounded_almost_exactly() -> None:
    problem = documents()
    question = problem.question("prefill", problem.workload.buckets[2])
    table = enumerate_space(question)
    row = int(np.flatnonzero((table["scheme"] == Scheme.STATIC) & (table["tensor"] == 8) & (table["stages"] == 1))[0])
    result = try_evaluate(problem, question, placement_of(question, table[row]), None)
    assert isinstance(result, Evaluated)
    # what the bound leaves out: the KV store (0.5 %), the logits' all-gather, the tokens' way back
    assert step_bound(question, table, problem.rates)[row] == pytest.approx(result.step_s, rel=0.02)


def test_profiles_are_loaded_once() -> None:
    assert load_profile("a100-sxm4-80gb").name == documents().profiles["A100-SXM4-80GB"].name


def test_prices_that_rates_remember_are_their_own_clusters_and_kinds() -> None:
    rates = documents().rates
    nodes = tuple(node.model_copy(update={"slowdown": 2.0}) for node in rates.cluster.nodes)
    first = rates.gemm(4096, 4096, 4096)
    slow = replace(rates, cluster=rates.cluster.model_copy(update={"nodes": nodes}))
    assert slow.gemm(4096, 4096, 4096) == 2 * first
    assert rates.as_roofline().gemm(4096, 4096, 4096) < first == rates.gemm(4096, 4096, 4096)
