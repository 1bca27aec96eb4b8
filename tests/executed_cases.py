"""Every scheme at every world size from one to eight, with the placement kinds that exist there: what the executor is
held to the reference on.

One dense model covers grouped heads (two KV heads for eight query heads, so that uneven head groups split a KV head's),
a sliding window on one layer and none on the other; one routed model has shared experts and drops tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.model import Experts, Model
from simulator.placement import AttentionGrid, Placement
from simulator.workload import Sequences
from tests.schemes import context_parallel, joined, pooled, separated, static, tiny_model, two_level

NODES = (0, 0, 1, 1, 2, 2, 3, 3)
"""Two ranks a node: what goes hierarchically or down a tree has levels to go by."""
RAGGED = (Sequences(3, 0, 9), Sequences(2, 0, 18), Sequences(4, 0, 5))
DENSE = tiny_model(kv_heads=2)
SLIDING = tiny_model(kv_heads=2, windows=(8, 0))


def routed(num_experts: int = 8, *, capacity_factor: float | None = 1.0) -> Model:
    return tiny_model(
        experts=Experts(
            num_experts=num_experts,
            top_k=2,
            intermediate_size=24,
            shared_intermediate_size=16,
            capacity_factor=capacity_factor,
        )
    )


@dataclass(frozen=True, slots=True)
class Case:
    """Prefill by one placement and decode by it or another (None: the same); ``decodes``: whether it can."""

    scheme: str
    model: Model
    prefill: Placement
    decode: Placement | None = None
    decodes: bool = True


def grid(*heads: int, q: int = 1, kv: int = 1) -> AttentionGrid:
    return AttentionGrid(heads=heads, query_blocks=q, kv_blocks=kv)


def cases(world: int) -> list[Case]:
    """Every scheme on exactly ``world`` ranks."""
    return [*_static(world), *_context_parallel(world), *_pools(world), *_separated(world), *_two_level(world)]


def _static(world: int) -> Iterator[Case]:
    yield Case("static", SLIDING, static(SLIDING, world, micro_batches=2))
    for capacity_factor in (1.0, None):
        model = routed(capacity_factor=capacity_factor)
        yield Case("static", model, static(model, world))
    if world % 2 == 0:
        yield Case("static", SLIDING, static(SLIDING, world // 2, 2, micro_batches=3))
        yield Case("static", routed(), static(routed(), world // 2, 2, micro_batches=2))


def _context_parallel(world: int) -> Iterator[Case]:
    if world == 1:
        return
    model = routed(2 * world)
    yield Case("all-gather", SLIDING, context_parallel(SLIDING, 1, world, block_rule="zigzag"))
    yield Case("all-gather", model, context_parallel(model, 1, world, block_rule="sqrt"), static(model, world))
    yield Case("ring", DENSE, context_parallel(DENSE, 1, world, kv_ring=True, block_rule="zigzag"))
    if world in (4, 6, 8):
        split = context_parallel(SLIDING, 2, world // 2, kv_streams=2, micro_batches=2)
        yield Case("all-gather", SLIDING, split)
        yield Case("ring", DENSE, context_parallel(DENSE, world // 2, 2, kv_ring=True, micro_batches=2))


def _pools(world: int) -> Iterator[Case]:
    if world == 1:
        return
    base = 2 if world >= 4 else 1
    pool = world - base
    prefill = pooled(DENSE, base, grid(8, q=pool), micro_batches=2, kv_multicast="tree")
    yield Case("pool", DENSE, prefill, pooled(DENSE, base, grid(8, kv=pool), micro_batches=2))
    chain = pooled(SLIDING, 1, grid(8, q=world - 1), kv_multicast="chain", transfer_chunks=2, block_rule="contiguous")
    yield Case("pool", SLIDING, chain, static(SLIDING, 1))
    yield Case("pool", routed(), pooled(routed(), base, grid(8, q=pool), block_rule="zigzag", kv_streams=2))
    whole = joined(DENSE, base, grid(8, q=world), block_rule="zigzag")
    yield Case("joined", DENSE, whole, joined(DENSE, base, grid(8, kv=world)))
    if pool % 2 == 0:
        by_heads = pooled(DENSE, base, grid(3, 5, q=pool // 2))
        yield Case("hybrid", DENSE, by_heads, pooled(DENSE, base, grid(4, 4, kv=pool // 2)))
        yield Case("hybrid", DENSE, pooled(DENSE, base, grid(8, q=2, kv=pool // 2), micro_batches=2))


def _separated(world: int) -> Iterator[Case]:
    if world == 1:
        return
    few, many = world // 2, world - world // 2
    model = routed(max(4, 2 * few))
    yield Case("MA all-to-all", model, separated(model, many, few, micro_batches=2), separated(model, many, few))
    if many > few:
        model = routed(2 * many)
        yield Case("MA all-to-all", model, separated(model, few, many))
    two_nodes = 4 if world in (6, 8) else few
    model, way = routed(), "all_reduce_broadcast"
    summed = separated(model, world - two_nodes, two_nodes, exit=way, all_reduce="hierarchical")
    yield Case("MA all-reduce", model, summed)
    model = routed(capacity_factor=None)
    yield Case("MA all-reduce", model, separated(model, many, few, exit=way, micro_batches=2))


def _two_level(world: int) -> Iterator[Case]:
    for slices in (2, 4, 8):
        if world % slices:
            continue
        groups = world // slices
        yield Case("score_sum", SLIDING, two_level(SLIDING, groups, slices, dim_mode="score_sum", micro_batches=2))
        gathered = two_level(SLIDING, groups, slices, dim_mode="gather_qk", all_reduce="hierarchical")
        yield Case("gather_qk", SLIDING, gathered, decodes=False)
        if 8 % groups == 0 and 8 // groups % slices == 0:
            yield Case("all_to_all", SLIDING, two_level(SLIDING, groups, slices, dim_mode="all_to_all"))
        yield Case("per_slice", SLIDING, two_level(SLIDING, groups, slices, dim_mode="per_slice"))
