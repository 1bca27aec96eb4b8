"""Two-level partitioning: head groups × dimension slices on the feed-forward ranks. Source: two-level document.

Rank (i, j) projects slice j of every head of group i, multiplies W_O's rows of what it has of o, and an all-reduce over
all ranks adds the parts. In between (``Placement.dim_mode``):

    per_slice    softmax over the slice's own scores, scaled by 1/√d_s: as the document writes, another model
    gather_qk    q and k slices gathered inside the group, v and o stay sliced: QKᵀ is computed m times
    all_to_all   slices become whole heads, h_g/m a rank: then it is head parallelism
    score_sum    partial scores added over the group before the softmax: h_g·L² scores a sequence through an all-reduce

Rotary positions: slices of q and k are paired, so each rank turns its own. Gathered or re-sharded, q's and k's
dimensions then lie slice by slice, in the same order in both, which scores do not see; v's are in their own order.
Every rank holds all tokens.
"""

from __future__ import annotations

from collections.abc import Generator

from simulator import program as p
from simulator.cache_layout import CacheOwner
from simulator.lowering.attending import attend
from simulator.lowering.builder import Layout, Where
from simulator.lowering.cache import of_micro_batch, store
from simulator.lowering.cells import Cell, SlicedLayer, cells_of, own_heads
from simulator.lowering.context import Context, Residual
from simulator.lowering.outputs import add_attention
from simulator.lowering.redistribution import Holding, plan
from simulator.lowering.shares import Attender
from simulator.placement import Stage
from simulator.tile import Span, Tile
from simulator.weight_slice import DimSlice


def two_level(
    context: Context, stage: Stage, where: Where, residual: Residual, owners: tuple[CacheOwner, ...]
) -> Generator[str, None, Residual]:
    """Lower one layer's attention block, with its residual connection."""
    layer = SlicedLayer(context, where, stage.grid.dim_slices)
    cells = cells_of(context, stage, where.micro_batch)
    mode = context.placement.dim_mode
    for cell in cells:
        _project(layer, cell, residual.names[cell.rank], split=mode == "gather_qk")
        if mode in ("per_slice", "score_sum"):
            _store(layer, cell, owners, layer.name("kv"))
    outputs: dict[int, str] = {}
    for heads in dict.fromkeys(cell.heads for cell in cells):
        group = [cell for cell in cells if cell.heads == heads]
        match mode:
            case "per_slice":
                outputs |= {cell.rank: _attend_slice(layer, cell) for cell in group}
            case "gather_qk":
                outputs |= _gather(layer, group)
            case "all_to_all":
                outputs |= _exchange(layer, group, owners)
            case "score_sum":
                outputs |= _sum_scores(layer, group)
    yield "attention"
    names = {cell.rank: _out(layer, cell, outputs[cell.rank]) for cell in cells}
    return (yield from add_attention(context, stage, where, residual, names))


def _project(layer: SlicedLayer, cell: Cell, value: str, *, split: bool) -> None:
    """q and kv of the cell's slice (or q, k and v)."""
    context, where, model = layer.context, layer.where, layer.context.model
    prefix, size, kv_heads = f"layers.{where.layer}.attention", model.head_dim, layer.kv_heads(cell.heads)
    tokens, rotary = context.count(cell.attender.block), model.rope_theta is not None
    weights = tuple(
        p.WeightSlice(
            f"{prefix}.{name}",
            (0, model.hidden_size),
            (a * size, b * size),
            output_slice=DimSlice(size, layer.slices, cell.index, paired=rotary and name != "v"),
        )
        for name, (a, b) in (("q", cell.heads), ("k", kv_heads), ("v", kv_heads))
    )
    normed = context.norm(cell.rank, where, value, f"{prefix}_norm", tokens)
    packed = context.linear(cell.rank, where, normed, "qkv", tokens, weights, bias=model.qkv_bias)
    context.builder.emit(
        cell.rank,
        p.Rope(
            reads=(packed,),
            writes=tuple(where.name(name) for name in (("q", "k", "v") if split else ("q", "kv"))),
            layer=where.layer,
            micro_batch=where.micro_batch,
            batch=context.groups.batch,
            block=cell.attender.block,
            num_tokens=tokens,
            heads=cell.heads[1] - cell.heads[0],
            kv_heads=kv_heads[1] - kv_heads[0],
            head_dim=layer.width,
            theta=model.rope_theta,
            scaling=model.rope_scaling,
            qk_norm=False,
            eps=model.rms_norm_eps,
            slices=layer.slices,
            slice_index=cell.index,
        ),
    )


def _store(layer: SlicedLayer, cell: Cell, owners: tuple[CacheOwner, ...], value: str) -> None:
    """The cell's share of the cache: just what it has in hand."""
    for owner in owners:
        if owner.rank == cell.rank:
            shard = of_micro_batch(layer.context, layer.where, owner)
            width = layer.width * (owner.tile.dims[1] - owner.tile.dims[0])
            store(layer.context, layer.where, shard, shard.tile, value, head_dim=width)


def _attend_slice(layer: SlicedLayer, cell: Cell) -> str:
    reads = (layer.name("q"), layer.keys(layer.name("kv")))
    return attend(layer.context, layer.where, cell.attender, reads, layer.segments(cell), head_dim=layer.width)


