"""Cells of two-level partitioning: who holds which slice of which heads, of the cache too, and what does not fit.

A form decodes where prefill leaves each rank the keys it will read: ``per_slice`` and ``score_sum`` its slice of every
head of the group, ``all_to_all`` its whole heads. ``gather_qk`` would need all of K but a slice of V: it only prefills.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator import program as p
from simulator.cache_layout import CacheOwner, cover, head_spans
from simulator.errors import InfeasibleError
from simulator.groups import Groups
from simulator.lowering.builder import Where
from simulator.lowering.chunks import decode_segments, prefill_segments
from simulator.lowering.context import Context
from simulator.lowering.shares import Attender
from simulator.model import Model
from simulator.placement import DimMode, Placement, Stage, even_split
from simulator.tile import Span, Tile, is_empty
from simulator.workload import Phase


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
class SlicedLayer:
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
        batch = self.context.groups.batch
        if self.context.phase == "decode":
            return decode_segments(batch, block, tuple(group.total for group in batch), window)
        return prefill_segments(batch, block, block, window, causal=model.causal)

    def keys(self, value: str) -> str:
        """Where attention reads keys and values: as projected, or decoding from the cache."""
        return value if self.context.phase == "prefill" else f"cache.{self.where.layer}"


def cells_of(context: Context, stage: Stage, micro_batch: int) -> tuple[Cell, ...]:
    """Every rank, if the micro-batch has tokens."""
    heads = head_spans(stage.grid.heads)
    block = context.groups.select(context.groups.everything, micro_batch=micro_batch)
    found = []
    for number, rank in enumerate(stage.attention_ranks):
        if not context.wants(rank):
            continue
        head, _, _, index = stage.grid.coordinates(number)
        found.append(Cell(Attender(rank, heads[head], block, 0), index))
    return () if is_empty(block) else tuple(found)


def own_heads(layer: SlicedLayer, cell: Cell) -> Span:
    """The whole heads that fall to a cell after the all-to-all."""
    return whole_heads(cell.heads, cell.index, layer.slices)


def whole_heads(heads: Span, index: int, slices: int) -> Span:
    """Part ``index`` of a group's heads."""
    start, stop = head_spans(even_split(heads[1] - heads[0], slices))[index]
    return heads[0] + start, heads[0] + stop


def slice_owners(model: Model, stage: Stage, groups: Groups, phase: Phase, mode: DimMode) -> tuple[CacheOwner, ...]:
    """Every rank's share of a layer's cache: all positions of its heads, or of its slice of them."""
    if mode == "gather_qk":
        return ()
    spans, slices = head_spans(stage.grid.heads), stage.grid.dim_slices
    rows = tuple(group.total for group in groups.batch)
    owners = []
    for number, rank in enumerate(stage.attention_ranks):
        head, _, _, index = stage.grid.coordinates(number)
        whole = mode == "all_to_all"
        heads = whole_heads(spans[head], index, slices) if whole else spans[head]
        dims = (0, slices) if whole else (index, index + 1)
        tile = Tile(cover(heads, model.heads_per_kv_head), groups.everything, dims)
        owners.append(CacheOwner(rank, tile, rows, slices))
    return tuple(owners)


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
