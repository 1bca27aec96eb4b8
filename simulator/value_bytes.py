"""Value bytes: what the values take that operations write."""

from __future__ import annotations

from simulator import program as p
from simulator.costs.work import LSE_BYTES, TOKEN_BYTES, contiguous_rows
from simulator.tile import num_tokens
from simulator.units import DTYPE_BYTES
from simulator.workspace import allocated_rows


def output_bytes(operation: p.Operation, dtype: str) -> dict[str, int]:
    """Bytes of every value an operation writes (views and caches: 0)."""
    if isinstance(operation, (p.Send, p.Store)):
        return {}
    if isinstance(operation, p.Recv):  # with sends, most of a program
        return {operation.writes[0]: operation.num_bytes}
    elements = _output_elements(operation)
    size = DTYPE_BYTES[dtype]
    match operation:
        case p.Attention(writes=(output, lse)):
            heads = operation.heads[1] - operation.heads[0]
            return {output: elements * size, lse: operation.num_tokens * heads * LSE_BYTES}
        case p.Rope(writes=(query, *keys)):
            row = operation.num_tokens * operation.head_dim * size
            return {query: row * operation.heads} | dict.fromkeys(keys, row * 2 * operation.kv_heads // len(keys))
        case p.Route(writes=(name,)):
            return {name: operation.num_tokens * operation.top_k * 3 * TOKEN_BYTES}
        case p.Sample(writes=(name,)):
            return {name: operation.rows * TOKEN_BYTES}
        case _:
            return {operation.writes[0]: elements * size}


def _output_elements(operation: p.Operation) -> int:
    match operation:
        case p.Linear(num_tokens=tokens, n=width) | p.Norm(num_tokens=tokens, width=width):
            return tokens * width
        case p.Embed(num_tokens=tokens, weight=weight):
            return tokens * (weight.outputs[1] - weight.outputs[0])
        case p.Add(num_tokens=tokens, width=width) | p.Activation(num_tokens=tokens, width=width):
            return tokens * width
        case p.Attention(num_tokens=tokens, heads=heads, head_dim=head_dim, value_dim=value_dim):
            return tokens * (heads[1] - heads[0]) * (value_dim or head_dim)
        case p.Recall(num_tokens=tokens, target=target, head_dim=head_dim):
            return tokens * 2 * target.num_columns * head_dim
        case p.Scores(num_scores=num_scores):
            return num_scores
        case p.WeighValues(num_tokens=tokens, heads=heads, head_dim=head_dim):
            return tokens * (heads[1] - heads[0]) * head_dim
        case p.MergeAttention(num_tokens=tokens, heads=num_heads, head_dim=head_dim):
            return tokens * num_heads * head_dim
        case p.Dispatch(hidden=hidden):
            return allocated_rows(operation) * hidden
        case p.Experts(hidden=hidden, peers=peers):
            return allocated_rows(operation) * peers * hidden
        case p.Combine(num_tokens=tokens, hidden=hidden):
            return tokens * hidden
        case p.Slice():
            return 0 if is_view(operation) else part_elements(operation)
        case p.Concat(batch=batch, target=target, row_width=width):
            return num_tokens(target.block, batch) * target.num_cells * width
        case p.Collective(shape=shape, kind=kind, ranks=ranks):
            scale = {"all_gather": len(ranks), "reduce_scatter": 1 / len(ranks)}.get(kind, 1)
            return int(shape[0] * shape[1] * scale)
        case _:
            return 0


def part_elements(operation: p.Slice) -> int:
    return num_tokens(operation.target.block, operation.batch) * operation.target.num_cells * operation.row_width


def is_view(operation: p.Slice) -> bool:
    return contiguous_rows(operation.batch, operation.source, operation.target) is not None