def _gather(layer: SlicedLayer, group: list[Cell]) -> dict[int, str]:
    """All slices of the group's q and k on each of its ranks; values as they are."""
    whole = [(cell, cell.heads) for cell in group]
    queries = _reshard(layer, whole, "q", Layout((), (layer.width,), layer.context.dtype))
    kv_whole = [(cell, layer.kv_heads(cell.heads)) for cell in group]
    keys = _reshard(layer, kv_whole, "k", Layout((), (layer.width,), layer.context.dtype))
    return {
        cell.rank: attend(
            layer.context,
            layer.where,
            cell.attender,
            (queries[cell.rank], keys[cell.rank], layer.name("v")),
            layer.segments(cell),
            value_dim=layer.width,
        )
        for cell in group
    }


def _exchange(layer: SlicedLayer, group: list[Cell], owners: tuple[CacheOwner, ...]) -> dict[int, str]:
    """Whole heads, h_g/m a rank, from all slices of them."""
    layout = (layer.width,), layer.context.dtype
    queries = _reshard(layer, [(cell, own_heads(layer, cell)) for cell in group], "q", Layout((), *layout))
    kv_heads = [(cell, layer.kv_heads(own_heads(layer, cell))) for cell in group]
    keys = _reshard(layer, kv_heads, "kv", Layout((2,), *layout))
    outputs = {}
    for cell in group:
        own = Attender(cell.rank, own_heads(layer, cell), cell.attender.block, 0)
        _store(layer, cell, owners, keys[cell.rank])
        reads = (queries[cell.rank], layer.keys(keys[cell.rank]))
        outputs[cell.rank] = attend(layer.context, layer.where, own, reads, layer.segments(cell))
    return outputs


def _reshard(layer: SlicedLayer, wanted: list[tuple[Cell, Span]], what: str, layout: Layout) -> dict[int, str]:
    """All slices of the columns that each cell wants, from the group's cells, which hold one each."""
    held, needs = [], []
    for cell, columns in wanted:
        mine = cell.heads if what == "q" else layer.kv_heads(cell.heads)
        held.append(Holding(cell.rank, Tile(mine, cell.attender.block, (cell.index, cell.index + 1))))
        needs.append(Holding(cell.rank, Tile(columns, cell.attender.block, (0, layer.slices))))
    moves = plan(tuple(held), tuple(needs), layer.context.nodes, "direct", 1)
    names = [layer.name(what)] * len(held)
    came = layer.context.builder.redistribute(moves, names, layout, layer.where, f"{what}.in")
    return {need.rank: name for need, name in zip(needs, came, strict=True)}


def _sum_scores(layer: SlicedLayer, group: list[Cell]) -> dict[int, str]:
    """Partial scores, their sum over the group, and the slice's values weighed by the softmax."""
    names = {cell.rank: _scores(layer, cell) for cell in group}
    context, ranks = layer.context, tuple(cell.rank for cell in group)
    heads = group[0].heads[1] - group[0].heads[0]
    pairs = sum(s.count * c.num_queries * (c.kv_stop - c.kv_start) for s in layer.segments(group[0]) for c in s.chunks)
    summed = context.collective("all_reduce", ranks, layer.where, names, "scores.sum", (heads * pairs, 1))
    return {cell.rank: _weigh(layer, cell, summed[cell.rank]) for cell in group}


def _scores(layer: SlicedLayer, cell: Cell) -> str:
    model = layer.context.model
    return layer.context.builder.emit(
        cell.rank,
        p.Scores(
            reads=(layer.name("q"), layer.keys(layer.name("kv"))),
            writes=(layer.name("scores"),),
            layer=layer.where.layer,
            micro_batch=layer.where.micro_batch,
            segments=layer.segments(cell),
            heads=cell.heads,
            kv_heads=layer.kv_heads(cell.heads),
            group_size=model.heads_per_kv_head,
            head_dim=layer.width,
            scale_dim=model.head_dim,
        ),
    )


def _weigh(layer: SlicedLayer, cell: Cell, scores: str) -> str:
    model = layer.context.model
    return layer.context.builder.emit(
        cell.rank,
        p.WeighValues(
            reads=(scores, layer.keys(layer.name("kv"))),
            writes=(layer.name("o"),),
            layer=layer.where.layer,
            micro_batch=layer.where.micro_batch,
            segments=layer.segments(cell),
            num_tokens=layer.context.count(cell.attender.block),
            heads=cell.heads,
            kv_heads=layer.kv_heads(cell.heads),
            group_size=model.heads_per_kv_head,
            head_dim=layer.width,
            window=model.layers[layer.where.layer].window,
        ),
    )


def _out(layer: SlicedLayer, cell: Cell, value: str) -> str:
    """The part of W_O's product that the cell's heads or slices give."""
    context, size = layer.context, layer.context.model.head_dim
    exchanged = context.placement.dim_mode == "all_to_all"
    a, b = own_heads(layer, cell) if exchanged else cell.heads
    weight = p.WeightSlice(
        f"layers.{layer.where.layer}.attention.o",
        (a * size, b * size),
        (0, context.model.hidden_size),
        input_slice=None if exchanged else DimSlice(size, layer.slices, cell.index),
    )
    tokens = context.count(cell.attender.block)
    return context.linear(cell.rank, layer.where, value, "attention", tokens, (weight,))
