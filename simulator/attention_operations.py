"""Attention's operations: what happens between the projections, with keys from a value or from a rank's cache.

See ``program`` for how values lie; everything here is part of ``program.Operation``.
"""

from __future__ import annotations

from simulator.rope_scaling import RopeScaling
from simulator.tile import Batch, Block, Span, Tile
from simulator.value import value


@value(frozen=True, slots=True, kw_only=True)
class BaseOperation:
    """What every operation has: its values and its place. layer −1: before the first; num_layers: after the last."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    layer: int
    micro_batch: int


@value(frozen=True, slots=True)
class Chunk:
    """Queries of one span against rows [kv_start, kv_stop) of their sequence's keys.

    causal: bottom-right aligned, the last query sees key ``kv_stop − 1``. No keys: output 0, lse −inf.
    """

    num_queries: int
    kv_start: int
    kv_stop: int
    causal: bool


@value(frozen=True, slots=True)
class Segment:
    """``count`` sequences alike: their query chunks (in row order) and the rows each has in the KV value or cache."""

    count: int
    chunks: tuple[Chunk, ...]
    kv_rows: int


@value(frozen=True, slots=True, kw_only=True)
class Rope(BaseOperation):
    """qkv [T, (heads+2·kv_heads)·head_dim] → q, kv (or q, k, v) with rotary positions (theta None: only split) and, if
    ``qk_norm``, RMSNorm over head_dim of q and k first (weights ``layers.L.attention.q_norm|k_norm``).

    slices > 1: ``head_dim`` is the width of paired slice ``slice_index`` of as many of every head.
    """

    batch: Batch
    block: Block
    num_tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    theta: float | None
    qk_norm: bool
    eps: float
    scaling: RopeScaling | None = None
    slices: int = 1
    slice_index: int = 0


@value(frozen=True, slots=True, kw_only=True)
class Store(BaseOperation):
    """kv (tile ``source``) → cache.L of this rank: appends the rows of ``target`` to each sequence's cache."""

    batch: Batch
    source: Tile
    target: Tile
    num_tokens: int
    head_dim: int


@value(frozen=True, slots=True, kw_only=True)
class Recall(BaseOperation):
    """cache.L of this rank, whose rows are those of ``source`` → kv, the rows of ``target``: a copy."""

    batch: Batch
    source: Tile
    target: Tile
    num_tokens: int
    head_dim: int


@value(frozen=True, slots=True, kw_only=True)
class Attention(BaseOperation):
    """q and (kv or cache.L) → o, or o and lse when its result will be merged.

    ``heads`` and ``kv_heads`` are absolute ranges: query head h uses KV head h // group_size. ``segments`` lists every
    sequence group of the step's batch in order; a group this operation has nothing to do with has no chunks (and, if
    keys come from a value, kv_rows 0). decode: the keys are the cache's rows [kv_start, kv_stop) of each sequence.
    value_dim > 0: values and o are only that wide; reads q, k, v, and pads v, as kernels know one width.
    """

    segments: tuple[Segment, ...]
    num_tokens: int
    heads: Span
    kv_heads: Span
    group_size: int
    head_dim: int
    window: int
    decode: bool
    value_dim: int = 0


@value(frozen=True, slots=True, kw_only=True)
class Scores(BaseOperation):
    """q, kv → q·kᵀ/√scale_dim over ``head_dim`` of a head's scale_dim dimensions, unmasked: partial sums of the scores.

    Heads, segments and decoding from cache.L as in Attention; every segment has at most one chunk.
    """

    segments: tuple[Segment, ...]
    heads: Span
    kv_heads: Span
    group_size: int
    head_dim: int
    scale_dim: int

    @property
    def num_scores(self) -> int:
        pairs = sum(s.count * c.num_queries * (c.kv_stop - c.kv_start) for s in self.segments for c in s.chunks)
        return pairs * (self.heads[1] - self.heads[0])


@value(frozen=True, slots=True, kw_only=True)
class WeighValues(BaseOperation):
    """scores, kv → o [T, heads, head_dim]: mask, softmax, product with the values."""

    segments: tuple[Segment, ...]
    num_tokens: int
    heads: Span
    kv_heads: Span
    group_size: int
    head_dim: int
    window: int


@value(frozen=True, slots=True, kw_only=True)
class MergeAttention(BaseOperation):
    """o_1, lse_1, o_2, lse_2, … → o: the softmax over all parts' keys, by log-sum-exp weights in fp32."""

    num_tokens: int
    heads: int
    head_dim: int
    parts: int
