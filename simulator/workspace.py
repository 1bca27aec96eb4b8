"""Workspace: what an operation holds while it runs besides the values it reads and writes, as the executor computes it.

    attention     a chunk's result unless it is the operation's; two partial ones before a causal square; CPU tiles
    dim slices    queries and keys put in order, scores masked and normalised
    experts       rows widened and activated, rows of several peers put in order
    passes        norms, rotary positions, merges, sums over experts: what they make of the rows gone over at once
    transfers     a view is copied to be sent; on CPUs, what a collective receives until it is summed or put in order

What it ignores: what kernels allocate inside on a GPU, routing's index arrays, oneDNN's packed copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Literal

from simulator import program as p
from simulator.costs.work import LSE_BYTES, local_rows
from simulator.tile import Span
from simulator.units import DTYPE_BYTES

MAX_SPARE_ROWS = 8192
"""Up to so many (token, expert) pairs a dropless rank makes room for all of them, so that nobody waits for the counts
of its own: a decode step's."""
BLOCK_ROWS = 256
"""Rows that an element-wise pass on a CPU goes over at once, so that its intermediates stay in a core's cache."""
WHOLE_BYTES = 2**15
"""Up to here an all-reduce's value goes whole to all members: one hop instead of two."""
MIN_BAND_QUERIES = 64
"""Rows of a sliding-window band: fewer make too many small kernels."""
FP32_BYTES = 4
HALF_NORM_BYTES, NORM_BYTES = 12, 8
"""Bytes an element of torch's rms_norm on a CPU: the normalised rows and their product with the weight; in half
precision the rows, their squares or the normalised rows in fp32, and two roundings."""
QUERY_TILES, KEY_TILE = ((768, 256), (192, 64), (0, 32)), 512
"""(From so many queries a sequence, rows of a tile) and its columns, of torch's flash attention on CPUs
(aten/native/cpu/FlashAttentionKernel.cpp): a thread keeps a tile's scores, its rows' maxima and sums, and their output
in fp32, and the scores in half precision too."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What ranks run on: the kind of their devices, and every rank's node (none given: one node)."""

    kind: Literal["gpu", "cpu"] = "gpu"
    nodes: tuple[int, ...] = ()

    def at_once(self, rows: int) -> int:
        """Of ``rows``, those that an element-wise pass goes over at once."""
        return min(rows, BLOCK_ROWS) if self.kind == "cpu" else rows

    def products(self, size: int) -> int:
        """Values in fp32 while two products with fp32 factors are made: both, and on a CPU the fp32 copy of a factor in
        half precision."""
        return 3 if self.kind == "cpu" and size < FP32_BYTES else 2

    def num_nodes(self, ranks: tuple[int, ...]) -> int:
        return len({self.nodes[rank] for rank in ranks}) if self.nodes else 1


GPUS = Machine()


def workspace_bytes(operation: p.Operation, dtype: str, machine: Machine) -> int:
    """Bytes beyond the values written, at the operation's own peak."""
    size = DTYPE_BYTES[dtype]
    match operation:
        case p.Norm(num_tokens=tokens, width=width):
            per_element = HALF_NORM_BYTES if size < FP32_BYTES else NORM_BYTES
            return machine.at_once(tokens) * width * per_element if machine.kind == "cpu" else 0
        case p.Rope():
            return _rope(operation, size, machine)
        case p.Attention():
            return _attention(operation, size, machine)
        case p.MergeAttention(num_tokens=tokens, heads=heads, head_dim=head_dim, parts=parts):
            sums = (parts + (len(operation.writes) == 1)) * tokens * heads * LSE_BYTES
            return sums + machine.products(size) * machine.at_once(tokens) * heads * head_dim * FP32_BYTES
        case p.Scores():
            return _scores(operation, size)
        case p.WeighValues():
            return _weigh_values(operation, size)
        case p.Experts():
            return _experts(operation, size)
        case p.Combine(num_tokens=tokens, hidden=hidden):
            taken = size if machine.products(size) > 2 else 0
            return machine.at_once(tokens) * hidden * (3 * FP32_BYTES + taken)
        case _:
            return 0


