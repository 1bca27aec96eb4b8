"""Workspace: what an operation holds while it runs besides the values it reads and writes.

As the executor computes them: a chunk's attention goes into a buffer of its own unless the kernel's output is the
operation's; keys before a causal square are attended to apart and merged; experts hold their widened rows; eager
scores are masked and normalised in copies. Passes over rows go block by block and count as nothing. What it ignores:
what kernels allocate inside on a GPU, packed copies of bf16 keys on a CPU, and receive buffers of collectives.
"""

from __future__ import annotations

from simulator import program as p
from simulator.costs.work import LSE_BYTES, local_rows
from simulator.units import DTYPE_BYTES

MAX_SPARE_ROWS = 8192
"""Up to so many (token, expert) pairs a dropless rank makes room for all of them, so that nobody waits for the counts
of its own: a decode step's."""
ANGLE_BYTES = 4  # fp32


QUERY_TILES, KEY_TILE = ((768, 256), (192, 64), (0, 32)), 512
"""(From so many queries a sequence, rows of a tile) and its columns, of torch's flash attention on CPUs
(aten/native/cpu/FlashAttentionKernel.cpp): a thread keeps a tile's scores, its rows' maxima and sums, and their output
in fp32, and the scores in half precision too."""


def tile_bytes(operations: tuple[p.Operation, ...], dtype: str) -> int:
    """What a CPU's flash kernel holds inside, on one thread, at most."""
    longest = width = 0
    for operation in operations:
        if isinstance(operation, p.Attention):
            width = max(width, operation.head_dim)
            longest = max([longest, *(chunk.num_queries for part in operation.segments for chunk in part.chunks)])
    rows = next(rows for queries, rows in QUERY_TILES if longest >= queries)
    half = DTYPE_BYTES[dtype] if DTYPE_BYTES[dtype] < 4 else 0
    return rows * (4 * (KEY_TILE + 2 + width) + half * KEY_TILE) if width else 0


def workspace_bytes(operation: p.Operation, dtype: str) -> int:
    """Bytes beyond the values written, at the operation's own peak."""
    size = DTYPE_BYTES[dtype]
    match operation:
        case p.Attention():
            return _attention(operation, size)
        case p.Scores():
            return _queries(operation) * _heads(operation) * operation.head_dim * size
        case p.WeighValues():
            copies = 2 if any(chunk.causal for segment in operation.segments for chunk in segment.chunks) else 1
            return copies * _largest_scores(operation) * size
        case p.Experts():
            return _experts(operation, size)
        case _:
            return 0


def allocated_rows(operation: p.Dispatch | p.Combine | p.Experts) -> int:
    """Rows of this rank's buffer for its experts: capacity slots; dropless all pairs where those are few, else the
    expected share."""
    pairs = operation.num_tokens * operation.top_k
    return pairs if operation.capacity is None and pairs <= MAX_SPARE_ROWS else local_rows(operation)


def angle_bytes(operations: tuple[p.Operation, ...]) -> int:
    """Tables of cos and sin that rotary positions need, kept once made: one each for every set of positions."""
    tables = {
        (operation.batch, operation.block): 2 * operation.num_tokens * (operation.head_dim * operation.slices // 2)
        for operation in operations
        if isinstance(operation, p.Rope) and operation.theta is not None
    }
    return ANGLE_BYTES * sum(tables.values())


def _heads(operation: p.Attention | p.Scores | p.WeighValues) -> int:
    return operation.heads[1] - operation.heads[0]


def _attention(operation: p.Attention, size: int) -> int:
    """One chunk that every head is computed of at once is the output; others are copied into it. A chunk whose keys
    begin before its causal square has two partial results."""
    chunks = [(segment.count, chunk) for segment in operation.segments for chunk in segment.chunks]
    row = _heads(operation) * (operation.head_dim * size + LSE_BYTES)
    largest = 0
    for count, chunk in chunks:
        keys = min(chunk.kv_stop - chunk.kv_start, operation.window or chunk.kv_stop)
        partial = chunk.causal and 1 < chunk.num_queries < keys
        copied = len(chunks) > 1 or not _even(operation)
        largest = max(largest, count * chunk.num_queries * row * (partial + copied))
    unread_lse = operation.num_tokens * _heads(operation) * LSE_BYTES if len(operation.writes) == 1 else 0
    return largest + unread_lse


def _queries(operation: p.Scores) -> int:
    return sum(segment.count * chunk.num_queries for segment in operation.segments for chunk in segment.chunks)


def _even(operation: p.Attention) -> bool:
    """Every KV head serves as many of the query heads: one call does for all."""
    start, stop = operation.heads
    group = operation.group_size
    return start // group == (stop - 1) // group or (start % group == 0 and stop % group == 0)


def _largest_scores(operation: p.WeighValues) -> int:
    return max(
        segment.count * _heads(operation) * chunk.num_queries * (chunk.kv_stop - chunk.kv_start)
        for segment in operation.segments
        for chunk in (*segment.chunks, p.Chunk(0, 0, 0, False))
    )


def _experts(operation: p.Experts, size: int) -> int:
    """Rows widened (gate and up together if gated) and activated, then activated rows beside the output; rows of
    several peers are put in order first and their results put back."""
    rows = allocated_rows(operation) * operation.peers
    width = operation.intermediate[1] - operation.intermediate[0]
    widened, active, out = ((2 if operation.gated else 1) * width, width, operation.hidden)
    ordered = operation.hidden if operation.peers > 1 else 0
    return rows * size * (ordered + max(widened + active - out, active, ordered))
