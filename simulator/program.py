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

from typing import Literal

from simulator.attention_operations import Attention as Attention
from simulator.attention_operations import BaseOperation
from simulator.attention_operations import Chunk as Chunk
from simulator.attention_operations import MergeAttention as MergeAttention
from simulator.attention_operations import Recall as Recall
from simulator.attention_operations import Rope as Rope
from simulator.attention_operations import Scores as Scores
from simulator.attention_operations import Segment as Segment
from simulator.attention_operations import Store as Store
from simulator.attention_operations import WeighValues as WeighValues
from simulator.fold import Fold
from simulator.tile import Batch, Block, Span, Tile
from simulator.value import value
from simulator.weight_slice import WeightSlice as WeightSlice
from simulator.workload import Step

Packing = Literal["none", "int8", "topk"]
CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]


@value(frozen=True, slots=True, kw_only=True)
class Embed(BaseOperation):
    """tokens (of the whole batch; a Slice picks the rank's) → x [T, hidden]: rows of the table this rank holds, zero
    elsewhere (vocabulary-parallel, summed by an all-reduce)."""

    num_tokens: int
    weight: WeightSlice


@value(frozen=True, slots=True, kw_only=True)
class Norm(BaseOperation):
    """x → RMSNorm(x)·weight, over ``width`` features."""

    num_tokens: int
    width: int
    weight: str
    eps: float


@value(frozen=True, slots=True, kw_only=True)
class Linear(BaseOperation):
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


@value(frozen=True, slots=True, kw_only=True)
class Activation(BaseOperation):
    """gelu(x), or for gated [T, 2·width] (gate, up halves): act(gate)·up."""

    num_tokens: int
    width: int
    kind: Literal["gelu", "silu"]
    gated: bool


@value(frozen=True, slots=True, kw_only=True)
class Add(BaseOperation):
    """x, y → x + y (the residual)."""

    num_tokens: int
    width: int


@value(frozen=True, slots=True, kw_only=True)
class Route(BaseOperation):
    """x → assignment: gate matmul, softmax, top-k; with capacity, a token beyond an expert's slots is dropped (in
    token order; rank of choice first)."""

    num_tokens: int
    hidden: int
    num_experts: int
    top_k: int
    capacity: int | None
    weight: WeightSlice


@value(frozen=True, slots=True, kw_only=True)
class Dispatch(BaseOperation):
    """x, assignment → rows sorted by expert for ``experts``: [experts·capacity, hidden], or ragged if dropless."""

    num_tokens: int
    hidden: int
    num_experts: int
    top_k: int
    experts: Span
    capacity: int | None


@value(frozen=True, slots=True, kw_only=True)
class Experts(BaseOperation):
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


@value(frozen=True, slots=True, kw_only=True)
class Combine(BaseOperation):
    """rows, assignment → y [T, hidden]: gate-weighted sum of the rows of ``experts`` (others contribute 0)."""

    num_tokens: int
    hidden: int
    num_experts: int
    top_k: int
    experts: Span
    capacity: int | None


@value(frozen=True, slots=True, kw_only=True)
class Slice(BaseOperation):
    """The part ``target`` of a value that holds ``source``; ``row_width`` elements a column. Contiguous: a view."""

    batch: Batch
    source: Tile
    target: Tile
    row_width: int


@value(frozen=True, slots=True, kw_only=True)
class Concat(BaseOperation):
    """Values holding ``parts`` → one value holding ``target``; together the parts cover it exactly."""

    batch: Batch
    parts: tuple[Tile, ...]
    target: Tile
    row_width: int


@value(frozen=True, slots=True, kw_only=True)
class Sample(BaseOperation):
    """logits [rows, shards·width] → tokens [rows]: the argmax over the vocabulary, or drawn. Shard i holds
    ``even_split(vocab, shards)[i]`` columns, padded with −inf to the widest. ``block``: the positions of the rows."""

    rows: int
    vocab: int
    shards: int
    batch: Batch = ()
    block: Block = ()


@value(frozen=True, slots=True, kw_only=True)
class Send(BaseOperation):
    """The value read, or its contiguous rows ``rows``, → rank ``to``. ``num_bytes`` are what travels."""

    to: int
    tag: int
    num_bytes: int
    rows: Span | None = None
    packing: Packing = "none"


@value(frozen=True, slots=True, kw_only=True)
class Recv(BaseOperation):
    """A value of ``shape`` from rank ``source``; packed, it travels in ``num_bytes`` bytes."""

    source: int
    tag: int
    num_bytes: int
    shape: tuple[int, ...]
    dtype: str
    packing: Packing = "none"


@value(frozen=True, slots=True, kw_only=True)
class Collective(BaseOperation):
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
    | Recall
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


@value(frozen=True, slots=True)
class CacheShard:
    """The part of one layer's KV cache that a rank holds after the step: its KV heads and token positions, and of
    ``slices`` dimension slices of a head those of the tile."""

    layer: int
    tile: Tile
    rows_per_sequence: tuple[int, ...]
    slices: int = 1


@value(frozen=True, slots=True)
class Program:
    """One step of one model under one placement. ``ranks[r]`` is rank r's list; unused ranks have none.

    ``step.batch`` is the batch as lowered (groups cut at micro-batch edges, order of sequences kept). Ranks that embed
    read the value ``tokens`` (all new tokens of the batch, packed) and hold the next ones in ``next_tokens[rank]``.
    ``repeated``: (layer, n) of a deep model lowered shallow, where that layer stands for n alike; not to be run.
    ``fold``: only the ranks of its block 0 have lists, which stand for the others'; not to be run either.
    """

    step: Step
    dtype: str
    ranks: tuple[tuple[Operation, ...], ...]
    caches: tuple[tuple[CacheShard, ...], ...]
    next_tokens: tuple[str, ...]
    repeated: tuple[int, int] | None = None
    fold: Fold | None = None

    def times(self, layer: int) -> int:
        """Layers that ``layer`` stands for."""
        return self.repeated[1] if self.repeated is not None and self.repeated[0] == layer else 1

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
