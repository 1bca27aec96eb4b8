"""Dealing: the integer program's head distribution for a candidate whose head groups lie on unlike GPUs or links.

A head's seconds on a rank come from datasheet figures, as a space has no profiles: attention's and the projections'
FLOPs at the device's peak (decode: its cache's bytes at its memory rate), times its slowdown; where the head's
queries, keys and outputs travel, their bytes over the rank's NIC. The search judges what comes out by simulating it;
every head group keeps at least one head (or KV group), as a smaller candidate is there for the others.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from planner.candidate import Dealing, Scheme
from planner.heads import Worker, distribute
from planner.question import Question
from simulator.cluster import Node
from simulator.placement import even_split
from simulator.units import DTYPE_BYTES


def dealt_heads(question: Question, candidate: np.void, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Heads of every head group of ``ranks`` (in the order of the grid)."""
    unit = unit_of(question, int(candidate["dealing"]))
    workers = workers_of(question, candidate, ranks)
    return _distribute(question.model.num_attention_heads, workers, unit)


def unit_of(question: Question, dealing: int) -> int:
    """Heads that stay together."""
    return question.model.heads_per_kv_head if dealing == Dealing.KV_GROUPS else 1


@lru_cache(maxsize=4096)
def _distribute(heads: int, workers: tuple[Worker, ...], unit: int) -> tuple[int, ...]:
    if len(set(workers)) == 1 and unit == 1:
        return even_split(heads, len(workers))
    return distribute(heads, workers, group_size=unit, least=1).heads


def dealings(question: Question, candidate: np.void, stages: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The dealings beside the even one that give other heads somewhere; none where all GPUs and links are alike."""
    groups, heads = int(candidate["heads"]), question.model.num_attention_heads
    if groups == 1 or groups == heads:
        return ()
    seen = {tuple(even_split(heads, groups) for _ in stages)}
    found = []
    for dealing in (Dealing.HEADS, Dealing.KV_GROUPS):
        unit = unit_of(question, dealing)
        if groups * unit > heads or (dealing == Dealing.KV_GROUPS and unit == 1):
            continue
        every = [workers_of(question, candidate, ranks) for ranks in stages]
        if all(len(set(workers)) == 1 for workers in every):
            continue
        sizes = tuple(_distribute(heads, workers, unit) for workers in every)
        if sizes not in seen:
            seen.add(sizes)
            found.append(int(dealing))
    return tuple(found)


def workers_of(question: Question, candidate: np.void, ranks: tuple[int, ...]) -> tuple[Worker, ...]:
    """One a head group: the slowest of its ranks."""
    places, groups = question.cluster.rank_nodes(), int(candidate["heads"])
    size = len(ranks) // groups
    cut = int(candidate["queries"]), int(candidate["keys"])
    travels = candidate["scheme"] in (Scheme.POOL, Scheme.JOINED, Scheme.SEPARATED)
    home = places[question.orders[candidate["order"]][0]][0]
    found = []
    for group in range(groups):
        members = {
            _worker(question, places[rank][2], cut, remote=bool(travels and places[rank][0] != home))
            for rank in ranks[group * size : (group + 1) * size]
        }
        found.append(max(members, key=lambda worker: worker.head_s))
    return tuple(found)


def _worker(question: Question, node: Node, cut: tuple[int, int], *, remote: bool) -> Worker:
    """Seconds of one head of one layer on one of the node's GPUs. Causal prefill: half of the scores."""
    model, tokens, batch = question.model, question.tokens, question.batch
    gpu = question.cluster.gpu_named(node.gpu)
    queries, keys = cut
    size = max(DTYPE_BYTES[model.weight_dtype], 2)
    new = batch * (tokens if question.phase == "prefill" else 1) / queries
    kv_row = 2 * model.head_dim * size / model.heads_per_kv_head
    projected = 4.0 * new * model.hidden_size * model.head_dim * (1 + 1 / model.heads_per_kv_head)
    if question.phase == "prefill":
        scores = 4.0 * model.head_dim * batch * tokens * tokens / (queries * keys) / (2 if model.causal else 1)
        compute_s = (scores + projected) / gpu.compute_flop_per_s
        moved = 2 * new * model.head_dim * size + batch * tokens / keys * kv_row
    else:
        weights = 2.0 * model.hidden_size * model.head_dim * size * (1 + 1 / model.heads_per_kv_head)
        read = new * tokens / keys * kv_row + weights
        compute_s = read / gpu.memory_bandwidth_bytes_per_s
        moved = 2 * new * model.head_dim * size + new * kv_row
    share = node.nics.bandwidth_bytes_per_s * min(node.nics.count / node.gpus, 1.0) if node.nics else np.inf
    return Worker(compute_s * node.slowdown, float(moved / share) if remote else 0.0)
