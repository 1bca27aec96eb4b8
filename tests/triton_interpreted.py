"""Triton's kernels under its interpreter, in a process of its own: TRITON_INTERPRET must be set before it is loaded.

Run by ``test_triton``; prints one line a check and fails on the first that is wrong. fp16 stands for half precision:
the interpreter, being numpy, multiplies no bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from executor.attention import attention
from executor.attention_backends import attend, probe
from executor.experts import top_experts
from executor.triton_attention import attend as attend_by_map
from executor.triton_routing import route
from simulator.program import Attention, Chunk, Segment

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=GENERATOR).to(dtype)


def close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    error = float((ours.float() - theirs.float()).abs().max())
    assert error <= tolerance, f"{what}: off by {error:.3g}"
    print(f"{what}: {error:.1e}")


def plain_shapes() -> None:
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float16, 4e-3)):
        for queries, keys, causal in ((40, 40, True), (7, 100, False), (1, 70, False)):
            q, k, v = random(2, queries, 6, 24, dtype=dtype), *(random(2, keys, 3, 24, dtype=dtype) for _ in "kv")
            ours, lse = attend(q, k, v, causal=causal, backend="triton")
            want, want_lse = attend(q, k, v, causal=causal, backend="math")
            close(ours, want, tolerance, f"{dtype} {queries}×{keys}")
            close(lse, want_lse, 2e-6, "log-sum-exp")


def uneven_heads() -> None:
    """Query heads 3 to 8 of groups of 4: served by KV heads 0 (once) and 1 (four times)."""
    segments = (
        Segment(2, (Chunk(5, 0, 9, True), Chunk(3, 4, 20, False)), 20),
        Segment(1, (Chunk(70, 0, 80, True),), 80),
    )
    tokens = sum(segment.count * sum(chunk.num_queries for chunk in segment.chunks) for segment in segments)
    operation = Attention(
        reads=("q", "kv"), writes=("o", "o.lse"), layer=0, micro_batch=0, segments=segments, num_tokens=tokens,
        heads=(3, 8), kv_heads=(0, 2), group_size=4, head_dim=16, window=0, decode=False,
    )  # fmt: skip
    q, kv = random(tokens, 5, 16), [random(s.count, s.kv_rows, 2, 2, 16) for s in segments]
    ours, want = attention(operation, q, kv, "triton"), attention(operation, q, kv, "cpu_flash")
    close(ours[0], want[0], 2e-6, "uneven heads in one launch")
    close(ours[1], want[1], 2e-6, "their log-sum-exp")
    k, v = kv[1][:, :, 0], kv[1][:, :, 1]
    mapped, _ = attend_by_map(random(1, 4, 3, 16), k, v, causal=False, serving=(1, 0, 1))
    assert mapped.shape == (1, 4, 3, 16)


def routing() -> None:
    for experts, top_k in ((11, 3), (8, 2), (2, 1)):
        logits = random(50, experts)
        ours, gates, counts = route(logits, top_k)
        want, want_gates = top_experts(logits, top_k, "torch")
        assert torch.equal(ours, want)
        close(gates, want_gates, 1e-6, f"gates of {top_k} of {experts}")
        assert torch.equal(counts.long(), torch.bincount(want.flatten(), minlength=experts))
    tied, _, _ = route(torch.zeros(3, 5), 2)
    assert tied.tolist() == [[0, 1]] * 3


if __name__ == "__main__":
    assert probe("triton", CPU, torch.float32, 64) is None, probe("triton", CPU, torch.float32, 64)
    plain_shapes()
    uneven_heads()
    routing()
