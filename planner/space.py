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

from planner.candidate import COLUMNS, MODES, ROW, RULES, Scheme, Table, name_of, num_gpus, pool_gpus, row
from planner.dealing import dealings
from planner.placing import attending_ranks, placement_of
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
KV_STREAMS = (1, 4)  # pieces of keys, so that their transfer hides behind attention
MICRO_BATCHES = (1, 2, 4)
FINE_POOL_RANKS = 64  # every pool size up to here; beyond, whole nodes


def enumerate_space(question: Question) -> Table:
    """All candidates for a question, in a fixed order."""
    rows = [row for order in range(len(question.orders)) for row in _rows(question, order)]
    table = np.array(list(dict.fromkeys(rows)), dtype=ROW)
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


def _rows(question: Question, order: int) -> Iterator[tuple[int, ...]]:
    yield from _static(question, order)
    yield from _context(question, order)
    if question.max_gpus > 1:
        yield from _pools(question, order, joined=False)
        yield from _pools(question, order, joined=True)
        if any(layer.routed for layer in question.model.layers):
            yield from _separated(question, order)
        yield from _two_level(question, order)


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
            if question.phase == "decode" and replicas > question.batch:
                break
            if routed and not _dispatches(question, replicas):
                continue
            for rule, micro, streams in _cuts(question, replicas, 1):
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


def _cuts(question: Question, queries: int, keys: int) -> Iterator[tuple[int, int, int]]:
    """(block rule, micro-batches, key streams); the rule matters where queries are cut, streams where keys travel."""
    prefill = question.phase == "prefill"
    matters = prefill and queries > 1 and question.model.causal
    for rule in range(len(RULES)) if matters else (2,):
        for micro in micro_batch_counts(question):
            for streams in KV_STREAMS if prefill and keys == 1 else (1,):
                yield rule, micro, streams


def _pools(question: Question, order: int, *, joined: bool) -> Iterator[tuple[int, ...]]:
    scheme = Scheme.JOINED if joined else Scheme.POOL
    bases = tensor_degrees(question) if question.base_gpus is None else (question.base_gpus,)
    for base in bases:
        if base > question.model.num_attention_heads:
            continue
        for pool in pool_sizes(question, base):
            for heads, queries, keys in grids(question, pool + base if joined else pool):
                for rule, micro, streams in _cuts(question, queries, keys):
                    for multicast in _multicasts(question, queries * keys):
                        yield row(
                            scheme, order=order, tensor=base, heads=heads, queries=queries, keys=keys,
                            rule=rule, micro_batches=micro, multicast=multicast, streams=streams,
                        )  # fmt: skip


def is_allotment(question: Question, gpus: int) -> bool:
    """Whole nodes, or an even part of one: what schedulers hand out. ``fine``: any number."""
    node = question.node_gpus
    return question.fine or gpus % node == 0 or (gpus < node and node % gpus == 0)


def pool_sizes(question: Question, base: int) -> tuple[int, ...]:
    """Pool GPUs beside a base."""
    most = question.max_gpus - base
    fine = range(1, min(most, FINE_POOL_RANKS) + 1)
    sizes = (*fine, *range(FINE_POOL_RANKS + question.node_gpus, most + 1, question.node_gpus))
    return tuple(size for size in sizes if is_allotment(question, size))


def grids(question: Question, ranks: int) -> Iterator[tuple[int, int, int]]:
    """(head groups, query blocks, KV blocks) whose product is ``ranks``."""
    windowed = any(layer.window for layer in question.model.layers)
    for heads in range(1, min(ranks, question.model.num_attention_heads) + 1):
        if ranks % heads or (question.model.num_attention_heads % heads and not question.fine):
            continue
        for queries in range(1, ranks // heads + 1):
            if (ranks // heads) % queries or (question.phase == "decode" and queries > question.batch):
                continue
            keys = ranks // heads // queries
            if not (windowed and keys > 1) and queries <= question.tokens and keys <= question.tokens:
                yield heads, queries, keys


def _multicasts(question: Question, receivers: int) -> tuple[int, ...]:
    """Tree and chain differ from direct where several ranks want the same heads' keys, on other nodes."""
    if question.phase == "decode" or receivers == 1 or question.max_gpus <= question.node_gpus:
        return (0,)
    return (0, 1, 2)


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
