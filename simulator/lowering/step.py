"""One step: micro-batches in the order of the schedule, from tokens to sampled tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from simulator import program as p
from simulator.cache_layout import CacheOwner, cache_owners
from simulator.errors import InfeasibleError
from simulator.fold import Fold
from simulator.groups import Groups, split_batch
from simulator.lowering.attention import attention
from simulator.lowering.builder import Builder, Where
from simulator.lowering.cells import check_dim_slices, slice_owners
from simulator.lowering.context import Context, Residual
from simulator.lowering.ends import embed, hand_over, head, return_tokens
from simulator.lowering.feed_forward import feed_forward
from simulator.lowering.prefix import check_prefix
from simulator.lowering.redistribution import Holding
from simulator.lowering.ring import check_ring
from simulator.model import Layer, Model
from simulator.placement import Placement, Stage
from simulator.workload import Phase, Step

Owners = dict[int, tuple[CacheOwner, ...]]
"""Layer → the ranks that keep its KV cache."""


def lower(
    model: Model,
    step: Step,
    placement: Placement,
    *,
    nodes: Sequence[int],
    dtype: str = "bf16",
    cache: Placement | None = None,
    fold: Fold | None = None,
) -> p.Program:
    """The program of ``step``. ``nodes[rank]`` is a rank's node; there are ``len(nodes)`` ranks.

    ``cache``: the placement that will decode, so that prefill leaves the KV cache where it will be read
    (None: where this placement itself would decode). ``fold``: lists for its block 0 alone (of ``folds`` of the model
    and both placements). Raises InfeasibleError where the placement does not fit, UnfoldableError where blocks differ.
    """
    decoder = placement if cache is None else cache
    for candidate in {placement.name: placement, decoder.name: decoder}.values():
        check(model, candidate, len(nodes))
    check_phase(placement, decoder, step.phase)
    check_prefix(placement, step)
    groups = split_batch(step, parts=decode_parts(decoder), micro_batches=placement.micro_batches)
    builder = Builder(len(nodes), groups.batch, dtype, fold)
    context = Context(model, placement, groups, builder, tuple(nodes), dtype, step.phase)
    owners = {
        layer: shares
        for stage in decoder.stages
        for shares in (_owners(model, decoder, stage, groups, step.phase),)
        for layer in range(stage.first_layer, stage.last_layer)
    }
    sampled: list[tuple[Holding, str]] = []
    _schedule(context, [_micro_batch(context, index, owners, sampled) for index in range(groups.micro_batches)])
    following = return_tokens(context, sampled)
    return p.Program(
        Step(step.phase, groups.batch),
        dtype,
        tuple(tuple(operations) for operations in builder.ranks),
        _caches(len(nodes), owners),
        tuple(following.get(rank, "") for rank in range(len(nodes))),
        fold=fold,
    )


def check(model: Model, placement: Placement, num_ranks: int) -> None:
    """Refuse a placement that does not fit the model or the cluster, in one line."""
    name = f"placement {placement.name}"
    last = placement.stages[-1].last_layer
    if last != model.num_layers:
        raise InfeasibleError(f"{name}: stages end at layer {last}; the model has {model.num_layers}")
    if placement.ranks[-1] >= num_ranks:
        raise InfeasibleError(f"{name}: uses rank {placement.ranks[-1]}; the cluster has {num_ranks} ranks")
    for index, stage in enumerate(placement.stages):
        place = f"{name}: stages[{index}]"
        heads = list(stage.grid.heads)
        if sum(heads) != model.num_attention_heads or min(heads) < 1:
            raise InfeasibleError(
                f"{place}.grid.heads: {heads} must be positive and sum to "
                f"num_attention_heads {model.num_attention_heads}"
            )
        if stage.grid.dim_slices > 1:
            check_dim_slices(model, placement, stage, place)
        elif stage.tensor_degree > model.num_attention_heads:
            raise InfeasibleError(
                f"{place}.tensor_degree: {stage.tensor_degree} exceeds num_attention_heads {model.num_attention_heads}"
            )

        if placement.kv_ring:
            check_ring(placement, stage, place)


def check_phase(placement: Placement, decoder: Placement, phase: Phase) -> None:
    """Dimension slices keep their cache as slices, in their own order: only the same placement decodes from it."""
    sliced = [one for one in (placement, decoder) if any(stage.grid.dim_slices > 1 for stage in one.stages)]
    if sliced and phase == "decode" and sliced[0].dim_mode == "gather_qk":
        raise InfeasibleError(
            f"placement {sliced[0].name}: dim_slices > 1 with dim_mode gather_qk only prefills; decode by score_sum, "
            "all_to_all or a placement without slices"
        )
    if sliced and placement != decoder:
        raise InfeasibleError(
            f"placement {sliced[0].name}: dim_slices > 1 keeps its KV cache in slices, which placement "
            f"{(decoder if sliced[0] == placement else placement).name} cannot share; prefill and decode by one"
        )


def decode_parts(placement: Placement) -> int:
    """Parts the sequences are dealt into when decoding: one query cannot be cut, so sequences are."""
    parts = {size for stage in placement.stages for size in (stage.grid.query_blocks, stage.token_replicas) if size > 1}
    if len(parts) > 1:
        raise InfeasibleError(
            f"placement {placement.name}: sequences cannot be dealt into {sorted(parts)} parts at once; "
            "query_blocks and token replicas must agree"
        )
    return parts.pop() if parts else 1


def _micro_batch(context: Context, index: int, owners: Owners, sampled: list[tuple[Holding, str]]) -> Iterator[str]:
    """A micro-batch from tokens to sampled tokens; yields at every pause."""
    residual = yield from embed(context, index)
    for number, stage in enumerate(context.placement.stages):
        if number:
            residual = hand_over(context, number, index, residual)
        for layer in range(stage.first_layer, stage.last_layer):
            residual = yield from _layer(context, stage, Where(layer, index), residual, owners)
        context.builder.finish(index)
    sampled.extend((yield from head(context, index, residual)))


def _layer(
    context: Context, stage: Stage, where: Where, residual: Residual, owners: Owners
) -> Generator[str, None, Residual]:
    """One layer. Folded, the first of its kind shows that all blocks do alike; the others are worked out for one."""
    fold, mine, keepers = context.builder.fold, residual, owners[where.layer]
    if fold is not None and _seen(context.model.layers, stage, where.layer, owners):
        context, mine = context.narrowed(), residual.of(fold.kept)
        keepers = tuple(owner for owner in keepers if owner.rank in fold.kept)
    middle = yield from attention(context, stage, where, mine, keepers)
    after = yield from feed_forward(context, stage, where, middle)
    return Residual(residual.names | after.names, residual.blocks) if context.narrow else after


def _seen(layers: Sequence[Layer], stage: Stage, layer: int, owners: Owners) -> bool:
    """Whether a layer before this one of the same stage is of its kind and keeps its cache on the same ranks."""
    before = range(stage.first_layer, layer)
    return any(layers[one] == layers[layer] and owners[one] is owners[layer] for one in before)


def _schedule(context: Context, micro_batches: list[Iterator[str]]) -> None:
    """Advance the micro-batches in turn: to the next attention, to the next pause, or to the end."""
    stages = context.placement.stages
    pauses = {"attention"} if any(stage.separated for stage in stages) else {"attention", "reduce"}
    if len(stages) > 1:
        pauses = set()
    while micro_batches:
        micro_batches = [batch for batch in micro_batches if any(pause in pauses for pause in batch)]


def _owners(model: Model, decoder: Placement, stage: Stage, groups: Groups, phase: Phase) -> tuple[CacheOwner, ...]:
    if stage.grid.dim_slices > 1:
        return slice_owners(model, stage, groups, phase, decoder.dim_mode)
    return cache_owners(model, stage, groups, phase)


def _caches(num_ranks: int, owners: Owners) -> tuple[tuple[p.CacheShard, ...], ...]:
    shards: list[list[p.CacheShard]] = [[] for _ in range(num_ranks)]
    for layer, shares in owners.items():
        for owner in shares:
            shards[owner.rank].append(p.CacheShard(layer, owner.tile, owner.rows, owner.slices))
    return tuple(tuple(rows) for rows in shards)
