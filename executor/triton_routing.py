"""Expert routing in Triton: softmax, top-k, normalised gates and how often each expert was chosen, in one pass.

The documents' second kernel (MA Separation: ``expert_routing_kernel(gate_scores, expert_assignments, expert_counts,
…)``). A program takes a block of tokens with all of their scores; ties go to the expert of the lower number. Imported
only when asked for; needs ``triton``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 16


@triton.jit
def _route(  # type: ignore[no-untyped-def]
    scores, experts, gates, counts, num_tokens, num_experts,
    TOP_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_E)
    inside = (tokens[:, None] < num_tokens) & (columns[None, :] < num_experts)
    where = tokens[:, None].to(tl.int64) * num_experts + columns[None, :]
    logits = tl.load(scores + where, mask=inside, other=float("-inf")).to(tl.float32)
    logits = tl.where(tokens[:, None] < num_tokens, logits, 0.0)
    highest = tl.max(logits, 1)
    shares = tl.exp(logits - highest[:, None])
    shares = tl.where(columns[None, :] < num_experts, shares, -1.0)
    total = tl.zeros([BLOCK_T], tl.float32)
    left = shares
    for _ in tl.static_range(TOP_K):
        best = tl.argmax(left, 1, tie_break_left=True)
        total += tl.max(left, 1)
        left = tl.where(columns[None, :] == best[:, None], -1.0, left)
    left = shares
    for choice in tl.static_range(TOP_K):
        best = tl.argmax(left, 1, tie_break_left=True)
        share = tl.max(left, 1)
        left = tl.where(columns[None, :] == best[:, None], -1.0, left)
        place = tokens.to(tl.int64) * TOP_K + choice
        tl.store(experts + place, best.to(tl.int64), mask=tokens < num_tokens)
        tl.store(gates + place, share / total, mask=tokens < num_tokens)
        tl.atomic_add(counts + best, 1, mask=tokens < num_tokens)


def route(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """scores [T, experts] → experts [T, k] int64, gates [T, k] fp32 that sum to one, counts [experts] int32."""
    num_tokens, num_experts = scores.shape
    scores = scores.contiguous()
    experts = torch.empty((num_tokens, top_k), dtype=torch.int64, device=scores.device)
    gates = torch.empty((num_tokens, top_k), dtype=torch.float32, device=scores.device)
    counts = torch.zeros(num_experts, dtype=torch.int32, device=scores.device)
    grid: Any = (triton.cdiv(num_tokens, BLOCK_TOKENS),)
    _route[grid](
        scores, experts, gates, counts, num_tokens, num_experts,
        TOP_K=top_k, BLOCK_T=BLOCK_TOKENS, BLOCK_E=max(2, triton.next_power_of_2(num_experts)),
    )  # fmt: skip
    return experts, gates, counts
