"""A folded program, which plays one block of like ranks, takes, weighs and doubts what the whole one does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.evaluate import Evaluated, doubt_of, evaluate, evaluate_folded, memory_of
from planner.problem import Problem, load_problem
from planner.space import Question, enumerate_space, name_of, placement_of
from simulator.cluster import Cluster
from simulator.errors import InfeasibleError
from simulator.fabric.copies import copies_on
from simulator.fabric.topology import Topology
from simulator.fold import Fold, UnfoldableError, folds
from simulator.memory import footprint
from simulator.placement import AttentionGrid, Placement, Stage
from simulator.presets import cluster as load_cluster
from simulator.presets import scenario
from simulator.workload import Phase
from tests.instances import random_problem
from tests.schemes import tiny_model

PHASES: tuple[Phase, ...] = ("prefill", "decode")


def drawn(question: Question, random: np.random.Generator, num: int) -> list[Placement]:
    table = enumerate_space(question)
    return [placement_of(question, table[row]) for row in random.integers(len(table), size=num)]


def named(question: Question, name: str) -> Placement:
    return next(placement_of(question, row) for row in enumerate_space(question) if name_of(row) == name)


def folded(problem: Problem, question: Question, placement: Placement, cache: Placement | None) -> list[Evaluated]:
    """The placement simulated by every fold that holds."""
    found = []
    for fold in problem.folds(placement, cache):
        try:
            one = evaluate_folded(problem, question, placement, cache, fold, math.inf)
        except UnfoldableError:
            continue
        assert one is not None
        found.append(one)
    return found


def check_alike(problem: Problem, found: Evaluated, whole: Evaluated) -> None:
    assert found.program.fold is not None
    assert found.program.num_operations * found.program.fold.blocks == whole.program.num_operations
    assert round(found.step_s * 1e12) == whole.timeline.makespan_ps, found.placement.name
    assert memory_of(problem, [found.program]) == memory_of(problem, [whole.program]), found.placement.name
    assert found.path.seconds() == pytest.approx(whole.path.seconds(), abs=1e-9), found.placement.name
    assert doubt_of(problem, found).up_s == pytest.approx(doubt_of(problem, whole).up_s, abs=1e-9)


def test_folded_candidates_of_random_problems_take_the_same_picoseconds_and_bytes() -> None:
    compared = 0
    for seed in range(26):
        random, problem = np.random.default_rng(seed), even_problem(seed)
        for phase in PHASES:
            question = problem.question(phase, problem.workload.buckets[0])
            for placement in drawn(question, random, 6):
                found = folded(problem, question, placement, None)
                if found:
                    whole = evaluate(problem, question, placement, None)
                    for one in found:
                        check_alike(problem, one, whole)
                        assert footprint(problem.model, one.program) == footprint(problem.model, whole.program)
                        compared += 1
    assert compared >= 26


@pytest.mark.parametrize("nics", [1, 2, 4, 8])
def test_the_documents_cluster_folds_alike_with_any_number_of_nics(nics: int) -> None:
    problem = load_problem(scenario("fa-pool"))
    nodes = tuple(
        node.model_copy(update={"nics": node.nics and node.nics.model_copy(update={"count": nics})})
        for node in problem.cluster.nodes
    )
    problem = replace(problem, cluster=problem.cluster.model_copy(update={"nodes": nodes}))
    random, compared = np.random.default_rng(nics), 0
    for phase in PHASES:
        question = problem.question(phase, problem.workload.buckets[0])
        decode = drawn(problem.question("decode", problem.workload.buckets[0]), random, 10)
        for number, (placement, other) in enumerate(zip(drawn(question, random, 10), decode, strict=True)):
            cache = other if phase == "prefill" and number % 2 else None
            try:
                found = folded(problem, question, placement, cache)
                whole = evaluate(problem, question, placement, cache) if found else None
            except InfeasibleError:
                continue
            for one in found:
                assert whole is not None
                check_alike(problem, one, whole)
                compared += 1
    assert compared >= 4


@pytest.mark.parametrize(("name", "blocks"), [("tp8-pp4", 8), ("tp4-cp10-contiguous-s4", 4), ("tp2-cp8-zigzag", 2)])
def test_pipelines_and_replicas_that_share_a_node_fold_beside_a_pools_cache(name: str, blocks: int) -> None:
    problem = load_problem(scenario("fa-pool"))
    bucket = problem.workload.buckets[0]
    placement = named(problem.question("prefill", bucket), name)
    cache = named(problem.question("decode", bucket), "base8+pool32-h8q1k5")
    found = folded(problem, problem.question("prefill", bucket), placement, cache)
    whole = evaluate(problem, problem.question("prefill", bucket), placement, cache)
    assert max(one.program.fold.blocks for one in found if one.program.fold) == blocks
    for one in found:
        check_alike(problem, one, whole)


def test_a_block_on_links_of_its_own_counts_once_and_a_shared_nic_as_often_as_it_is_shared() -> None:
    cluster, fold = load_cluster("dgx-a100-5"), tensor_fold(8)
    own = copies_on(fold, Topology(cluster))
    assert own is not None
    assert set(own.on.values()) == {1}  # eight GPUs, eight NICs
    shared = copies_on(fold, Topology(with_nics(cluster, 2)))
    assert shared is not None
    assert sorted(set(shared.on.values())) == [1, 4]  # ports alone, a NIC for four GPUs


def test_a_slow_node_or_uneven_heads_are_not_folded() -> None:
    cluster = load_cluster("dgx-a100-5")
    slow = cluster.nodes[0].model_copy(update={"count": 1, "slowdown": 2.0})
    mixed = cluster.model_copy(update={"nodes": (slow, cluster.nodes[0].model_copy(update={"count": 1}))})
    across = Fold((tuple(range(8)), tuple(range(8, 16))))
    assert copies_on(across, Topology(cluster)) is not None
    assert copies_on(across, Topology(mixed)) is None
    model = tiny_model(heads=8, kv_heads=8, layers=2).model_copy(update={"vocab_size": 96})
    assert [fold.blocks for fold in folds(model, [placement((4, 4))])] == [2]
    assert list(folds(model, [placement((5, 3))])) == []
    assert list(folds(model.model_copy(update={"vocab_size": 97}), [placement((4, 4))])) == []
    assert list(folds(model.model_copy(update={"num_key_value_heads": 1}), [placement((4, 4))])) == []


def test_ranks_in_two_blocks_at_once_are_not_folded() -> None:
    model = tiny_model(heads=8, kv_heads=8, layers=2).model_copy(update={"vocab_size": 96})
    crossed = Stage(
        first_layer=0, last_layer=2, attention_ranks=(1, 0), grid=AttentionGrid(heads=(4, 4)),
        feed_forward_ranks=(0, 1), tensor_degree=2,
    )  # fmt: skip
    assert list(folds(model, [Placement(name="crossed", stages=(crossed,))])) == []


def test_a_group_that_only_some_blocks_meet_in_is_refused() -> None:
    fold = tensor_fold(4)
    assert fold.groups_like((0, 1, 2, 3)) == 1
    assert fold.groups_like((2,)) == 4
    with pytest.raises(UnfoldableError, match="unevenly"):
        fold.groups_like((0, 1))


def even_problem(seed: int) -> Problem:
    """A vocabulary that eight ranks share evenly, as models have it."""
    problem = random_problem(seed)
    return replace(problem, model=problem.model.model_copy(update={"vocab_size": 96}))


def tensor_fold(blocks: int) -> Fold:
    return Fold(tuple((rank,) for rank in range(blocks)))


def with_nics(cluster: Cluster, count: int) -> Cluster:
    node = cluster.nodes[0]
    assert node.nics is not None
    nics = node.nics.model_copy(update={"count": count})
    return cluster.model_copy(update={"nodes": (node.model_copy(update={"nics": nics}),)})


def placement(heads: tuple[int, ...]) -> Placement:
    stage = Stage(
        first_layer=0, last_layer=2, attention_ranks=(0, 1), grid=AttentionGrid(heads=heads),
        feed_forward_ranks=(0, 1), tensor_degree=2,
    )  # fmt: skip
    return Placement(name="tp2", stages=(stage,))
