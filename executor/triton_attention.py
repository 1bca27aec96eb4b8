"""Attention in Triton with a head map: each program computes one block of queries of one head that this rank owns.

The documents' first kernel (MA Separation, "CUDA kernel optimizations": ``attention_kernel(…, head_mapping)``): which
query head a program takes and which KV head serves it are read from two small tables, so a rank's heads may be uneven
(3 of 8 with groups of 2) and need one launch instead of one a run of equal groups. FlashAttention-2's forward pass
(Dao 2023, algorithm 1): online softmax in base 2, log-sum-exp kept. Imported only when asked for; needs ``triton``.

What it leaves out: splitting the keys of one query over programs (flash decoding), so long decodes use few of a GPU's
SMs; dropout; masks other than causal.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LN2 = 0.6931471805599453
MAX_BLOCK = {2: 64, 4: 32}  # queries and keys of a program by bytes an element: fp32 fits an A100's 163 KiB so
MIN_BLOCK = 16  # tl.dot takes no fewer rows


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q, k, v, o, lse, query_heads, kv_heads,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head, o_batch, o_row, o_head, lse_batch, lse_head,
    num_queries, num_keys, scale,
    CAUSAL: tl.constexpr, EXACT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One block of BLOCK_M queries of one owned head. ``scale`` is log2(e)/√D."""
    block, owned, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query_head = tl.load(query_heads + owned).to(tl.int64)
    kv_head = tl.load(kv_heads + owned).to(tl.int64)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_DIM)
    inside = (rows[:, None] < num_queries) & (dims[None, :] < HEAD_DIM)
    start_q = q + batch.to(tl.int64) * q_batch + query_head * q_head
    queries = tl.load(start_q + rows[:, None] * q_row + dims[None, :], mask=inside, other=0.0)
    start_k = k + batch.to(tl.int64) * k_batch + kv_head * k_head
    start_v = v + batch.to(tl.int64) * v_batch + kv_head * v_head
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    found = tl.zeros([BLOCK_M, BLOCK_DIM], tl.float32)
    past = num_keys - num_queries
    stop = num_keys
    if CAUSAL:
        stop = tl.minimum(num_keys, past + (block + 1) * BLOCK_M)
    for first in range(0, stop, BLOCK_N):
        columns = first + tl.arange(0, BLOCK_N)
        held = (columns[:, None] < num_keys) & (dims[None, :] < HEAD_DIM)
        keys = tl.load(start_k + columns[:, None] * k_row + dims[None, :], mask=held, other=0.0)
        if EXACT:
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        else:
            scores = tl.dot(queries, tl.trans(keys)) * scale
        seen = columns[None, :] < num_keys
        if CAUSAL:
            seen = seen & (columns[None, :] <= rows[:, None] + past)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(shares, 1)
        values = tl.load(start_v + columns[:, None] * v_row + dims[None, :], mask=held, other=0.0)
        if EXACT:
            found = found * fade[:, None] + tl.dot(shares.to(values.dtype), values, input_precision="ieee")
        else:
            found = found * fade[:, None] + tl.dot(shares.to(values.dtype), values)
        highest = higher
    start_o = o + batch.to(tl.int64) * o_batch + query_head * o_head
    found = (found / total[:, None]).to(o.dtype.element_ty)
    tl.store(start_o + rows[:, None] * o_row + dims[None, :], found, mask=inside)
    start_lse = lse + batch.to(tl.int64) * lse_batch + query_head * lse_head
    tl.store(start_lse + rows, (highest + tl.log2(total)) * 0.6931471805599453, mask=rows < num_queries)  # · ln 2


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, serving: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """q [B, S, H, D], k and v [B, L, KV, D] → o [B, S, H, D], lse [B, H, S] fp32.

    ``serving[h]``: the KV head of query head h (None: H/KV query heads share one, in order). Causal masks are aligned
    at the bottom right; every query must see a key.
    """
    batch, num_queries, heads, head_dim = q.shape
    serving = serving or tuple(head * k.shape[2] // heads for head in range(heads))
    q, k, v = (value if value.stride(-1) == 1 else value.contiguous() for value in (q, k, v))
    o = torch.empty((batch, num_queries, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, num_queries), dtype=torch.float32, device=q.device)
    largest = MAX_BLOCK[q.element_size()]
    block = min(largest, max(MIN_BLOCK, triton.next_power_of_2(num_queries)))
    query_heads, kv_heads = _tables(serving, q.device)
    strides = [stride for value in (q, k, v, o) for stride in value.stride()[:3]]
    grid: Any = (triton.cdiv(num_queries, block), heads, batch)
    _forward[grid](
        q, k, v, o, lse, query_heads, kv_heads, *strides, *lse.stride()[:2],
        num_queries, k.shape[1], head_dim**-0.5 / LN2,
        CAUSAL=causal, EXACT=q.dtype == torch.float32, HEAD_DIM=head_dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)), BLOCK_M=block, BLOCK_N=largest,
    )  # fmt: skip
    return o, lse


@cache
def _tables(serving: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The head map on the device, copied there once."""
    heads = torch.arange(len(serving), dtype=torch.int32, device=device)
    return heads, torch.tensor(serving, dtype=torch.int32).to(device)
