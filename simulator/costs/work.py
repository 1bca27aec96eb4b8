"""Work: an operation's kernels, and the bytes of what it writes. Pure functions of the operation.

Transfers have no kernels (the engine times them on links). A slice whose rows are contiguous is a view and costs
nothing; the executor takes the same view.
"""

from __future__ import annotations

from simulator import program as p
from simulator.kernel import AttentionDecode, AttentionPrefill, ComputeKernel, Gemm, Memory, Moe
from simulator.tile import Batch, Span, Tile, num_tokens
from simulator.units import DTYPE_BYTES

LSE_BYTES = 4  # fp32
TOKEN_BYTES = 8  # int64


def kernels_of(operation: p.Operation, dtype: str) -> tuple[ComputeKernel, ...]:
    """The kernels the executor launches for ``operation`` on values of ``dtype``."""
    if isinstance(operation, (p.Send, p.Recv, p.Collective)):  # most of a program
        return ()
    size = DTYPE_BYTES[dtype]
    match operation:
        case p.Linear():
            return (Gemm(operation.num_tokens, operation.n, operation.k, dtype),)
        case p.Attention(decode=True):
            return decode_kernels(operation, dtype)
        case p.Attention():
            return (*prefill_kernels(operation, dtype), *padding_kernels(operation, size))
        case p.Scores():
            return score_kernels(operation, dtype)
        case p.WeighValues():
            return weighing_kernels(operation, dtype)
        case p.Route():
            scores = operation.num_tokens * operation.num_experts
            gate = Gemm(operation.num_tokens, operation.num_experts, operation.hidden, dtype)
            return (gate, Memory("route", 3 * scores * size))
        case p.Experts():
            return (moe_kernel(operation, dtype),)
        case _:
            kind, num_bytes = memory_traffic(operation, size)
            return (Memory(kind, num_bytes),) if num_bytes else ()


def memory_traffic(operation: p.Compute, size: int) -> tuple[str, int]:
    """(kind, bytes read and written) of an element-wise or copying operation."""
    match operation:
        case p.Embed(num_tokens=tokens, weight=weight):
            return "embed", 2 * tokens * (weight.outputs[1] - weight.outputs[0]) * size
        case p.Norm(num_tokens=tokens, width=width):
            return "norm", 2 * tokens * width * size
        case p.Rope(num_tokens=tokens, heads=heads, kv_heads=kv_heads, head_dim=head_dim):
            return "rope", 2 * tokens * (heads + 2 * kv_heads) * head_dim * size
        case (
            p.Store(num_tokens=tokens, target=target, head_dim=head_dim)
            | p.Recall(num_tokens=tokens, target=target, head_dim=head_dim)
        ):
            return "copy", 2 * tokens * 2 * target.num_columns * head_dim * size
        case p.MergeAttention(num_tokens=tokens, heads=heads, head_dim=head_dim, parts=parts):
            return "merge", tokens * heads * ((parts + 1) * head_dim * size + parts * LSE_BYTES)
        case p.Activation(num_tokens=tokens, width=width, gated=gated):
            return "activation", (3 if gated else 2) * tokens * width * size
        case p.Add(num_tokens=tokens, width=width):
            return "add", 3 * tokens * width * size
        case p.Dispatch() | p.Combine():
            return "dispatch", 2 * local_rows(operation) * operation.hidden * size
        case p.Slice(batch=batch, source=source, target=target, row_width=width):
            if contiguous_rows(batch, source, target) is not None:
                return "copy", 0
            return "copy", 2 * num_tokens(target.block, batch) * target.num_cells * width * size
        case p.Concat(batch=batch, target=target, row_width=width):
            return "copy", 2 * num_tokens(target.block, batch) * target.num_cells * width * size
        case p.Sample(rows=rows, vocab=vocab):
            return "sample", rows * vocab * size
        case _:
            raise AssertionError(f"{type(operation).__name__} is not a memory operation")


def prefill_kernels(operation: p.Attention, dtype: str) -> tuple[ComputeKernel, ...]:
    heads, kv_heads = attention_heads(operation)
    return tuple(
        AttentionPrefill(
            segment.count,
            chunk.num_queries,
            chunk.kv_stop - chunk.kv_start,
            heads,
            kv_heads,
            operation.head_dim,
            chunk.causal,
            operation.window if operation.window < chunk.kv_stop - chunk.kv_start else 0,
            dtype,
        )
        for segment in operation.segments
        for chunk in segment.chunks
        if chunk.kv_stop > chunk.kv_start
    )


def decode_kernels(operation: p.Attention, dtype: str) -> tuple[ComputeKernel, ...]:
    heads, kv_heads = attention_heads(operation)
    return tuple(
        AttentionDecode(segment.count, chunk.kv_stop - chunk.kv_start, heads, kv_heads, operation.head_dim, 0, dtype)
        for segment in operation.segments
        for chunk in segment.chunks
        if chunk.kv_stop > chunk.kv_start
    )


