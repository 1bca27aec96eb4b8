"""Attention with log-sum-exp: chunks, head ranges, windows and merges against scores formed whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from executor.attention import attention, head_runs, merge
from executor.attention_backends import Backend, attend, choose, probe
from simulator.program import Attention, Chunk, Segment
from simulator.tile import Span

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def operation(
    segments: Sequence[Segment], *, heads: Span = (0, 4), kv_heads: Span = (0, 2), group: int = 2, window: int = 0
) -> Attention:
    tokens = sum(segment.count * sum(chunk.num_queries for chunk in segment.chunks) for segment in segments)
    return Attention(
        reads=("q", "kv"), writes=("o", "o.lse"), layer=0, micro_batch=0, segments=tuple(segments), num_tokens=tokens,
        heads=heads, kv_heads=kv_heads, group_size=group, head_dim=8, window=window, decode=False,
    )  # fmt: skip


def values(op: Attention, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(op.num_tokens, op.heads[1] - op.heads[0], op.head_dim, generator=generator).to(dtype)
    kv_heads = op.kv_heads[1] - op.kv_heads[0]
    kv = [torch.randn(s.count, s.kv_rows, 2, kv_heads, op.head_dim, generator=generator).to(dtype) for s in op.segments]
    return q, kv


def eager(op: Attention, q: Tensor, kv: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Row by row, head by head, in fp64: what ``program.Attention`` and ``program.Chunk`` say."""
    o, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:2], float("-inf"), dtype=torch.float64)
    row = 0
    for segment, keys in zip(op.segments, kv, strict=True):
        for sequence in range(segment.count):
            for chunk in segment.chunks:
                for index in range(chunk.num_queries):
                    stop = chunk.kv_stop - (chunk.num_queries - 1 - index) if chunk.causal else chunk.kv_stop
                    start = max(chunk.kv_start, stop - op.window) if op.window and chunk.causal else chunk.kv_start
                    for head in range(*op.heads) if stop > start else ():
                        part = keys[sequence, start:stop, :, head // op.group_size - op.kv_heads[0]].double()
                        scores = part[:, 0] @ q[row, head - op.heads[0]].double() / op.head_dim**0.5
                        o[row, head - op.heads[0]] = scores.softmax(0) @ part[:, 1]
                        lse[row, head - op.heads[0]] = scores.logsumexp(0)
                    row += 1
    return o, lse


def assert_right(op: Attention, dtype: torch.dtype = torch.float32, backend: Backend = "cpu_flash") -> None:
    q, kv = values(op, dtype)
    o, lse = attention(op, q, kv, backend)
    want, want_lse = eager(op, q, kv)
    assert (o.double() - want).abs().max() <= TOLERANCE[dtype]
    assert torch.equal(torch.isinf(lse), torch.isinf(want_lse))
    seen = torch.isfinite(want_lse)
    error = (lse.double() - want_lse)[seen].abs()
    assert bool((error <= (2e-6 if dtype == torch.float32 else 2e-2)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 1, 3, 70])
@pytest.mark.parametrize("causal", [True, False])
def test_chunks_of_ragged_sequences(dtype: torch.dtype, window: int, causal: bool) -> None:
    segments = (
        Segment(2, (Chunk(5, 0, 9, causal), Chunk(3, 4, 20, causal)), 20),
        Segment(1, (), 4),
        Segment(1, (Chunk(90, 0, 100, causal),), 100),
        Segment(3, (Chunk(1, 2, 7, causal),), 8),
    )
    assert_right(operation(segments, window=window), dtype)


def test_rows_that_see_no_key_are_zero_with_lse_minus_infinity() -> None:
    segments = (Segment(2, (Chunk(4, 0, 0, False), Chunk(5, 0, 2, True)), 2), Segment(1, (Chunk(3, 0, 0, True),), 0))
    op = operation(segments)
    assert_right(op)
    q, kv = values(op)
    o, lse = attention(op, q, kv, "cpu_flash")
    blind = [0, 1, 2, 3, 4, 5, 6]  # 4 without keys; the last two of five queries see keys 0 and 0–1
    assert not o[blind].any()
    assert bool(torch.isneginf(lse[blind]).all())


@given(
    group=st.integers(1, 4),
    first=st.integers(0, 6),
    count=st.integers(1, 7),
    queries=st.integers(1, 6),
    keys=st.integers(0, 9),
    causal=st.booleans(),
    window=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_any_range_of_heads_maps_to_its_kv_heads(
    group: int, first: int, count: int, queries: int, keys: int, causal: bool, window: int
) -> None:
    heads = (first, first + count)
    kv_heads = (first // group, (first + count - 1) // group + 1)
    segments = (Segment(2, (Chunk(queries, 0, keys, causal),), keys),)
    assert_right(operation(segments, heads=heads, kv_heads=kv_heads, group=group, window=window))


def test_uneven_head_ranges_need_at_most_three_runs() -> None:
    # group of 4, heads 3…12: one head of KV head 0, all four of 1 and 2, one of 3
    runs = head_runs((3, 13), (0, 4), 4)
    assert [(run.q_start, run.q_stop, run.kv_start, run.kv_stop, run.members) for run in runs] == [
        (0, 1, 0, 1, 1),
        (1, 9, 1, 3, 4),
        (9, 10, 3, 4, 1),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cuts", [(0, 13, 40), (0, 0, 25, 40), (0, 1, 2, 3, 40, 40)])
def test_merged_parts_of_the_keys_are_the_whole(dtype: torch.dtype, cuts: tuple[int, ...]) -> None:
    whole = operation((Segment(2, (Chunk(3, 0, 40, False),), 40),))
    q, kv = values(whole, dtype)
    parts: list[Tensor] = []
    for start, stop in pairwise(cuts):
        part = operation((Segment(2, (Chunk(3, start, stop, False),), 40),))
        parts.extend(attention(part, q, kv, "cpu_flash"))
    o, lse = merge(parts)
    want, want_lse = eager(whole, q, kv)
    assert (o.double() - want).abs().max() <= TOLERANCE[dtype]
    assert (lse.double() - want_lse).abs().max() <= TOLERANCE[dtype]


def test_merging_parts_none_of_which_saw_a_key() -> None:
    o, lse = merge([torch.zeros(2, 1, 4), torch.full((2, 1), float("-inf"))] * 2)
    assert not o.any()
    assert bool(torch.isneginf(lse).all())


def test_math_backend_agrees_with_flash() -> None:
    assert_right(operation((Segment(1, (Chunk(5, 0, 12, True),), 12),)), backend="math")


def test_the_probe_calls_for_real_and_says_why_not() -> None:
    assert choose(CPU, torch.float32, 32) == "cpu_flash"
    assert probe("cpu_flash", CPU, torch.bfloat16, 64) is None
    assert probe("torch_cudnn", CPU, torch.float32, 32) is not None


def test_a_dense_mask_is_additive() -> None:
    q = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0.0, float("-inf"), 0.0]]).expand(3, 3).contiguous()
    o, _ = attend(q, q, q, causal=False, backend="cpu_flash", mask=mask)
    want, _ = attend(q, q[:, ::2], q[:, ::2], causal=False, backend="math")
    assert (o - want).abs().max() < 1e-6
