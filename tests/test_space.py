"""The lattice: every scheme is in it, once; placements of it are well formed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.problem import Problem, load_problem
from planner.rivals import baselines, rule_placement, rule_pool
from planner.space import Question, Scheme, enumerate_space, name_of, num_gpus, placement_of, pool_gpus
from simulator import presets
from simulator.placement import Placement
from simulator.workload import Phase
from tests.instances import random_problem


def documents(phase: Phase = "prefill", tokens: int = 16384) -> Question:
    problem = load_problem(presets.scenario("fa-pool"))
    batch = 1 if phase == "prefill" else 32
    return Question(problem.model, problem.cluster, phase, tokens, batch, 40, 8)


def test_every_scheme_of_the_documents_is_in_the_space() -> None:
    names = {name_of(row) for row in enumerate_space(documents())}
    for name in ("tp8-pp1", "tp8-pp2", "tp16-pp2", "tp8-pp4", "tp8-cp4-zigzag", "base8-pool32-h8q4k1-sqrt"):
        assert name in names
    for pool in (8, 16, 24, 32):
        assert f"base8-pool{pool}-h1q{pool}k1-contiguous" in names
    decode = {name_of(row) for row in enumerate_space(documents("decode"))}
    assert {"base8-pool32-h1q1k32", "base8+pool32-h8q1k5", "tp8-cp5-sqrt"} <= decode


@pytest.mark.parametrize("seed", range(12))
def test_no_candidate_appears_twice_and_each_is_a_placement(seed: int) -> None:
    problem = random_problem(seed)
    for phase in ("prefill", "decode"):
        question = problem.question(phase, problem.workload.buckets[0])
        table = enumerate_space(question)
        assert len(np.unique(table)) == len(table)
        rows = np.random.default_rng(seed).choice(len(table), min(40, len(table)), replace=False)
        placements = [placement_of(question, table[row]) for row in rows]
        assert [len(p.ranks) for p in placements] == num_gpus(table[rows]).tolist()
        pooled = table["scheme"][rows] != Scheme.SEPARATED
        assert np.array_equal(np.array([len(p.pool_ranks) for p in placements])[pooled], pool_gpus(table[rows])[pooled])
        bodies = {p.model_copy(update={"name": ""}).model_dump_json() for p in placements}
        assert len(bodies) == len(placements)


def test_equal_nodes_give_one_order_and_mixed_ones_every_order_of_kinds() -> None:
    problem = next(p for p in map(random_problem, range(50)) if len({n.gpu for n in p.cluster.nodes}) == 2)
    orders = problem.question("decode", problem.workload.buckets[0]).orders
    assert len(orders) == 2
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(problem.cluster.num_ranks))
    assert len(documents().orders) == 1


def test_fine_space_contains_the_coarse_one() -> None:
    coarse = {name_of(row) for row in enumerate_space(documents("decode"))}
    fine = {name_of(row) for row in enumerate_space(replace(documents("decode"), fine=True))}
    assert coarse < fine


@pytest.mark.parametrize(
    ("tokens", "pool"), [(4095, 0), (4096, 8), (8191, 8), (8192, 16), (16384, 24), (32767, 24), (32768, 32)]
)
def test_documents_rule_at_its_edges(tokens: int, pool: int) -> None:
    assert rule_pool(tokens) == pool
    placement = rule_placement(documents(tokens=tokens))
    assert isinstance(placement, Placement)
    assert len(placement.pool_ranks) == pool


def test_documents_baselines_are_always_there() -> None:
    found = baselines(documents())
    assert [p if isinstance(p, str) else p.name for p in found] == ["tp8-pp1", "tp8-pp2", "tp16-pp2", "tp8-pp4"]
    problem: Problem = random_problem(0)
    small = replace(problem.question("prefill", problem.workload.buckets[0]), max_gpus=1)
    assert all(isinstance(p, str) and "needs" in p for p in baselines(small)[1:])


@pytest.mark.parametrize("seed", [0, 3, 7, 11])
def test_pools_made_as_columns_are_the_ones_counted_one_by_one(seed: int) -> None:
    problem = random_problem(seed)
    for phase in ("prefill", "decode"):
        question = replace(problem.question(phase, problem.workload.buckets[0]), base_gpus=1, fine=bool(seed % 2))
        table = enumerate_space(question)
        heads = question.model.num_attention_heads
        most = min(question.tokens, question.batch if phase == "decode" else question.tokens)
        windowed, node = any(layer.window for layer in question.model.layers), question.node_gpus
        expected = {
            (h, q, k)
            for pool in range(1, question.max_gpus)
            if question.fine or pool % node == 0 or (pool < node and node % pool == 0)
            for h in range(1, pool + 1)
            for q in range(1, pool // h + 1)
            for k in (pool // h // q,)
            if h * q * k == pool and h <= heads and (question.fine or heads % h == 0) and q <= most
            if k <= (1 if windowed else question.tokens)
        }
        pools = table[(table["scheme"] == Scheme.POOL) & (table["dealing"] == 0)]
        assert {(int(c["heads"]), int(c["queries"]), int(c["keys"])) for c in pools} == expected


def test_the_next_node_of_a_position_is_the_first_later_one_elsewhere() -> None:
    problem = next(p for p in map(random_problem, range(50)) if len({n.gpu for n in p.cluster.nodes}) == 2)
    question = problem.question("decode", problem.workload.buckets[0])
    for order, homes in enumerate(question.homes.tolist()):
        for at, home in enumerate(homes):
            later = [p for p in range(at, len(homes)) if homes[p] != home]
            assert question.leaves[order, at] == min(later, default=len(homes))
