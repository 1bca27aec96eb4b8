"""Space: every placement of the lattice for one question, as columns of a numpy table (a row is a candidate).

    static      tensor t × pipeline s, micro-batches filled or not
    context     tensor t × token replicas c (query blocks in prefill, whole sequences in decode), keys gathered or
                passed round a ring
    pool        base of t ranks, pool grid heads a × query blocks b × KV blocks c on other ranks
    joined      as pool, and the base attends too: a·b·c = base + pool
    separated   MA Separation of routed models: a attention ranks, f expert ranks, two exits
    two-level   head groups a × dimension slices m on the same ranks, in its exact forms (and the documents' own, which
                is another model, where the exactness budget allows that)

Symmetric duplicates are never made: equal nodes are interchangeable, so ranks are taken in node order (with unlike
nodes: once for every order of the kinds of node), and settings that change nothing (a block rule without query blocks,
a multicast without receivers on other nodes) keep their default. Where head groups lie on unlike GPUs or links, the
integer program's dealing of heads is a candidate beside the even one. What it leaves out: heads dealt unevenly over
equal GPUs, all-reduce algorithms other than ``auto`` (which is the fastest of them), gather_qk in decode (its cache
would need all of K).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.candidate import COLUMNS, MODES, ROW, Scheme, Table, name_of, num_gpus, pool_gpus, row
from planner.counts import cuts, is_allotment, micro_batch_counts, tensor_degrees
from planner.dealing import dealings
from planner.placing import attending_ranks, placement_of
from planner.pooled import pooled
from planner.question import Question
from simulator.placement import even_split

__all__ = [
    "COLUMNS",
    "ROW",
    "Question",
    "Scheme",
    "Table",
    "enumerate_space",
    "micro_batch_counts",
    "name_of",
    "num_gpus",
    "placement_of",
    "pool_gpus",
    "row",
]

SLICES = (2, 4, 8, 16)  # of a head


def enumerate_space(question: Question, *, pools: bool = True) -> Table:
    """All candidates for a question, in a fixed order; ``pools`` False: but for the pools of equal GPUs
    (``boxes.py``)."""
    table = np.concatenate([part for order in range(len(question.orders)) for part in _parts(question, order, pools)])
    return np.concatenate((table, _dealt(question, table))) if question.mixed else table


def _dealt(question: Question, table: Table) -> Table:
    """The candidates whose head groups lie on unlike GPUs or links once more, with heads dealt by integer program."""
    fits = np.isin(table["scheme"], (Scheme.POOL, Scheme.JOINED, Scheme.SEPARATED))
    fits |= (question.model.intermediate_size % table["tensor"] == 0) & (table["scheme"] != Scheme.TWO_LEVEL)
    found = []
    for candidate in table[fits & (table["heads"] > 1)]:
        for dealing in dealings(question, candidate, attending_ranks(question, candidate)):
            twin = candidate.copy()
            twin["dealing"] = dealing
            found.append(twin)
    return np.array(found, dtype=ROW)


def _parts(question: Question, order: int, pools: bool) -> Iterator[Table]:
    """Family by family, in a fixed order; pools, of which there may be a million, as columns."""
    several = question.max_gpus > 1
    yield np.array([*_static(question, order), *_context(question, order)], dtype=ROW)
    if several and pools:
        yield pooled(question, order, joined=False)
        yield pooled(question, order, joined=True)
    if several:
        if any(layer.routed for layer in question.model.layers):
            yield np.array([*_separated(question, order)], dtype=ROW)
        yield np.array([*_two_level(question, order)], dtype=ROW)


def _static(question: Question, order: int) -> Iterator[tuple[int, ...]]:
    for tensor in tensor_degrees(question):
        for stages in range(1, min(question.model.num_layers, question.max_gpus // tensor) + 1):
            for micro in micro_batch_counts(question):
                yield row(Scheme.STATIC, order=order, tensor=tensor, heads=tensor, stages=stages, micro_batches=micro)


def _context(question: Question, order: int) -> Iterator[tuple[int, ...]]:
    routed = any(layer.routed for layer in question.model.layers)
    for tensor in tensor_degrees(question) if not routed else (1,):
        for replicas in range(2, question.max_gpus // tensor + 1):
            if not is_allotment(question, tensor * replicas):
                continue
            if replicas > (question.batch if question.phase == "decode" else question.tokens):
                break
            if routed and not _dispatches(question, replicas):
                continue
            for rule, micro, streams in cuts(question, replicas, 1):
                if routed and not _every_rank_has_tokens(question, replicas, micro):
                    continue
                for ring in (0, 1) if question.phase == "prefill" and streams == 1 else (0,):
                    yield row(
                        Scheme.CONTEXT, order=order, tensor=tensor, heads=tensor, replicas=replicas, queries=replicas,
                        rule=rule, micro_batches=micro, streams=streams, ring=ring,
                    )  # fmt: skip


def _dispatches(question: Question, replicas: int) -> bool:
    """Tokens spread over replicas reach experts by capacity slots, as many experts on every replica."""
    experts = question.model.experts
    return experts is not None and experts.capacity_factor is not None and experts.num_experts % replicas == 0


def _every_rank_has_tokens(question: Question, replicas: int, micro: int) -> bool:
    """In every micro-batch: decode deals whole sequences, prefill cuts each."""
    return replicas * micro <= question.batch if question.phase == "decode" else replicas <= question.tokens


def _separated(question: Question, order: int) -> Iterator[tuple[int, ...]]:
    """a attention and f expert ranks; exits: M:N all-to-all (tokens dealt over experts) or as the document has it."""
    experts = question.model.experts
    assert experts is not None
    for attention in range(1, min(question.model.num_attention_heads, question.max_gpus - 1) + 1):
        for ranks in range(1, min(experts.num_experts, question.max_gpus - attention) + 1):
            for micro in micro_batch_counts(question):
                for exit_mode in (0, 1):
                    if exit_mode and ranks > question.model.num_attention_heads:
                        continue
                    dealt = exit_mode == 0 and ranks > 1
                    if dealt and not (_dispatches(question, ranks) and _every_rank_has_tokens(question, ranks, micro)):
                        continue
                    yield row(
                        Scheme.SEPARATED, order=order, heads=attention, experts=ranks, exit=exit_mode,
                        tensor=ranks if exit_mode else 1, replicas=1 if exit_mode else ranks, micro_batches=micro,
                    )  # fmt: skip


def _two_level(question: Question, order: int) -> Iterator[tuple[int, ...]]:
    """Head groups × slices on as many tensor shards; what cannot be cut so is left out (``lowering.cells``)."""
    model, heads = question.model, question.model.num_attention_heads
    if model.qk_norm:
        return
    for slices in SLICES:
        width = model.head_dim // slices
        if model.head_dim % slices or (model.rope_theta is not None and width % 2):
            continue
        for tensor in _sliced_degrees(question):
            groups = tensor // slices
            if tensor % slices or groups > heads:
                continue
            for mode, name in enumerate(MODES):
                decodes = name != "gather_qk" or question.phase == "prefill"
                whole = name != "all_to_all" or all(size % slices == 0 for size in even_split(heads, groups))
                if not decodes or not whole or (name == "per_slice" and not question.model_changing):
                    continue
                for micro in micro_batch_counts(question):
                    yield row(
                        Scheme.TWO_LEVEL, order=order, tensor=tensor, heads=groups, slices=slices, mode=mode,
                        micro_batches=micro,
                    )  # fmt: skip


def _sliced_degrees(question: Question) -> tuple[int, ...]:
    """As ``tensor_degrees``, but slices let more ranks than heads take part."""
    experts = question.model.experts
    routed = experts is not None and any(layer.routed for layer in question.model.layers)
    most = min(question.max_gpus, experts.num_experts) if routed and experts is not None else question.max_gpus
    node = question.node_gpus
    return (*(s for s in range(2, min(node, most) + 1) if node % s == 0), *range(2 * node, most + 1, node))
