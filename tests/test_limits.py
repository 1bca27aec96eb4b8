"""Limits and objectives change the plan where they should, and what they exclude is refused in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.cache_fit import beside_cache, sliced
from planner.candidate import MODES, Scheme
from planner.choice import exactness_of
from planner.evaluate import memory_of, step_interval
from planner.explain import explain
from planner.make import make_problem
from planner.problem import load_problem
from planner.search import race
from planner.space import enumerate_space, name_of, placement_of
from planner.weights_fit import fitting, least_weight_bytes
from simulator import presets
from simulator.errors import InfeasibleError, SpecError
from tests.instances import random_problem


def test_an_slo_on_the_95th_percentile_is_harder_than_on_the_median() -> None:
    problem = replace(random_problem(7), objective="tpot")
    question = problem.question("decode", problem.workload.buckets[0])
    rows = np.arange(len(enumerate_space(question))) < 1
    found = race(problem, question, rows=rows)
    only = found.simulated[found.ranking()[0].row]
    between_s = (only.step_s + step_interval(problem, only).p95) / 2
    limits = problem.limits.model_copy(update={"tpot_slo_s": between_s})
    assert race(replace(problem, limits=limits), question, rows=rows).ranking()
    strict = replace(problem, limits=limits.model_copy(update={"slo_quantile": "p95"}))
    with pytest.raises(InfeasibleError, match=r"\(p95\) misses the SLO"):
        race(strict, question, rows=rows)


def test_an_exact_plan_of_a_model_that_may_drop_tokens_is_refused() -> None:
    with pytest.raises(SpecError, match=r"capacity_factor 1 may drop tokens, which exactness 'exact' excludes"):
        load_problem(presets.scenario("ma-separation"), exactness="exact")
    assert load_problem(presets.scenario("fa-pool"), exactness="exact").limits.exactness == "exact"


def test_only_a_model_changing_budget_admits_a_softmax_per_slice() -> None:
    for budget, admitted in (("exact", False), ("drops-possible", False), ("model-changing", True)):
        problem = load_problem(presets.scenario("two-level"), exactness=budget)  # type: ignore[arg-type]
        question = problem.question("decode", problem.workload.buckets[0])
        table = enumerate_space(question)
        per_slice = (table["scheme"] == Scheme.TWO_LEVEL) & (table["mode"] == MODES.index("per_slice"))
        assert bool(per_slice.any()) is admitted
        if admitted:
            placement = placement_of(question, table[per_slice][0])
            assert exactness_of(problem, placement) == "model-changing"


def test_a_sliced_cache_is_filled_by_the_placement_that_decodes_from_it_alone() -> None:
    problem = random_problem(11)
    question = problem.question("prefill", problem.workload.buckets[0])
    table = enumerate_space(question)
    two_level = table[table["scheme"] == Scheme.TWO_LEVEL]
    placement = placement_of(question, two_level[0])
    assert sliced(placement)
    assert [name_of(row) for row in beside_cache(table, placement)] == [placement.name]
    whole = beside_cache(table, placement_of(question, table[0]))
    assert len(whole) == len(table) - len(two_level)


def test_least_weights_are_at_most_what_lowered_programs_hold() -> None:
    for seed in range(12):
        problem = random_problem(seed)
        question = problem.question("prefill", problem.workload.buckets[0])
        table = enumerate_space(question)
        rows = np.random.default_rng(seed).choice(len(table), 4)
        found = race(problem, question, rows=np.isin(np.arange(len(table)), rows))
        for row, one in found.simulated.items():
            most = max(rank.weights_bytes for rank in memory_of(problem, [one.program]))
            assert least_weight_bytes(question, found.table[[row]])[0] <= most


def test_candidates_whose_weights_fit_no_device_are_never_lowered() -> None:
    problem = random_problem(7)
    question = problem.question("prefill", problem.workload.buckets[0])
    table = enumerate_space(question)
    middle = int(np.median(least_weight_bytes(question, table)))
    gpus = tuple(gpu.model_copy(update={"memory_bytes": middle}) for gpu in question.cluster.gpus)
    small = replace(question, cluster=question.cluster.model_copy(update={"gpus": gpus}))
    assert 0 < len(fitting(small, table)) < len(table)


def test_unevenly_dealt_heads_and_groups_that_bring_nothing_are_explained() -> None:
    problem = load_problem(presets.scenario("ma-separation"))
    bucket = problem.workload.buckets[0]
    question = problem.question("decode", bucket)
    table = enumerate_space(question)
    twelve = (table["scheme"] == Scheme.SEPARATED) & (table["heads"] == 12) & (table["experts"] == 4)
    problem = replace(random_problem(0))
    allocation = make_problem(problem, limit=1)
    choice = allocation.policy[0].model_copy(update={"placement": placement_of(question, table[twelve][0])})
    text = explain(allocation.model_copy(update={"policy": (choice,)}))
    # 32 = 8·3 + 4·2; with at most 3 each, ceil(32 / 3) = 11 do
    assert "heads       32 heads over 12 head groups: 8 x 3 + 4 x 2 heads [counted]" in text
    assert "1 groups bring attention nothing: 11 groups finish as soon on equal GPUs [counted]" in text
