"""Counts: what sizes of groups, micro-batches and pieces candidates are made of."""

from __future__ import annotations

from collections.abc import Iterator

from planner.candidate import RULES
from planner.question import Question

KV_STREAMS = (1, 4)  # pieces of keys, so that their transfer hides behind attention
MICRO_BATCHES = (1, 2, 4)


def tensor_degrees(question: Question) -> tuple[int, ...]:
    """Divisors of a node's GPUs, then whole nodes; no more than heads (or experts that a rank must hold)."""
    model, node = question.model, question.node_gpus
    most = min(question.max_gpus, model.num_attention_heads)
    if model.experts is not None and any(layer.routed for layer in model.layers):
        most = min(most, model.experts.num_experts)
    inside = [size for size in range(1, min(node, most) + 1) if node % size == 0]
    return (*inside, *range(2 * node, most + 1, node))


def micro_batch_counts(question: Question) -> tuple[int, ...]:
    return tuple(count for count in MICRO_BATCHES if count <= question.batch)


def is_allotment(question: Question, gpus: int) -> bool:
    """Whole nodes, or an even part of one: what schedulers hand out. ``fine``: any number."""
    node = question.node_gpus
    return question.fine or gpus % node == 0 or (gpus < node and node % gpus == 0)


def cuts(question: Question, queries: int, keys: int) -> Iterator[tuple[int, int, int]]:
    """(block rule, micro-batches, key streams); the rule matters where queries are cut, streams where keys travel."""
    prefill = question.phase == "prefill"
    matters = prefill and queries > 1 and question.model.causal
    for rule in range(len(RULES)) if matters else (2,):
        for micro in micro_batch_counts(question):
            for streams in KV_STREAMS if prefill and keys == 1 else (1,):
                yield rule, micro, streams
