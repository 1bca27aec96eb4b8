"""Heads over GPUs: the documents' rule, GPUs that bring nothing, unequal GPUs and links, KV groups."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from planner.heads import HeadPlan, Worker, distribute, finish_s, useful_gpus
from simulator.errors import InfeasibleError


def test_documents_rule_gives_eight_gpus_three_heads_and_four_two() -> None:
    plan = distribute(32, [Worker(1.0)] * 12)
    assert plan.rule == (3,) * 8 + (2,) * 4  # 32 = 8·3 + 4·2
    assert plan.rule_finish_s == 3.0


def test_twelfth_gpu_brings_nothing() -> None:
    plan = distribute(32, [Worker(1.0)] * 12)
    assert plan.finish_s == distribute(32, [Worker(1.0)] * 11).finish_s == 3.0
    assert plan.idle == (11,)
    assert useful_gpus(32, 12) == useful_gpus(32, 11) == 11  # ceil(32/3)


def test_a_gpu_twice_as_fast_gets_twice_the_heads() -> None:
    plan = distribute(9, [Worker(1.0), Worker(0.5)])
    assert plan.heads == (3, 6)  # 3·1.0 = 6·0.5 = 3 s; even split (5, 4) needs 5 s
    assert plan.rule_finish_s == 5.0


def test_slow_link_counts_as_slow_compute() -> None:
    plan = distribute(8, [Worker(1.0), Worker(1.0, link_s=1.0)])
    assert plan.heads == (5, 3) or plan.finish_s == 6.0
    assert plan.finish_s == min(max(h, 2 * (8 - h)) for h in range(9))


def test_fixed_cost_keeps_a_far_gpu_out() -> None:
    assert distribute(4, [Worker(1.0), Worker(1.0, fixed_s=10.0)]).heads == (4, 0)


def test_kv_groups_stay_whole() -> None:
    plan = distribute(32, [Worker(1.0)] * 3, group_size=8)
    assert plan.heads == (16, 16, 0)  # somebody has two of the four groups either way, so the third GPU brings nothing
    with pytest.raises(InfeasibleError, match="whole groups"):
        distribute(30, [Worker(1.0)] * 3, group_size=8)
    with pytest.raises(InfeasibleError, match="0 GPUs"):
        distribute(30, [])


def test_integer_program_equals_brute_force_on_random_gpus() -> None:
    random = np.random.default_rng(5)
    for _ in range(30):
        gpus, heads = int(random.integers(1, 5)), int(random.integers(1, 9))
        workers = [Worker(*(float(x) for x in random.integers(1, 6, size=3) * (1.0, 0.5, 0.25))) for _ in range(gpus)]
        best = min(finish_s(sizes, workers) for sizes in product(range(heads + 1), repeat=gpus) if sum(sizes) == heads)
        plan = distribute(heads, workers)
        assert isinstance(plan, HeadPlan)
        assert sum(plan.heads) == heads
        assert plan.finish_s == pytest.approx(best, rel=1e-9)
