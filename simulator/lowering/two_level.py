"""Two-level partitioning: head groups × dimension slices on the feed-forward ranks. Source: two-level document.

Rank (i, j) projects slice j of every head of group i, multiplies W_O's rows of what it has of o, and an all-reduce over
all ranks adds the parts. In between (``Placement.dim_mode``):

    per_slice    softmax over the slice's own scores, scaled by 1/√d_s: as the document writes, another model
    gather_qk    q and k slices gathered inside the group, v and o stay sliced: QKᵀ is computed m times
    all_to_all   slices become whole heads, h_g/m a rank: then it is head parallelism
    score_sum    partial scores added over the group before the softmax: h_g·L² scores a sequence through an all-reduce

Rotary positions: slices of q and k are paired, so each rank turns its own. Gathered or re-sharded, q's and k's
dimensions then lie slice by slice, in the same order in both, which scores do not see; v's are in their own order.
Every rank holds all tokens. Prefill only: no KV cache is stored.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from simulator import program as p
from simulator.cache_layout import cover, head_spans
from simulator.errors import InfeasibleError
from simulator.lowering.attending import attend
from simulator.lowering.builder import Layout, Where
from simulator.lowering.chunks import prefill_segments
from simulator.lowering.context import Context, Residual
from simulator.lowering.outputs import add_attention
from simulator.lowering.redistribution import Holding, plan
from simulator.lowering.shares import Attender
from simulator.model import Model
from simulator.placement import Placement, Stage, even_split
from simulator.tile import Span, Tile, is_empty
from simulator.weight_slice import DimSlice


@dataclass(frozen=True, slots=True)
class Cell:
    """Rank (i, j): its group's heads, its tokens and its slice."""

    attender: Attender
    index: int

    @property
    def rank(self) -> int:
        return self.attender.rank

    @property
    def heads(self) -> Span:
        return self.attender.heads


@dataclass(frozen=True, slots=True)
class _Layer:
    """Two-level attention of one layer and micro-batch being lowered."""

    context: Context
    where: Where
    slices: int

    @property
    def width(self) -> int:
        return self.context.model.head_dim // self.slices

    def kv_heads(self, heads: Span) -> Span:
        return cover(heads, self.context.model.heads_per_kv_head)

    def name(self, what: str) -> str:
        return self.where.name(what)

    def segments(self, cell: Cell) -> tuple[p.Segment, ...]:
        model, block = self.context.model, cell.attender.block
        window = model.layers[self.where.layer].window
        return prefill_segments(self.context.groups.batch, block, block, window, causal=model.causal)


def check_dim_slices(model: Model, placement: Placement, stage: Stage, place: str) -> None:
    """Refuse dimension slices that do not fit, in one line."""
    grid, slices, mode = stage.grid, stage.grid.dim_slices, placement.dim_mode
    if grid.query_blocks > 1 or grid.kv_blocks > 1:
        problem = "goes with heads alone; query_blocks and kv_blocks must be 1"
    elif set(stage.attention_ranks) != set(stage.feed_forward_ranks) or stage.tensor_degree != grid.num_ranks:
        problem = f"needs attention and feed-forward on the same ranks, tensor_degree {grid.num_ranks}"
    elif model.head_dim % slices:
        problem = f"must divide head_dim {model.head_dim}"
    elif model.rope_theta is not None and model.head_dim // slices % 2:
        problem = f"leaves slices of {model.head_dim // slices} of head_dim; rotary positions need an even width"
    elif model.qk_norm:
        problem = "cuts the heads that qk_norm normalises; give a model without it"
    elif mode == "all_to_all" and any(heads % slices for heads in grid.heads):
        problem = f"must divide every head group for dim_mode all_to_all, not {list(grid.heads)}"
    else:
        return
    raise InfeasibleError(f"{place}.grid.dim_slices: {slices} {problem}")


def two_level(context: Context, stage: Stage, where: Where, residual: Residual) -> Generator[str, None, Residual]:
    """Lower one layer's attention block, with its residual connection."""
    layer = _Layer(context, where, stage.grid.dim_slices)
    cells = _cells(context, stage, where.micro_batch)
    mode = context.placement.dim_mode
    for cell in cells:
        _project(layer, cell, residual.names[cell.rank], split=mode == "gather_qk")
    outputs: dict[int, str] = {}
    for heads in dict.fromkeys(cell.heads for cell in cells):
        group = [cell for cell in cells if cell.heads == heads]
        match mode:
            case "per_slice":
                outputs |= {cell.rank: _attend_slice(layer, cell) for cell in group}
            case "gather_qk":
                outputs |= _gather(layer, group)
            case "all_to_all":
                outputs |= _exchange(layer, group)
            case "score_sum":
                outputs |= _sum_scores(layer, group)
    yield "attention"
    names = {cell.rank: _out(layer, cell, outputs[cell.rank]) for cell in cells}
    return (yield from add_attention(context, stage, where, residual, names))


