"""Dimension slices: attention whose heads are spread over ranks (two-level partitioning's exact forms).

Partial scores are whole matrices in memory and added up by an all-reduce before the softmax: eager, as nobody would run
it at length. Values narrower than the keys are padded with zeros, since fused kernels know one width.
Packed scores: sequence by sequence of every segment, [heads, queries, keys] each.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """A segment's chunk: its sequences, its rows in q (or o) and in kv, its run of packed scores."""

    count: int
    chunk: p.Chunk
    queries: int
    keys: int
    first_score: int
    num_scores: int


def scores(operation: p.Scores, q: Tensor, kv: Tensor) -> Tensor:
    """q·kᵀ/√scale_dim of every pair, [num_scores, 1]."""
    packed = q.new_empty((operation.num_scores, 1))
    scaled = q * operation.scale_dim**-0.5
    for part in _parts(operation):
        queries = _rows(scaled, part.queries, part.count, part.chunk.num_queries)
        keys = _keys(operation, kv, part, 0)
        into = packed[part.first_score : part.first_score + part.num_scores]
        shape = (part.count, queries.shape[2], part.chunk.num_queries, keys.shape[1])
        torch.matmul(queries.transpose(1, 2), keys.permute(0, 2, 3, 1), out=into.view(shape))
    return packed


def weigh_values(operation: p.WeighValues, packed: Tensor, kv: Tensor) -> Tensor:
    """softmax(masked scores)·v, [T, heads, head_dim]."""
    heads = operation.heads[1] - operation.heads[0]
    o = packed.new_empty((operation.num_tokens, heads, operation.head_dim))
    for part in _parts(operation):
        values = _keys(operation, kv, part, 1)
        shape = (part.count, heads, part.chunk.num_queries, values.shape[1])
        score = packed[part.first_score : part.first_score + part.num_scores].view(shape)
        if part.chunk.causal:
            score = score.masked_fill(hidden(shape[2], shape[3], operation.window, score.device), float("-inf"))
        weighed = torch.matmul(score.softmax(-1), values.transpose(1, 2))
        _rows(o, part.queries, part.count, shape[2]).copy_(weighed.transpose(1, 2))
    return o


def hidden(num_queries: int, num_keys: int, window: int, device: torch.device) -> Tensor:
    """Keys a query must not see, aligned at the last; with a window also those too far back."""
    query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    key = torch.arange(num_keys, device=device)[None, :]
    return (key > query) | (key <= query - window) if window else key > query


def _parts(operation: p.Scores | p.WeighValues) -> Iterator[_Part]:
    heads = operation.heads[1] - operation.heads[0]
    queries = keys = first = 0
    for segment in operation.segments:
        for chunk in segment.chunks:
            num = segment.count * heads * chunk.num_queries * (chunk.kv_stop - chunk.kv_start)
            yield _Part(segment.count, chunk, queries, keys, first, num)
            queries += segment.count * chunk.num_queries
            first += num
        keys += segment.count * segment.kv_rows


def _rows(value: Tensor, first: int, count: int, length: int) -> Tensor:
    return sequences_of(value.narrow(0, first, count * length), count)


def _keys(operation: p.Scores | p.WeighValues, kv: Tensor, part: _Part, which: int) -> Tensor:
    """k (0) or v (1) of a part, [count, rows, heads, width]: every query head's own."""
    rows = _rows(kv, part.keys, part.count, part.chunk.kv_stop)[:, part.chunk.kv_start :, which]
    serving = torch.arange(*operation.heads, device=kv.device) // operation.group_size - operation.kv_heads[0]
    return rows if operation.group_size == 1 else rows[:, :, serving]
