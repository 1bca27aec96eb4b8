"""Program: for every rank, an ordered list of typed operations. The simulator and the executor run the same one.

An operation says what it is, which of its rank's values it reads and writes, and the shapes needed to time and to
execute it. Nothing else: FLOPs and bytes are functions of it (``work.py``); dependencies follow from the values it
reads and from the order on its stream; messages pair by (sender, receiver, tag), collectives by tag.

Values are names local to a rank, written once a step, except caches (``cache.L``), which live across steps.
Layouts (T tokens of a block, packed as ``tile.Tile`` says):

    tokens [T] int64 · hidden values [T, hidden] · q, o [T, heads, head_dim] · kv [T, 2, kv_heads, head_dim]
    lse [T, heads] fp32 (−inf where a query saw no key) · logits [rows, vocabulary part]
    scores [N, 1]: of every sequence, heads × queries × keys
    cache.L: per sequence, rows × [2, kv_heads, head_dim], in the order of the positions stored
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.tile import Batch, Block, Span, Tile
from simulator.weight_slice import WeightSlice as WeightSlice
from simulator.workload import Step

CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Queries of one span against rows [kv_start, kv_stop) of their sequence's keys.

    causal: bottom-right aligned, the last query sees key ``kv_stop − 1``. No keys: output 0, lse −inf.
    """

    num_queries: int
    kv_start: int
    kv_stop: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """``count`` sequences alike: their query chunks (in row order) and the rows each has in the KV value or cache."""

    count: int
    chunks: tuple[Chunk, ...]
    kv_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """What every operation has: its values and its place. layer −1: before the first; num_layers: after the last."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    layer: int
    micro_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed(_Operation):
    """tokens (of the whole batch; a Slice picks the rank's) → x [T, hidden]: rows of the table this rank holds, zero
    elsewhere (vocabulary-parallel, summed by an all-reduce)."""

    num_tokens: int
    weight: WeightSlice


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm(_Operation):
    """x → RMSNorm(x)·weight, over ``width`` features."""

    num_tokens: int
    width: int
    weight: str
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(_Operation):
    """x [T, k] → x @ concat(weights, outputs) [T, n]; ``bias`` names vectors added, sliced as the outputs."""

    num_tokens: int
    weights: tuple[WeightSlice, ...]
    bias: bool = False

    @property
    def k(self) -> int:
        return self.weights[0].num_inputs

    @property
    def n(self) -> int:
        return sum(weight.num_outputs for weight in self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope(_Operation):
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
    slices: int = 1
    slice_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(_Operation):
    """kv (tile ``source``) → cache.L of this rank: appends the rows of ``target`` to each sequence's cache."""

    batch: Batch
    source: Tile
    target: Tile
    num_tokens: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(_Operation):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores(_Operation):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WeighValues(_Operation):
    """scores, kv → o [T, heads, head_dim]: mask, softmax, product with the values."""

    segments: tuple[Segment, ...]
    num_tokens: int
    heads: Span
    kv_heads: Span
    group_size: int
    head_dim: int
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeAttention(_Operation):
    """o_1, lse_1, o_2, lse_2, … → o: the softmax over all parts' keys, by log-sum-exp weights in fp32."""

    num_tokens: int
    heads: int
    head_dim: int
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation(_Operation):
    """gelu(x), or for gated [T, 2·width] (gate, up halves): act(gate)·up."""

    num_tokens: int
    width: int
    kind: Literal["gelu", "silu"]
    gated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(_Operation):
    """x, y → x + y (the residual)."""

    num_tokens: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(_Operation):
    """x → assignment: gate matmul, softmax, top-k; with capacity, a token beyond an expert's slots is dropped (in
    token order; rank of choice first)."""

    num_tokens: int
    hidden: int
    num_experts: int
    top_k: int
    capacity: int | None
    weight: WeightSlice


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch(_Operation):
    """x, assignment → rows sorted by expert for ``experts``: [experts·capacity, hidden], or ragged if dropless."""

    num_tokens: int
    hidden: int
    num_experts: int
    top_k: int
    experts: Span
    capacity: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts(_Operation):
    """rows → rows through each expert's feed-forward; ``peers`` ranks' capacity slots follow one another."""

    num_tokens: int
    hidden: int
    intermediate: Span
    num_experts: int
    top_k: int
    experts: Span
    capacity: int | None
    peers: int
    kind: Literal["gelu", "silu"]
    gated: bool
    routing: str = "balanced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combine(_Operation):
    """rows, assignment → y [T, hidden]: gate-weighted sum of the rows of ``experts`` (others contribute 0)."""

    num_tokens: int
    hidden: int
    num_experts: int
    top_k: int
    experts: Span
    capacity: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(_Operation):
    """The part ``target`` of a value that holds ``source``; ``row_width`` elements a column. Contiguous: a view."""

    batch: Batch
    source: Tile
    target: Tile
    row_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat(_Operation):
    """Values holding ``parts`` → one value holding ``target``; together the parts cover it exactly."""

    batch: Batch
    parts: tuple[Tile, ...]
    target: Tile
    row_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(_Operation):
    """logits [rows, shards·width] → tokens [rows]: the argmax over the vocabulary. Shard i holds ``even_split(vocab,
    shards)[i]`` columns, padded with −inf to the widest."""

    rows: int
    vocab: int
    shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(_Operation):
    """The value read, or its contiguous rows ``rows``, → rank ``to``."""

    to: int
    tag: int
    num_bytes: int
    rows: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recv(_Operation):
    """A value of ``shape`` from rank ``source``."""

    source: int
    tag: int
    num_bytes: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective(_Operation):
    """One rank's part in a collective of ``ranks``. ``num_bytes``: nccl-tests' size (all_gather: total output).

    all_reduce [T, w] → same. all_gather: parts [T, w] → [T, ranks·w] (``along`` "columns"; a part narrower than
    ``shape`` is first padded with −inf) or [ranks·T, w] (rows). ``shape`` is the input's. reduce_scatter:
    [rows, w] → [rows/ranks, w]. all_to_all: [ranks·a, w] → [ranks·a, w], equal parts. broadcast: from ranks[0].
    """

    kind: CollectiveKind
    algorithm: Literal["auto", "ring", "tree", "hierarchical"]
    ranks: tuple[int, ...]
    tag: int
    num_bytes: int
    shape: tuple[int, ...]
    dtype: str
    along: Literal["rows", "columns"] = "rows"


Compute = (
    Embed
    | Norm
    | Linear
    | Rope
    | Store
    | Attention
    | Scores
    | WeighValues
    | MergeAttention
    | Activation
    | Add
    | Route
    | Dispatch
    | Experts
    | Combine
    | Slice
    | Concat
    | Sample
)
Transfer = Send | Recv | Collective
Operation = Compute | Transfer


@dataclass(frozen=True, slots=True)
class CacheShard:
    """The part of one layer's KV cache that a rank holds after the step: its KV heads and token positions, and of
    ``slices`` dimension slices of a head those of the tile."""

    layer: int
    tile: Tile
    rows_per_sequence: tuple[int, ...]
    slices: int = 1


@dataclass(frozen=True, slots=True)
class Program:
    """One step of one model under one placement. ``ranks[r]`` is rank r's list; unused ranks have none.

    ``step.batch`` is the batch as lowered (groups cut at micro-batch edges, order of sequences kept). Ranks that embed
    read the value ``tokens`` (all new tokens of the batch, packed) and hold the next ones in ``next_tokens[rank]``.
    """

    step: Step
    dtype: str
    ranks: tuple[tuple[Operation, ...], ...]
    caches: tuple[tuple[CacheShard, ...], ...]
    next_tokens: tuple[str, ...]

    @property
    def num_operations(self) -> int:
        return sum(len(operations) for operations in self.ranks)


def stream_of(operation: Operation) -> str:
    """The in-order stream an operation is issued on: one for compute, one a peer and direction, one for collectives."""
    match operation:
        case Send(to=to):
            return f"send:{to}"
        case Recv(source=source):
            return f"recv:{source}"
        case Collective():
            return "collective"
        case _:
            return "compute"