def _cells(context: Context, stage: Stage, micro_batch: int) -> tuple[Cell, ...]:
    """Every rank, if the micro-batch has tokens."""
    heads = head_spans(stage.grid.heads)
    block = context.groups.select(context.groups.everything, micro_batch=micro_batch)
    found = []
    for number, rank in enumerate(stage.attention_ranks):
        head, _, _, index = stage.grid.coordinates(number)
        found.append(Cell(Attender(rank, heads[head], block, 0), index))
    return () if is_empty(block) else tuple(found)


def _project(layer: _Layer, cell: Cell, value: str, *, split: bool) -> None:
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
            qk_norm=False,
            eps=model.rms_norm_eps,
            slices=layer.slices,
            slice_index=cell.index,
        ),
    )


def _attend_slice(layer: _Layer, cell: Cell) -> str:
    reads = (layer.name("q"), layer.name("kv"))
    return attend(layer.context, layer.where, cell.attender, reads, layer.segments(cell), head_dim=layer.width)


def _gather(layer: _Layer, group: list[Cell]) -> dict[int, str]:
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


def _exchange(layer: _Layer, group: list[Cell]) -> dict[int, str]:
    """Whole heads, h_g/m a rank, from all slices of them."""
    layout = (layer.width,), layer.context.dtype
    queries = _reshard(layer, [(cell, _own_heads(layer, cell)) for cell in group], "q", Layout((), *layout))
    kv_heads = [(cell, layer.kv_heads(_own_heads(layer, cell))) for cell in group]
    keys = _reshard(layer, kv_heads, "kv", Layout((2,), *layout))
    outputs = {}
    for cell in group:
        own = Attender(cell.rank, _own_heads(layer, cell), cell.attender.block, 0)
        reads = (queries[cell.rank], keys[cell.rank])
        outputs[cell.rank] = attend(layer.context, layer.where, own, reads, layer.segments(cell))
    return outputs


def _own_heads(layer: _Layer, cell: Cell) -> Span:
    """The whole heads that fall to a cell after the all-to-all."""
    sizes = even_split(cell.heads[1] - cell.heads[0], layer.slices)
    start, stop = head_spans(sizes)[cell.index]
    return cell.heads[0] + start, cell.heads[0] + stop


def _reshard(layer: _Layer, wanted: list[tuple[Cell, Span]], what: str, layout: Layout) -> dict[int, str]:
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


def _sum_scores(layer: _Layer, group: list[Cell]) -> dict[int, str]:
    """Partial scores, their sum over the group, and the slice's values weighed by the softmax."""
    names = {cell.rank: _scores(layer, cell) for cell in group}
    context, ranks = layer.context, tuple(cell.rank for cell in group)
    heads = group[0].heads[1] - group[0].heads[0]
    pairs = sum(s.count * c.num_queries * c.kv_stop for s in layer.segments(group[0]) for c in s.chunks)
    summed = context.collective("all_reduce", ranks, layer.where, names, "scores.sum", (heads * pairs, 1))
    return {cell.rank: _weigh(layer, cell, summed[cell.rank]) for cell in group}


def _scores(layer: _Layer, cell: Cell) -> str:
    model = layer.context.model
    return layer.context.builder.emit(
        cell.rank,
        p.Scores(
            reads=(layer.name("q"), layer.name("kv")),
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


def _weigh(layer: _Layer, cell: Cell, scores: str) -> str:
    model = layer.context.model
    return layer.context.builder.emit(
        cell.rank,
        p.WeighValues(
            reads=(scores, layer.name("kv")),
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


def _out(layer: _Layer, cell: Cell, value: str) -> str:
    """The part of W_O's product that the cell's heads or slices give."""
    context, size = layer.context, layer.context.model.head_dim
    exchanged = context.placement.dim_mode == "all_to_all"
    a, b = _own_heads(layer, cell) if exchanged else cell.heads
    weight = p.WeightSlice(
        f"layers.{layer.where.layer}.attention.o",
        (a * size, b * size),
        (0, context.model.hidden_size),
        input_slice=None if exchanged else DimSlice(size, layer.slices, cell.index),
    )
    tokens = context.count(cell.attender.block)
    return context.linear(cell.rank, layer.where, value, "attention", tokens, (weight,))