def padding_kernels(operation: p.Attention, size: int) -> tuple[ComputeKernel, ...]:
    """Narrow values: k and v are copied side by side, v padded with zeros, and o's columns cut out."""
    if not operation.value_dim:
        return ()
    heads, kv_heads = operation.heads[1] - operation.heads[0], operation.kv_heads[1] - operation.kv_heads[0]
    rows = sum(segment.count * segment.kv_rows for segment in operation.segments) * kv_heads
    packed = rows * (3 * operation.head_dim + operation.value_dim)
    return (Memory("copy", (packed + 2 * operation.num_tokens * heads * operation.value_dim) * size),)


def score_kernels(operation: p.Scores, dtype: str) -> tuple[ComputeKernel, ...]:
    """A product a segment; its heads' and sequences' are one kernel (a batched one): rows add up.

    One query: bound by reading the keys, each once, and writing the scores.
    """
    heads = operation.heads[1] - operation.heads[0]
    if decoding(operation):
        return (Memory("copy", (_cached(operation) + operation.num_scores) * DTYPE_BYTES[dtype]),)
    return tuple(
        Gemm(segment.count * heads * chunk.num_queries, chunk.kv_stop - chunk.kv_start, operation.head_dim, dtype)
        for segment in operation.segments
        for chunk in segment.chunks
    )


def weighing_kernels(operation: p.WeighValues, dtype: str) -> tuple[ComputeKernel, ...]:
    """Eager: the mask (if causal) and the softmax each read and write all scores; then the product reads them."""
    heads, size = operation.heads[1] - operation.heads[0], DTYPE_BYTES[dtype]
    kernels: list[ComputeKernel] = []
    if decoding(operation):
        scores = sum(s.count * heads * (c.kv_stop - c.kv_start) for s in operation.segments for c in s.chunks)
        read = _cached(operation) + scores + operation.num_tokens * heads * operation.head_dim
        return (Memory("activation", 2 * scores * size), Memory("copy", read * size))
    for segment in operation.segments:
        for chunk in segment.chunks:
            rows, keys = segment.count * heads * chunk.num_queries, chunk.kv_stop - chunk.kv_start
            kernels.append(Memory("activation", (4 if chunk.causal else 2) * rows * keys * size))
            kernels.append(Gemm(rows, operation.head_dim, keys, dtype))
    return tuple(kernels)


def decoding(operation: p.Scores | p.WeighValues) -> bool:
    return operation.reads[-1].startswith("cache.")


def _cached(operation: p.Scores | p.WeighValues) -> int:
    """Elements of K (or of V) of the cached rows read."""
    _, kv_heads = attention_heads(operation)
    rows = sum(s.count * (c.kv_stop - c.kv_start) for s in operation.segments for c in s.chunks)
    return rows * kv_heads * operation.head_dim


def attention_heads(operation: p.Attention | p.Scores | p.WeighValues) -> tuple[int, int]:
    """(query heads, KV heads) as the kernel sees them: KV heads are repeated where the range maps unevenly."""
    heads = operation.heads[1] - operation.heads[0]
    kv_heads = operation.kv_heads[1] - operation.kv_heads[0]
    aligned = operation.heads[0] % operation.group_size == 0 or kv_heads == 1
    return (heads, kv_heads) if aligned and heads % kv_heads == 0 else (heads, heads)


def local_rows(operation: p.Dispatch | p.Combine | p.Experts) -> int:
    """Token-expert rows of this rank's experts: capacity slots, or their expected share if dropless."""
    held = operation.experts[1] - operation.experts[0]
    if operation.capacity is not None:
        return held * operation.capacity
    return -(-operation.num_tokens * operation.top_k * held // operation.num_experts)


def moe_kernel(operation: p.Experts, dtype: str) -> Moe:
    held = operation.experts[1] - operation.experts[0]
    width = operation.intermediate[1] - operation.intermediate[0]
    rows = local_rows(operation) * operation.peers
    ep = operation.num_experts // held if operation.num_experts % held == 0 else 1
    experts = operation.num_experts if ep > 1 else held
    top_k = min(operation.top_k, experts)
    tokens = max(1, -(-rows * ep // top_k))
    return Moe(tokens, operation.hidden, width, top_k, experts, 1, ep, operation.routing, operation.gated, dtype)


def contiguous_rows(batch: Batch, source: Tile, target: Tile) -> Span | None:
    """Rows [start, stop) of ``source``'s value that are exactly ``target``, or None if they are not one run."""
    if source.columns != target.columns or source.dims != target.dims:
        return None
    runs: list[Span] = []
    base = 0
    for group, held, wanted in zip(batch, source.block, target.block, strict=True):
        length = sum(stop - start for start, stop in held)
        if wanted == held:
            runs.append((base, base + group.count * length))
        elif wanted:
            if group.count != 1:
                return None
            runs.extend(_rows_of_spans(held, wanted, base))
        base += group.count * length
    joined: list[Span] = []
    for start, stop in runs:
        if start == stop:
            continue
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined[0] if len(joined) == 1 else None


def _rows_of_spans(held: tuple[Span, ...], wanted: tuple[Span, ...], base: int) -> list[Span]:
    rows = []
    for first, last in wanted:
        offset = base
        for start, stop in held:
            low, high = max(first, start), min(last, stop)
            if low < high:
                rows.append((offset + low - start, offset + high - start))
            offset += stop - start
    return rows
