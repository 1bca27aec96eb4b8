"""Causal balance: the work that the blocks of a cut sequence really get, counted where the kernels are called."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

from executor import attention
from simulator.placement import AttentionGrid, Placement
from simulator.workload import Sequences
from tests.executor_world import generation_of, replayed
from tests.schemes import context_parallel, pooled, tiny_model

MODEL = tiny_model(heads=2, kv_heads=1, layers=1)
GRID = AttentionGrid(heads=(2,), query_blocks=4)
BATCH = (Sequences(1, 0, 2048), Sequences(1, 0, 1500))


def executed_pairs(placement: Placement, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """(query, key) pairs that each attending rank's backend calls computed, of the shapes they were called with."""
    pairs: defaultdict[int, int] = defaultdict(int)
    running: list[int] = []
    attend, original = attention.attend, attention.attention

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> Any:
        queries, keys, heads = q.shape[1], k.shape[1], q.shape[2]
        pairs[running[-1]] += heads * (queries * (queries + 1) // 2 if how["causal"] else queries * keys)
        return attend(q, k, v, **how)

    def attention_of_rank(operation: Any, q: torch.Tensor, kv: Any, backend: Any) -> Any:
        running.append(id(operation))
        return original(operation, q, kv, backend)

    monkeypatch.setattr(attention, "attend", counted)
    monkeypatch.setattr(attention, "attention", attention_of_rank)
    generation = generation_of(MODEL, placement, batch=BATCH, num_decoded=0, world=8)
    replayed(generation)
    owner = {id(op): rank for rank, operations in enumerate(generation.programs[0].ranks) for op in operations}
    by_rank: defaultdict[int, int] = defaultdict(int)
    for operation, count in pairs.items():
        by_rank[owner[operation]] += count
    return list(by_rank.values())


@pytest.mark.parametrize("rule", ["sqrt", "zigzag"])
@pytest.mark.parametrize("kind", ["pool", "context", "ring"])
def test_balanced_rules_share_executed_work_to_three_percent(
    kind: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = {
        "pool": lambda: pooled(MODEL, 2, GRID, block_rule=rule),
        "context": lambda: context_parallel(MODEL, 1, 4, block_rule=rule),
        "ring": lambda: context_parallel(MODEL, 1, 4, block_rule=rule, kv_ring=True),
    }[kind]()
    work = executed_pairs(placement, monkeypatch)
    assert len(work) == 4
    # every pair once: 2 heads · Σ n(n + 1)/2
    assert sum(work) == 2 * sum(n * (n + 1) // 2 for n in (2048, 1500))
    assert max(work) / (sum(work) / 4) <= 1.03


def test_the_documents_contiguous_blocks_are_out_of_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    work = executed_pairs(pooled(MODEL, 2, GRID, block_rule="contiguous"), monkeypatch)
    # block i of 4 has (2i + 1)/16 of the pairs: the last 7/4 of the mean
    assert max(work) / (sum(work) / 4) == pytest.approx(7 / 4, rel=0.01)
