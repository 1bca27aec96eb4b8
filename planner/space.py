"""Space: every placement of the lattice for one question, as columns of a numpy table (a row is a candidate).

    static      tensor t × pipeline s, micro-batches filled or not
    context     tensor t × token replicas c (query blocks in prefill, whole sequences in decode)
    pool        base of t ranks, pool grid heads a × query blocks b × KV blocks c on other ranks
    joined      as pool, and the base attends too: a·b·c = base + pool
    separated   MA Separation of routed models: a attention ranks, f expert ranks, two exits

Symmetric duplicates are never made: equal nodes are interchangeable, so ranks are taken in node order (with unlike
nodes: once for every order of the kinds of node), and settings that change nothing (a block rule without query blocks,
a multicast without receivers on other nodes) keep their default. What it leaves out: dim slices (not lowered),
heads dealt unevenly over equal GPUs, all-reduce algorithms other than ``auto`` (which is the fastest of them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from planner.question import Question
from simulator.placement import AttentionGrid, BlockRule, Multicast, Placement, Stage, even_split

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

RULES: tuple[BlockRule, ...] = ("contiguous", "zigzag", "sqrt")
MULTICASTS: tuple[Multicast, ...] = ("direct", "tree", "chain")
CHAIN_CHUNKS = 4  # pieces of a pipelined chain; more only adds messages at our sizes
KV_STREAMS = (1, 4)  # pieces of keys, so that their transfer hides behind attention
MICRO_BATCHES = (1, 2, 4)
FINE_POOL_RANKS = 64  # every pool size up to here; beyond, whole nodes


class Scheme(IntEnum):
    """Families of the lattice."""

    STATIC = 0
    CONTEXT = 1
    POOL = 2
    JOINED = 3
    SEPARATED = 4


COLUMNS = (
    "scheme", "order", "tensor", "stages", "replicas", "heads", "queries", "keys", "experts", "micro_batches",
    "rule", "multicast", "exit", "streams",
)  # fmt: skip
ROW = np.dtype([(name, np.int32) for name in COLUMNS])
Table = npt.NDArray[np.void]


def enumerate_space(question: Question) -> Table:
    """All candidates for a question, in a fixed order."""
    rows = [row for order in range(len(question.orders)) for row in _rows(question, order)]
    return np.array(list(dict.fromkeys(rows)), dtype=ROW)


def _rows(question: Question, order: int) -> Iterator[tuple[int, ...]]:
    yield from _static(question, order)
    yield from _context(question, order)
    if question.max_gpus > 1:
        yield from _pools(question, order, joined=False)
        yield from _pools(question, order, joined=True)
        if any(layer.routed for layer in question.model.layers):
            yield from _separated(question, order)


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


def row(scheme: Scheme, **columns: int) -> tuple[int, ...]:
    """A candidate's columns, defaults where nothing is given."""
    defaults = dict.fromkeys(COLUMNS, 1) | {"order": 0, "experts": 0, "rule": 2, "multicast": 0, "exit": 0}
    return tuple((defaults | {"scheme": int(scheme)} | columns).values())


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
            for rule, micro, streams in _cuts(question, replicas, 1):
                yield row(
                    Scheme.CONTEXT, order=order, tensor=tensor, heads=tensor, replicas=replicas, queries=replicas,
                    rule=rule, micro_batches=micro, streams=streams,
                )  # fmt: skip


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
                    dealt = exit_mode == 0 and ranks > 1
                    if dealt and (experts.capacity_factor is None or experts.num_experts % ranks):
                        continue
                    yield row(
                        Scheme.SEPARATED, order=order, heads=attention, experts=ranks, exit=exit_mode,
                        tensor=ranks if exit_mode else 1, replicas=1 if exit_mode else ranks, micro_batches=micro,
                    )  # fmt: skip


def num_gpus(table: Table) -> npt.NDArray[np.int64]:
    """GPUs of every candidate."""
    static = table["tensor"] * table["stages"] * table["replicas"]
    grid = table["heads"] * table["queries"] * table["keys"]
    counts = [static, static, table["tensor"] + grid, grid, table["heads"] + table["experts"]]
    return np.asarray(np.choose(table["scheme"], counts), dtype=np.int64)


def pool_gpus(table: Table) -> npt.NDArray[np.int64]:
    """GPUs of every candidate that only attend, in the two pool families."""
    pooled = (table["scheme"] == Scheme.POOL) | (table["scheme"] == Scheme.JOINED)
    return np.asarray(np.where(pooled, num_gpus(table) - table["tensor"], 0), dtype=np.int64)


