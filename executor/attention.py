"""Attention with log-sum-exp over the chunks of a program's ``Attention``, and the merge of partial results.

Every chunk is computed as *all keys before the square* plus *the causal square*, merged, because backends disagree
on where a causal mask is aligned when query and key lengths differ. Rows that see no key are never given to a
backend (CPU flash returns lse 0 for them and crashes on empty keys): they are output 0, lse −inf.
A window applies to causal chunks; a chunk without a mask sees all of its keys, the lowering having trimmed them.

Queries, keys and values are [B, S, H, D] views; lse is [B, H, S] fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from executor.attention_backends import Backend, attend, mapped
from executor.rows import blocks, sequences_of
from simulator.program import Attention, Chunk
from simulator.tile import Span
from simulator.workspace import MIN_BAND_QUERIES


@dataclass(frozen=True, slots=True)
class HeadRun:
    """Query heads [q_start, q_stop) and KV heads [kv_start, kv_stop), each KV head serving ``members`` query heads, or
    query head i served by KV head ``serving[i]`` (Triton's kernel only)."""

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int
    members: int
    serving: tuple[int, ...] = ()


def head_map(heads: Span, kv_heads: Span, group_size: int) -> HeadRun:
    """All heads at once, uneven as they may be."""
    serving = tuple(head // group_size - kv_heads[0] for head in range(*heads))
    return HeadRun(0, len(serving), 0, kv_heads[1] - kv_heads[0], 0, serving)


def head_runs(heads: Span, kv_heads: Span, group_size: int) -> tuple[HeadRun, ...]:
    """Cut a head range into runs whose KV heads serve equally many of its query heads (at most three)."""
    runs: list[HeadRun] = []
    for kv in range(heads[0] // group_size, (heads[1] - 1) // group_size + 1):
        start = max(heads[0], kv * group_size) - heads[0]
        stop = min(heads[1], (kv + 1) * group_size) - heads[0]
        index = kv - kv_heads[0]
        if runs and runs[-1].members == stop - start:
            runs[-1] = HeadRun(runs[-1].q_start, stop, runs[-1].kv_start, index + 1, stop - start)
        else:
            runs.append(HeadRun(start, stop, index, index + 1, stop - start))
    return tuple(runs)


def attention(operation: Attention, q: Tensor, kv: Sequence[Tensor], backend: Backend) -> tuple[Tensor, Tensor]:
    """q [T, heads, d] against each segment's keys [count, rows, 2, kv_heads, d] → o like q, lse [T, heads] fp32."""
    runs = head_runs(operation.heads, operation.kv_heads, operation.group_size)
    if backend == "triton" and len(runs) > 1 and not operation.window:
        runs = (head_map(operation.heads, operation.kv_heads, operation.group_size),)
    if len(runs) == 1 and (chunk := sole_chunk(operation)) is not None:
        (_, _, keys), *_ = _chunks(operation, kv)
        return _in_one_call(chunk, runs[0], q, keys, backend)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    for rows, chunk, keys in _chunks(operation, kv):
        count, start = keys.shape[0], rows[0]
        per_sequence, offset = rows[1], rows[2]
        length = chunk.num_queries
        views = []
        for value in (q, o, lse):
            packed = sequences_of(value.narrow(0, start, count * per_sequence), count)
            views.append(packed.narrow(1, offset, length))
        for run in runs:
            _run_of_heads(chunk, run, views, keys, operation.window, backend)
    return o, lse


def sole_chunk(operation: Attention) -> Chunk | None:
    """The only chunk, if a backend's result is the operation's as it stands: every query sees a key, no band."""
    chunks = [chunk for segment in operation.segments for chunk in segment.chunks]
    if len(chunks) != 1:
        return None
    (chunk,) = chunks
    keys = chunk.kv_stop - chunk.kv_start
    blind = keys < (chunk.num_queries if chunk.causal else 1)
    banded = chunk.causal and 0 < operation.window < keys
    return None if blind or banded else chunk


def _in_one_call(chunk: Chunk, run: HeadRun, q: Tensor, kv: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """The backend's result itself: nothing is copied."""
    queries = sequences_of(q, kv.shape[0])
    k, v = kv[:, :, 0, run.kv_start : run.kv_stop], kv[:, :, 1, run.kv_start : run.kv_stop]
    if run.serving:
        o, lse = mapped(queries, k, v, causal=chunk.causal, serving=run.serving)
    else:
        o, lse = chunk_attention(queries, k, v, chunk.causal, backend)
    return o.reshape(q.shape), lse.transpose(1, 2).reshape(q.shape[:2])


def _chunks(operation: Attention, kv: Sequence[Tensor]) -> Iterator[tuple[tuple[int, int, int], Chunk, Tensor]]:
    """Every chunk with its query rows (first row of the segment, rows a sequence, offset) and its keys."""
    row = 0
    for segment, keys in zip(operation.segments, kv, strict=True):
        per_sequence = sum(chunk.num_queries for chunk in segment.chunks)
        offset = 0
        for chunk in segment.chunks:
            yield (row, per_sequence, offset), chunk, keys[:, chunk.kv_start : max(chunk.kv_start, chunk.kv_stop)]
            offset += chunk.num_queries
        row += segment.count * per_sequence


def _run_of_heads(chunk: Chunk, run: HeadRun, views: list[Tensor], keys: Tensor, window: int, backend: Backend) -> None:
    """Fill the heads of one run of o and lse for one chunk."""
    q, o, lse = (view[:, :, run.q_start : run.q_stop] for view in views)
    k = keys[:, :, 0, run.kv_start : run.kv_stop]
    v = keys[:, :, 1, run.kv_start : run.kv_stop]
    num_queries, num_keys = q.shape[1], k.shape[1]
    blind = max(0, num_queries - num_keys) if chunk.causal else (0 if num_keys else num_queries)
    if blind:
        o[:, :blind].zero_()
        lse[:, :blind].fill_(float("-inf"))
        q, o, lse = q[:, blind:], o[:, blind:], lse[:, blind:]
    if not q.shape[1]:
        return
    if chunk.causal and 0 < window < num_keys:
        _banded(q, k, v, o, lse, window, backend)
        return
    if run.serving:
        out, out_lse = mapped(q, k, v, causal=chunk.causal, serving=run.serving)
    else:
        out, out_lse = chunk_attention(q, k, v, chunk.causal, backend)
    o.copy_(out)
    lse.copy_(out_lse.transpose(1, 2))


def chunk_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, backend: Backend) -> tuple[Tensor, Tensor]:
    """[B, S, H, D] queries against at least as many keys (if causal, aligned at the bottom right)."""
    num_queries, num_keys = q.shape[1], k.shape[1]
    if num_queries == 1 or not causal:
        return _unmasked(q, k, v, backend)
    prefix = num_keys - num_queries
    square = attend(q, k[:, prefix:], v[:, prefix:], causal=True, backend=backend)
    if not prefix:
        return square
    return merge_two(*_unmasked(q, k[:, :prefix], v[:, :prefix], backend), *square)


def _unmasked(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """All keys. One query: its heads that share a KV head become that head's queries, so keys are read once."""
    members = q.shape[2] // k.shape[2]
    if q.shape[1] > 1 or members == 1:
        return attend(q, k, v, causal=False, backend=backend)
    batch, _, heads, head_dim = q.shape
    folded = q.view(batch, k.shape[2], members, head_dim).transpose(1, 2)
    o, lse = attend(folded, k, v, causal=False, backend=backend)
    return o.transpose(1, 2).reshape(batch, 1, heads, head_dim), lse.reshape(batch, heads, 1)


def _banded(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, window: int, backend: Backend) -> None:
    """Sliding window: blocks of queries, each against the few keys any of them sees, under a band mask."""
    past = k.shape[1] - q.shape[1]
    step = max(MIN_BAND_QUERIES, window)
    for start in range(0, q.shape[1], step):
        stop = min(start + step, q.shape[1])
        low, high = max(0, past + start - window + 1), past + stop
        if stop - start == 1:
            out, out_lse = _unmasked(q[:, start:stop], k[:, low:high], v[:, low:high], backend)
        else:
            i = torch.arange(past + start, past + stop, device=q.device)[:, None]
            j = torch.arange(low, high, device=q.device)[None, :]
            mask = torch.zeros((stop - start, high - low), dtype=q.dtype, device=q.device)
            mask.masked_fill_((j > i) | (j <= i - window), float("-inf"))
            out, out_lse = attend(
                q[:, start:stop], k[:, low:high], v[:, low:high], causal=False, backend=backend, mask=mask
            )
        o[:, start:stop] = out
        lse[:, start:stop] = out_lse.transpose(1, 2)
        del out, out_lse


def merge_two(o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Two partial results in a backend's layout (both finite): o = Σ oᵢ·exp(lseᵢ − lse), written over all of them."""
    lse = torch.logaddexp(lse1, lse2)
    share1 = lse1.sub_(lse).exp_().transpose(1, 2).unsqueeze(-1)
    share2 = lse2.sub_(lse).exp_().transpose(1, 2).unsqueeze(-1)
    for rows in blocks(o1.shape[1], o1.device, at_once=o1.shape[0]):
        o1[:, rows] = (o1[:, rows] * share1[:, rows]).add_(o2[:, rows] * share2[:, rows])
    return o1, lse


def merge(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """o_1 [T, H, D], lse_1 [T, H], o_2, … → o and lse over all parts' keys; a row no part saw is 0, −inf."""
    outputs, lses = parts[0::2], torch.stack(list(parts[1::2]))
    lse = torch.logsumexp(lses, dim=0)
    shares = lses.sub_(lse).exp_().nan_to_num_(0.0).unsqueeze(-1)
    merged = torch.empty(outputs[0].shape, dtype=outputs[0].dtype, device=lse.device)
    for rows in blocks(len(merged), lse.device):
        total = outputs[0][rows] * shares[0][rows]
        for output, share in zip(outputs[1:], shares[1:], strict=True):
            total += output[rows] * share[rows]
        merged[rows] = total
    return merged, lse
