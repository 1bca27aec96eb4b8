"""Dimension slices: attention whose heads are spread over ranks (two-level partitioning's exact forms).

Partial scores are whole matrices in memory and added up by an all-reduce before the softmax: eager, as nobody would run
it at length. Values narrower than the keys are padded with zeros, since fused kernels know one width.
Packed scores: sequence by sequence of every segment, [heads, queries, keys] each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from executor.rows import sequences_of
from simulator import program as p


def padded(operation: p.Attention, k: Tensor, v: Tensor) -> Tensor:
    """k [T, kv_heads, D] and v [T, kv_heads, value_dim] → kv [T, 2, kv_heads, D], the rest of v zero."""
    kv = k.new_empty((k.shape[0], 2, *k.shape[1:]))
    kv[:, 0] = k
    kv[:, 1, :, : operation.value_dim] = v
    kv[:, 1, :, operation.value_dim :] = 0
    return kv


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment's chunk: its sequences, first row in q (or o), its run of packed scores, and its keys and values
    [count, rows, 2, kv_heads, head_dim]."""

    count: int
    chunk: p.Chunk
    first_query: int
    first_score: int
    num_scores: int
    kv: Tensor


def scores(operation: p.Scores, q: Tensor, kv: Sequence[Tensor]) -> Tensor:
    """q·kᵀ/√scale_dim of every pair, [num_scores, 1]; ``kv`` by segment."""
    packed = q.new_empty((operation.num_scores, 1))
    scaled = q * operation.scale_dim**-0.5
    for part in _parts(operation, kv):
        keys = _grouped(operation, part, 0)
        queries = _rows(scaled, part.first_query, part.count, part.chunk.num_queries).transpose(1, 2)
        folded = queries.reshape(part.count, keys.shape[1], -1, operation.head_dim)
        into = packed[part.first_score : part.first_score + part.num_scores]
        torch.matmul(folded, keys.transpose(2, 3), out=into.view(*folded.shape[:3], keys.shape[2]))
    return packed


def weigh_values(operation: p.WeighValues, packed: Tensor, kv: Sequence[Tensor]) -> Tensor:
    """softmax(masked scores)·v, [T, heads, head_dim]; ``kv`` by segment."""
    heads = operation.heads[1] - operation.heads[0]
    o = packed.new_empty((operation.num_tokens, heads, operation.head_dim))
    for part in _parts(operation, kv):
        weighed = _weighed(operation, part, packed[part.first_score : part.first_score + part.num_scores])
        _rows(o, part.first_query, part.count, part.chunk.num_queries).copy_(weighed.transpose(1, 2))
        del weighed
    return o


def _weighed(operation: p.WeighValues, part: _Part, score: Tensor) -> Tensor:
    """softmax(masked scores)·v of one part, [count, heads, queries, head_dim]; few of its steps live at once."""
    values, length = _grouped(operation, part, 1), part.chunk.num_queries
    heads, keys = operation.heads[1] - operation.heads[0], values.shape[2]
    score = score.view(part.count, heads, length, keys)
    if part.chunk.causal:
        mask = hidden(length, keys, operation.window, score.device)
        score = score.masked_fill(mask, float("-inf"))
        del mask
    score = score.softmax(-1).view(part.count, values.shape[1], -1, keys)
    return torch.matmul(score, values).view(part.count, heads, length, operation.head_dim)


def hidden(num_queries: int, num_keys: int, window: int, device: torch.device) -> Tensor:
    """Keys a query must not see, aligned at the last; with a window also those too far back."""
    query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    key = torch.arange(num_keys, device=device)[None, :]
    return (key > query) | (key <= query - window) if window else key > query


def _parts(operation: p.Scores | p.WeighValues, kv: Sequence[Tensor]) -> Iterator[_Part]:
    heads = operation.heads[1] - operation.heads[0]
    queries = first = 0
    for segment, keys in zip(operation.segments, kv, strict=True):
        for chunk in segment.chunks:
            num = segment.count * heads * chunk.num_queries * (chunk.kv_stop - chunk.kv_start)
            yield _Part(segment.count, chunk, queries, first, num, keys[:, chunk.kv_start : chunk.kv_stop])
            queries += segment.count * chunk.num_queries
            first += num


def _rows(value: Tensor, first: int, count: int, length: int) -> Tensor:
    return sequences_of(value.narrow(0, first, count * length), count)


def _grouped(operation: p.Scores | p.WeighValues, part: _Part, which: int) -> Tensor:
    """k (0) or v (1), [count, kv_heads, rows, head_dim]: query heads that share one become rows of its product.

    KV heads are repeated where the range of query heads maps to them unevenly.
    """
    rows = part.kv[:, :, which].transpose(1, 2)
    start, stop = operation.heads
    if rows.shape[1] == 1 or (
        start % operation.group_size == 0 and stop - start == rows.shape[1] * operation.group_size
    ):
        return rows
    serving = torch.arange(start, stop, device=rows.device) // operation.group_size - operation.kv_heads[0]
    return rows[:, serving]
