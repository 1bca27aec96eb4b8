"""The documents' schemes and their rivals as placements, ranks numbered node by node.

static(t, s)          the documents' baseline is TP 8 × PP 2
fa_pool_as_written    contiguous query blocks, all heads and all of KV on every pool GPU
fa_pool               the same pool as attnplan would run it: heads × query blocks, zigzag, KV in pieces along chains
fa_pool_decode        KV partitioned over the pool: heads × KV blocks, merged by log-sum-exp
context_parallel      TP 8 × CP 4: the strongest rival on 32 GPUs
ma_separation         [3]*8 + [2]*4 heads on 12 GPUs, 16 experts on 4
two_level             4 head groups × 4 dimension slices
heads_and_blocks      its rival on as many GPUs: head groups × KV blocks, which decodes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.documents.rules import BASE_GPUS
from planner.documents.separation import distribute_heads
from simulator.model import Model
from simulator.placement import AttentionGrid, BlockRule, DimMode, Exit, Multicast, Placement, Stage, even_split

KV_PIECES = 8  # attention on a piece of KV runs while the next arrives


def static(model: Model, tensor: int = 8, stages: int = 1, *, micro_batches: int = 1) -> Placement:
    """TP × PP on ranks 0 … tensor·stages − 1."""
    built, first = [], 0
    for index, size in enumerate(even_split(model.num_layers, stages)):
        ranks = tuple(range(index * tensor, (index + 1) * tensor))
        built.append(
            Stage(
                first_layer=first,
                last_layer=first + size,
                attention_ranks=ranks,
                grid=AttentionGrid(heads=even_split(model.num_attention_heads, tensor)),
                feed_forward_ranks=ranks,
                tensor_degree=tensor,
            )
        )
        first += size
    return Placement(name=f"tp{tensor}-pp{stages}", stages=tuple(built), micro_batches=micro_batches)


def one_stage(
    model: Model,
    name: str,
    grid: AttentionGrid,
    ranks: tuple[Sequence[int], Sequence[int]],
    tensor_degree: int,
    **options: object,
) -> Placement:
    """All layers on ``ranks``: those that attend (as ``grid`` numbers them), and the feed-forward's. ``options``:
    further fields of the placement, or ``projections``."""
    attention, feed_forward = ranks
    stage = {
        "first_layer": 0,
        "last_layer": model.num_layers,
        "attention_ranks": tuple(attention),
        "grid": grid,
        "feed_forward_ranks": tuple(feed_forward),
        "tensor_degree": tensor_degree,
        "projections": options.pop("projections", "feed_forward"),
    }
    return Placement.model_validate({"name": name, "stages": (stage,), **options})


@dataclass(frozen=True, slots=True)
class Transfers:
    """How a pool cuts queries and receives them."""

    block_rule: BlockRule = "zigzag"
    kv_multicast: Multicast = "chain"
    kv_pieces: int = KV_PIECES
    micro_batches: int = 1


def _pool(model: Model, name: str, grid: AttentionGrid, transfers: Transfers) -> Placement:
    return one_stage(
        model,
        name,
        grid,
        (range(BASE_GPUS, BASE_GPUS + grid.num_ranks), range(BASE_GPUS)),
        BASE_GPUS,
        block_rule=transfers.block_rule,
        micro_batches=transfers.micro_batches,
        kv_multicast=transfers.kv_multicast,
        kv_streams=transfers.kv_pieces,
    )


def fa_pool_as_written(model: Model, pool_gpus: int) -> Placement:
    """b = ceil(n/p) query rows a GPU, full K and V sent to each one."""
    grid = AttentionGrid(heads=(model.num_attention_heads,), query_blocks=pool_gpus)
    return _pool(model, f"fa-pool-{pool_gpus}-as-written", grid, Transfers("contiguous", "direct", 1))


def fa_pool(model: Model, pool_gpus: int, *, micro_batches: int = 1) -> Placement:
    """8 head groups × p/8 zigzag query blocks (even queries, even work); KV comes in pieces, behind attention."""
    return fa_pool_grid(model, pool_gpus, Transfers(micro_batches=micro_batches))


def fa_pool_grid(model: Model, pool_gpus: int, transfers: Transfers) -> Placement:
    """8 head groups × p/8 query blocks, cut and sent as ``transfers`` say."""
    heads = even_split(model.num_attention_heads, BASE_GPUS)
    grid = AttentionGrid(heads=heads, query_blocks=pool_gpus // BASE_GPUS)
    return _pool(model, f"fa-pool-{pool_gpus}", grid, transfers)


def fa_pool_decode(model: Model, pool_gpus: int, *, head_groups: int = BASE_GPUS, micro_batches: int = 1) -> Placement:
    """Head groups × KV blocks; ``head_groups`` 1 is a pure KV split, every pool GPU with all heads."""
    heads = even_split(model.num_attention_heads, head_groups)
    grid = AttentionGrid(heads=heads, kv_blocks=pool_gpus // head_groups)
    name = f"fa-pool-decode-{pool_gpus}-{head_groups}-{micro_batches}"
    return _pool(model, name, grid, Transfers("sqrt", "direct", 1, micro_batches))


def context_parallel(
    model: Model, tensor: int = 8, replicas: int = 4, *, block_rule: BlockRule = "contiguous", ring: bool = True
) -> Placement:
    """TP inside a node, token blocks over nodes, KV passed round a ring behind attention, or gathered before it."""
    grid = AttentionGrid(heads=even_split(model.num_attention_heads, tensor), query_blocks=replicas)
    name = f"tp{tensor}-cp{replicas}-{block_rule}" + ("-ring" if ring else "")
    ranks = across(tensor, replicas), range(tensor * replicas)
    return one_stage(model, name, grid, ranks, tensor, block_rule=block_rule, kv_ring=ring)


def context_parallel_decode(model: Model, tensor: int = 8, replicas: int = 4) -> Placement:
    """Decodes what ``context_parallel`` prefilled: KV stays in token blocks where it is, feed-forward on one node."""
    grid = AttentionGrid(heads=even_split(model.num_attention_heads, tensor), kv_blocks=replicas)
    return one_stage(model, f"tp{tensor}-kv{replicas}", grid, (across(tensor, replicas), range(tensor)), tensor)


def across(tensor: int, replicas: int) -> tuple[int, ...]:
    """Ranks head group by head group; within one, a GPU of every node."""
    return tuple(replica * tensor + shard for shard in range(tensor) for replica in range(replicas))


def ma_separation(
    model: Model,
    attention_gpus: int = 12,
    moe_gpus: int = 4,
    *,
    exit: Exit = "all_reduce_broadcast",
    micro_batches: int = 1,
) -> Placement:
    """Whole heads on the first ranks, whole experts on the next; tokens are cut evenly (contiguous)."""
    return one_stage(
        model,
        f"ma-{attention_gpus}-{moe_gpus}-{exit}-{micro_batches}",
        AttentionGrid(heads=distribute_heads(model.num_attention_heads, attention_gpus)),
        (range(attention_gpus), range(attention_gpus, attention_gpus + moe_gpus)),
        moe_gpus if exit == "all_reduce_broadcast" else 1,
        projections="attention",
        exit=exit,
        micro_batches=micro_batches,
        block_rule="contiguous",
    )


def two_level(model: Model, groups: int = 4, slices: int = 4, *, dim_mode: DimMode = "all_to_all") -> Placement:
    """Head groups × dimension slices; the feed-forward is cut over all of them."""
    grid = AttentionGrid(heads=even_split(model.num_attention_heads, groups), dim_slices=slices)
    ranks = range(groups * slices)
    return one_stage(
        model, f"two-level-{groups}x{slices}-{dim_mode}", grid, (ranks, ranks), len(ranks), dim_mode=dim_mode
    )


def heads_and_blocks(model: Model, groups: int, blocks: int) -> Placement:
    """Head groups × KV blocks on the same GPUs; the feed-forward and its projections are cut over all of them."""
    grid = AttentionGrid(heads=even_split(model.num_attention_heads, groups), kv_blocks=blocks)
    ranks = range(groups * blocks)
    return one_stage(model, f"heads{groups}-kv{blocks}", grid, (ranks, ranks), len(ranks))
