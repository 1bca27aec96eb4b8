"""The policy as a whole: activations are priced, weights of all placements stay resident, the best choice is exact."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from planner.make import make_problem, plan_pair
from planner.policy import (
    Option,
    activation_s,
    best_policy,
    missing_bytes,
    policy_cost,
    residents,
    switching_cost,
)
from planner.problem import Problem
from planner.verification.verify import verify
from simulator.allocation import Allocation
from simulator.errors import InfeasibleError
from simulator.memory import Footprint, Share
from simulator.placement import AttentionGrid, Placement, Stage
from simulator.program import WeightSlice
from simulator.workload import Bucket
from tests.test_verify import problem as two_buckets


def small_problem(*lengths: int, activation: float | None = None, shares: tuple[float, ...] = ()) -> Problem:
    """A bucket a length, single sequences, a model whose tensor shards pay on two GPUs even for a few tokens."""
    edges = [1, *(length + 1 for length in lengths[:-1]), None]
    each = shares or (1 / len(lengths),) * len(lengths)
    buckets = tuple(
        Bucket(
            name=f"b{n}",
            min_tokens=edges[n] or 1,
            max_tokens=edges[n + 1],
            tokens=tokens,
            share=each[n],
            output_tokens=4,
        )
        for n, tokens in enumerate(lengths)
    )
    one = two_buckets()
    workload = one.workload.model_copy(update={"buckets": buckets, "prefill_batch": 1, "decode_batch": 1})
    model = one.model.model_copy(update={"hidden_size": 2048, "intermediate_size": 8192})
    limits = one.limits.model_copy(update={"base_gpus": None, "activation_s": activation})
    return replace(one, model=model, workload=workload, limits=limits)


def faults(problem: Problem, allocation: Allocation) -> tuple[str, ...]:
    return verify(
        allocation,
        model=problem.model,
        cluster=problem.cluster,
        workload=problem.workload,
        profiles=problem.profiles,
    )


def option(random: np.random.Generator, gpus: int, cost: float, rank_bytes: int) -> Option:
    """Static on the first GPUs; its weights are one of three matrices of its own size, so unions differ."""
    ranks = tuple(range(gpus))
    stage = Stage(
        first_layer=0, last_layer=2, attention_ranks=ranks, grid=AttentionGrid(heads=(32,)) if gpus == 1 else
        AttentionGrid(heads=tuple(32 // gpus for _ in ranks)), feed_forward_ranks=ranks, tensor_degree=gpus,
    )  # fmt: skip
    placement = Placement(name=f"tp{gpus}-{random.integers(10**9)}", stages=(stage,))
    which = int(random.integers(3))
    weights = frozenset({WeightSlice(f"layers.0.m{which}", (0, 1), (0, rank_bytes))})
    share = Share(weights, kv_cache=int(random.integers(1, 100)), activations=int(random.integers(1, 100)))
    print_of = Footprint("bf16", tuple(share if rank < gpus else None for rank in range(4)))
    return Option(placement, placement, (cost, float(random.random())), (print_of, print_of))


@pytest.mark.parametrize("seed", range(40))
def test_the_policy_is_the_one_brute_force_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    problem = small_problem(4, 256, 1024, activation=float(random.choice([0.0, 0.3, 2.0])))
    room = int(random.choice([1, 2, 3])) * 2 * 10**9 + 10**9
    gpu = problem.cluster.gpus[0].model_copy(update={"memory_bytes": room})
    problem = replace(problem, cluster=problem.cluster.model_copy(update={"gpus": (gpu,)}))
    options = [
        [option(random, int(random.choice([1, 2, 4])), float(random.uniform(1, 3)), 10**9) for _ in range(4)]
        for _ in range(3)
    ]
    shares = [bucket.share for bucket in problem.workload.buckets]
    fitting = [some for some in product(*options) if not missing_bytes(problem, some)]
    found = best_policy(
        options, shares, lambda some: policy_cost(problem, some), lambda some: not missing_bytes(problem, some)
    )
    assert (found is None) == (not fitting)
    if found is not None:
        assert policy_cost(problem, found) == min(policy_cost(problem, some) for some in fitting)


def test_a_batch_pays_for_gpus_that_the_one_before_did_not_hold() -> None:
    """Shares 1/4 on one GPU, 3/4 on two, 8 s: only 1 → 2 waits, 1/4 · 3/4 · 8 s = 1.5 s in the mean."""
    problem = small_problem(4, 256, activation=8.0, shares=(0.25, 0.75))
    random = np.random.default_rng(0)
    one, two = option(random, 1, 1.0, 10), option(random, 2, 2.0, 10)
    assert switching_cost(problem, [one, two]) == pytest.approx(1.5, rel=1e-12)
    assert switching_cost(problem, [two, two]) == 0.0
    per_request = replace(problem, objective="cost")  # two GPUs wait: 2 · 1.5 GPU-s, a request a prefill batch
    assert switching_cost(per_request, [one, two]) == pytest.approx(3.0, rel=1e-12)
    per_token = replace(problem, objective="tpot")  # spread over a request's 4 tokens
    assert switching_cost(per_token, [one, two]) == pytest.approx(1.5 / 4, rel=1e-12)


def test_without_a_stated_activation_it_is_a_message_there_and_back_over_the_longest_way() -> None:
    problem = small_problem(4)
    nics = problem.cluster.nodes[0].nics
    assert nics is not None
    expected = 2 * (nics.latency_s + 3 * problem.cluster.fabric.latency_s)
    assert activation_s(problem) == pytest.approx(expected, rel=1e-12)


def test_short_prompts_give_up_their_own_best_placement_where_switching_costs_more() -> None:
    free = make_problem(small_problem(4, 1024, activation=0.0))
    assert free.switching is not None
    assert free.switching.probability == 0.25  # the short bucket's best holds two GPUs, the long one's four
    assert free.switching.moved == ()
    assert free.switching.gap == 0.0
    dear_problem = small_problem(4, 1024, activation=0.1)
    dear = make_problem(dear_problem)
    assert dear.switching is not None
    assert dear.switching.probability == 0.0
    assert dear.switching.moved == ("b0",)
    assert free.switching.policy_cost < dear.switching.policy_cost < free.switching.policy_cost + 0.25 * 0.1
    assert faults(dear_problem, dear) == ()


def test_what_fits_alone_but_not_side_by_side_moves_a_bucket() -> None:
    problem = small_problem(256, 1024)
    model = problem.model.model_copy(update={"hidden_size": 1024, "intermediate_size": 8192})
    workload = problem.workload.model_copy(update={"decode_batch": 32})
    problem = replace(problem, model=model, workload=workload)
    own = [plan_pair(problem, bucket).option for bucket in problem.workload.buckets]

    def needed(some: list[Option]) -> int:
        return max(row.capacity_bytes - row.headroom_bytes for row in residents(problem, some))

    alone, together = max(needed([one]) for one in own), needed(own)
    assert alone < together
    gpu = problem.cluster.gpus[0].model_copy(update={"memory_bytes": (alone + together) // 2})
    tight = replace(problem, cluster=problem.cluster.model_copy(update={"gpus": (gpu,)}))
    allocation = make_problem(tight)
    assert allocation.switching is not None
    assert allocation.switching.moved
    assert min(row.headroom_bytes for row in allocation.switching.residents) >= 0
    assert faults(tight, allocation) == ()


def test_a_policy_that_fits_nowhere_names_the_bytes_it_lacks() -> None:
    problem = small_problem(256, 1024)
    gpu = problem.cluster.gpus[0].model_copy(update={"memory_bytes": 10**9})
    with pytest.raises(InfeasibleError, match=r"lacks \d+ bytes"):
        make_problem(replace(problem, cluster=problem.cluster.model_copy(update={"gpus": (gpu,)})))
