"""Rivals: the documents' own configurations, as candidates that are always shown.

The fixed rule: 0, 8, 16, 24 or 32 pool GPUs by prompt length (4096, 8192, 16384, 32768), blocks of ceil(n/p) queries
with all keys copied to every pool GPU. One query cannot be cut, so in decode the same pool splits the keys.
The baselines: TP8 alone (the base without a pool), TP8×PP2 on 16 GPUs, TP16×PP2 and TP8×PP4 on 32.
"""

from __future__ import annotations

import numpy as np

from planner.space import COLUMNS, ROW, Question, Scheme, Table, placement_of, row
from simulator.placement import Placement

RULE = ((4096, 0), (8192, 8), (16384, 16), (32768, 24))  # (below this many tokens, pool GPUs); beyond: 32
RULE_MOST = 32
BASELINES = ((8, 1), (8, 2), (16, 2), (8, 4))  # (tensor, pipeline)


def rule_pool(tokens: int) -> int:
    """Pool GPUs of the documents' allocate_gpus(sequence_length)."""
    return next((pool for below, pool in RULE if tokens < below), RULE_MOST)


def rule_placement(question: Question) -> Placement | str:
    """The documents' fixed rule for a question; a pool the cluster lacks GPUs for is a refusal."""
    base = question.base_gpus or min(8, question.max_gpus)
    pool = rule_pool(question.tokens)
    name = f"rule-base{base}-pool{pool}"
    if base + pool > question.max_gpus:
        return f"{name}: needs {base + pool} GPUs; {question.max_gpus} are allowed"
    if base > question.model.num_attention_heads:
        return f"{name}: {base} tensor shards of {question.model.num_attention_heads} heads"
    return placement_of(question, rule_row(question)[0]).model_copy(update={"name": name})


def baselines(question: Question) -> tuple[Placement | str, ...]:
    """The base alone, and the documents' static strategies."""
    base = question.base_gpus or min(8, question.max_gpus)
    found: list[Placement | str] = []
    for tensor, stages in ((base, 1), *BASELINES[1:]):
        name = f"tp{tensor}-pp{stages}"
        if tensor * stages > question.max_gpus:
            found.append(f"{name}: needs {tensor * stages} GPUs; {question.max_gpus} are allowed")
        elif stages > question.model.num_layers or tensor > question.model.num_attention_heads:
            found.append(f"{name}: the model has {question.model.num_layers} layers and too few heads or layers")
        else:
            found.append(_placement(question, name, Scheme.STATIC, tensor=tensor, heads=tensor, stages=stages))
    return tuple(found)


def rule_row(question: Question) -> Table:
    """The rule's candidate, for its bound."""
    base, pool = question.base_gpus or min(8, question.max_gpus), rule_pool(question.tokens)
    if not pool:
        return np.array([row(Scheme.STATIC, tensor=base, heads=base)], dtype=ROW)
    cut = {"queries": pool, "rule": 0} if question.phase == "prefill" else {"keys": pool}
    return np.array([row(Scheme.POOL, tensor=base, heads=1, **cut)], dtype=ROW)


def _placement(question: Question, name: str, scheme: Scheme, **columns: int) -> Placement:
    assert set(columns) <= set(COLUMNS)
    candidate = np.array([row(scheme, **columns)], dtype=ROW)[0]
    return placement_of(question, candidate).model_copy(update={"name": name})