def received_bytes(operation: p.Collective, dtype: str, machine: Machine) -> int:
    """What a CPU rank has received of a collective, at most, before its value is there (``executor/exchange.py``); on a
    GPU NCCL's own buffers hold it."""
    if machine.kind == "gpu" or len(operation.ranks) == 1:
        return 0
    count, nodes = len(operation.ranks), machine.num_nodes(operation.ranks)
    value = operation.shape[0] * operation.shape[1] * DTYPE_BYTES[dtype]
    match operation.kind:
        case "all_reduce" if count == 2:
            return value
        case "all_reduce" if nodes > 1:
            inside = count // nodes if operation.algorithm == "hierarchical" and count % nodes == 0 else 1
            return value * (inside - 1) // inside if inside > 1 else -(-value // count)
        case "all_reduce":
            return count * value if value <= WHOLE_BYTES else -(-value // count)
        case "all_gather":
            return value * (count - 1 + (count if operation.along == "columns" else 0))
        case _:
            return value * (count - 1) // count


def allocated_rows(operation: p.Dispatch | p.Combine | p.Experts) -> int:
    """Rows of this rank's buffer for its experts: capacity slots; dropless all pairs where those are few, else the
    expected share."""
    pairs = operation.num_tokens * operation.top_k
    return pairs if operation.capacity is None and pairs <= MAX_SPARE_ROWS else local_rows(operation)


def angle_bytes(operations: tuple[p.Operation, ...]) -> int:
    """Tables of cos and sin that rotary positions need, kept once made: one each for every set of positions."""
    tables = {
        (one.batch, one.block, one.theta, one.scaling): 2 * one.num_tokens * (one.head_dim * one.slices // 2)
        for one in operations
        if isinstance(one, p.Rope) and one.theta is not None
    }
    return FP32_BYTES * sum(tables.values())


def only_splits(operation: p.Rope) -> bool:
    """Neither turned nor normalised: its outputs are views of what it reads."""
    return operation.theta is None and not operation.qk_norm


def _rope(operation: p.Rope, size: int, machine: Machine) -> int:
    """Two products of half the features of the rows at once; normalised q and k, and both side by side."""
    if only_splits(operation):
        return 0
    features = (operation.heads + operation.kv_heads) * operation.head_dim
    turned = machine.products(size) * machine.at_once(operation.num_tokens) * features * FP32_BYTES // 2
    return (turned if operation.theta is not None else 0) + (
        2 * operation.num_tokens * features * size if operation.qk_norm else 0
    )


def _attention(operation: p.Attention, size: int, machine: Machine) -> int:
    """One chunk that every head is computed of at once is the output; others are copied into it, and then the sums
    that nobody reads are a tensor of their own. Narrow values are padded, and cut out of the result."""
    chunks = [(segment.count, chunk) for segment in operation.segments for chunk in segment.chunks]
    width = largest_run(operation)
    sole = len(chunks) == 1 and width == _heads(operation) and not _band(operation, chunks[0][1])
    largest = max((_chunk(operation, one, size, machine, copied=not sole) for one in chunks), default=0)
    heads = _heads(operation)
    unread = operation.num_tokens * heads * LSE_BYTES if len(operation.writes) == 1 else 0
    if not operation.value_dim:
        return largest + unread
    kv_heads = operation.kv_heads[1] - operation.kv_heads[0]
    rows = sum(segment.count * segment.kv_rows for segment in operation.segments)
    padded = (2 * rows * kv_heads + operation.num_tokens * heads) * operation.head_dim * size
    narrow = operation.num_tokens * heads * operation.value_dim * size
    return max(largest + unread + padded - narrow, padded + unread)


def _chunk(operation: p.Attention, one: tuple[int, p.Chunk], size: int, machine: Machine, *, copied: bool) -> int:
    """Before a chunk's causal square its other keys are attended to apart, and the two results merged. Queries before
    the first key see none: nothing is computed of them."""
    count, chunk = one
    heads, head_dim = largest_run(operation), operation.head_dim
    keys, mask = max(chunk.kv_stop - chunk.kv_start, 0), 0
    queries = min(chunk.num_queries, keys) if chunk.causal or not keys else chunk.num_queries
    if band := _band(operation, chunk):
        queries, keys = min(queries, band), min(keys, band + operation.window)
        mask = queries * keys * size
    rows, row = count * queries, heads * (head_dim * size + LSE_BYTES)
    partial = chunk.causal and not band and 1 < queries < keys
    members = operation.group_size if queries == 1 else 1
    inside = mask + (tile_bytes(queries * members, keys, head_dim, size) if machine.kind == "cpu" else 0)
    if members > 1:
        inside = max(inside, rows * heads * head_dim * size)  # o back in the order of heads
    if partial:
        merging = (
            rows * heads * LSE_BYTES + machine.products(size) * machine.at_once(rows) * heads * head_dim * FP32_BYTES
        )
        inside = max(inside, merging)
    return (copied + partial) * rows * row + inside


def tile_bytes(queries: int, keys: int, head_dim: int, size: int) -> int:
    """What a CPU's flash kernel holds inside, on one thread."""
    rows = min(next(rows for least, rows in QUERY_TILES if queries >= least), queries)
    columns = min(KEY_TILE, keys)
    half = size if size < FP32_BYTES else 0
    return rows * (FP32_BYTES * (columns + 2 + head_dim) + half * columns)


def _band(operation: p.Attention, chunk: p.Chunk) -> int:
    """Rows of a band where a window hides keys of the chunk; 0: it does not."""
    hides = chunk.causal and 0 < operation.window < chunk.kv_stop - chunk.kv_start
    return max(MIN_BAND_QUERIES, operation.window) if hides else 0


def largest_run(operation: p.Attention) -> int:
    """Query heads of the largest run of KV heads that serve equally many of them: a run is one call."""
    return _largest_run(operation.heads, operation.group_size)


@lru_cache(maxsize=256)
def _largest_run(heads: Span, group_size: int) -> int:
    start, stop = heads
    edges = [start, *range((start // group_size + 1) * group_size, stop, group_size), stop]
    members: list[int] = [b - a for a, b in pairwise(edges)]
    return max(sum(run) for _, run in groupby(members))


def _heads(operation: p.Attention | p.Scores | p.WeighValues) -> int:
    return operation.heads[1] - operation.heads[0]


def _kv_heads(operation: p.Scores | p.WeighValues) -> int:
    """KV heads as the product sees them: repeated where the query heads map to them unevenly."""
    held, heads = operation.kv_heads[1] - operation.kv_heads[0], _heads(operation)
    even = held == 1 or (operation.heads[0] % operation.group_size == 0 and heads == held * operation.group_size)
    return held if even else heads


def _scores(operation: p.Scores, size: int) -> int:
    """All queries scaled; a segment's queries and keys put in order."""
    scaled = most = 0
    for segment in operation.segments:
        for chunk in segment.chunks:
            queries = segment.count * chunk.num_queries * _heads(operation)
            keys = segment.count * (chunk.kv_stop - chunk.kv_start) * _kv_heads(operation)
            scaled, most = scaled + queries, max(most, queries + keys)
    return (scaled + most) * operation.head_dim * size


def _weigh_values(operation: p.WeighValues, size: int) -> int:
    """A segment's scores masked and normalised; normalised, beside its values in order and their weighed sums."""
    most = 0
    for segment in operation.segments:
        for chunk in segment.chunks:
            keys, queries = chunk.kv_stop - chunk.kv_start, chunk.num_queries
            scores = segment.count * _heads(operation) * queries * keys * size
            values = segment.count * operation.head_dim * size
            weighed = values * (_heads(operation) * queries + _kv_heads(operation) * keys)
            most = max(most, (2 if chunk.causal else 1) * scores, scores + weighed)
    return most


def _experts(operation: p.Experts, size: int) -> int:
    """Rows widened (gate and up together if gated) and activated, then activated rows beside the output; rows of
    several peers are put in order first and their results put back."""
    rows = allocated_rows(operation) * operation.peers
    width = operation.intermediate[1] - operation.intermediate[0]
    widened, active, out = ((2 if operation.gated else 1) * width, width, operation.hidden)
    ordered = operation.hidden if operation.peers > 1 else 0
    return rows * size * (ordered + max(widened + active - out, active, ordered))