def placement_of(question: Question, candidate: np.void) -> Placement:
    """A candidate as a placement."""
    return Placement(
        name=name_of(candidate),
        stages=_stages(question, candidate),
        block_rule=RULES[candidate["rule"]],
        micro_batches=int(candidate["micro_batches"]),
        kv_multicast=MULTICASTS[candidate["multicast"]],
        transfer_chunks=CHAIN_CHUNKS if candidate["multicast"] == 2 else 1,
        kv_streams=int(candidate["streams"]),
        exit="all_reduce_broadcast" if candidate["exit"] else "all_to_all",
    )


def name_of(candidate: np.void) -> str:
    """``tp8-cp5-zigzag-mb2`` and the like."""
    c = {name: int(candidate[name]) for name in COLUMNS}
    grid = f"h{c['heads']}q{c['queries']}k{c['keys']}"
    match Scheme(c["scheme"]):
        case Scheme.STATIC:
            name = f"tp{c['tensor']}-pp{c['stages']}"
        case Scheme.CONTEXT:
            name = f"tp{c['tensor']}-cp{c['replicas']}"
        case Scheme.POOL:
            name = f"base{c['tensor']}-pool{c['heads'] * c['queries'] * c['keys']}-{grid}"
        case Scheme.JOINED:
            name = f"base{c['tensor']}+pool{c['heads'] * c['queries'] * c['keys'] - c['tensor']}-{grid}"
        case Scheme.SEPARATED:
            name = f"ma{c['heads']}-{c['experts']}" + ("-all_reduce" if c["exit"] else "")
    if c["queries"] > 1:
        name += f"-{RULES[c['rule']]}"
    if c["multicast"]:
        name += f"-{MULTICASTS[c['multicast']]}"
    name += f"-s{c['streams']}" * (c["streams"] > 1)
    return name + (f"-mb{c['micro_batches']}" if c["micro_batches"] > 1 else "") + f"-o{c['order']}" * (c["order"] > 0)


def _stages(question: Question, candidate: np.void) -> tuple[Stage, ...]:
    model, order = question.model, question.orders[candidate["order"]]
    tensor, stages = int(candidate["tensor"]), int(candidate["stages"])
    layers, heads = model.num_layers, even_split(model.num_attention_heads, int(candidate["heads"]))
    match Scheme(int(candidate["scheme"])):
        case Scheme.STATIC:
            sizes = even_split(layers, stages)
            return tuple(
                _stage((sum(sizes[:i]), sum(sizes[: i + 1])), order[i * tensor : (i + 1) * tensor], heads=heads)
                for i in range(stages)
            )
        case Scheme.CONTEXT:
            replicas = int(candidate["replicas"])
            by_head = tuple(order[replica * tensor + shard] for shard in range(tensor) for replica in range(replicas))
            grid = AttentionGrid(heads=heads, query_blocks=replicas)
            return (_grid_stage(layers, by_head, grid, order[: tensor * replicas], tensor),)
        case Scheme.POOL | Scheme.JOINED:
            grid = AttentionGrid(heads=heads, query_blocks=int(candidate["queries"]), kv_blocks=int(candidate["keys"]))
            first = tensor if candidate["scheme"] == Scheme.POOL else 0
            ranks = _rail_aligned(order[first : first + grid.num_ranks], len(heads))
            return (_grid_stage(layers, ranks, grid, order[:tensor], tensor),)
        case _:
            attention, experts = int(candidate["heads"]), int(candidate["experts"])
            stage = _grid_stage(
                layers, order[:attention], AttentionGrid(heads=heads), order[attention : attention + experts], tensor
            )
            return (stage.model_copy(update={"projections": "attention"}),)


def _rail_aligned(ranks: Sequence[int], heads: int) -> tuple[int, ...]:
    """Head group i on every heads-th rank: with a head group a NIC, keys travel along one rail."""
    return tuple(rank for group in range(heads) for rank in ranks[group::heads])


def _stage(layers: tuple[int, int], ranks: tuple[int, ...], *, heads: tuple[int, ...]) -> Stage:
    return Stage(
        first_layer=layers[0],
        last_layer=layers[1],
        attention_ranks=ranks,
        grid=AttentionGrid(heads=heads),
        feed_forward_ranks=ranks,
        tensor_degree=len(ranks),
    )


def _grid_stage(
    layers: int, attention: tuple[int, ...], grid: AttentionGrid, feed_forward: tuple[int, ...], tensor: int
) -> Stage:
    return Stage(
        first_layer=0,
        last_layer=layers,
        attention_ranks=attention,
        grid=grid,
        feed_forward_ranks=feed_forward,
        tensor_degree=tensor,
    )
