"""Kernels' FLOPs and bytes: hand-computed values, and the closed forms against counting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulator.kernel import (
    AttentionDecode,
    AttentionPrefill,
    Gemm,
    GroupCollective,
    Memory,
    Moe,
    attended_pairs,
    expert_rows,
    flops,
    memory_bytes,
)


def test_gemm_counts_two_flops_a_multiply_add_and_each_operand_once() -> None:
    gemm = Gemm(m=2, n=3, k=5)
    assert flops(gemm) == 60  # 2*2*3*5
    assert memory_bytes(gemm) == 62  # (2*5 + 5*3 + 2*3) * 2 B


def test_doubling_sequence_length_quadruples_prefill_attention_flops_without_a_mask() -> None:
    short = AttentionPrefill(1, 512, 512, 8, 8, 64, causal=False)
    long = AttentionPrefill(1, 1024, 1024, 8, 8, 64, causal=False)
    assert flops(long) == 4 * flops(short)


def test_causal_square_scores_the_lower_triangle() -> None:
    assert attended_pairs(4, 4, causal=True) == 10  # 1+2+3+4


def test_causal_rectangle_is_aligned_bottom_right() -> None:
    # two queries at the end of five keys see 4 and 5 of them
    assert attended_pairs(2, 5, causal=True) == 9


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 50))
def test_attended_pairs_equals_counting_each_query(seq_q: int, past: int, window: int) -> None:
    seq_kv = seq_q + past
    counted = 0
    for query in range(seq_q):
        seen = past + query + 1
        counted += min(seen, window) if window else seen
    assert attended_pairs(seq_q, seq_kv, causal=True, window=window) == counted


@given(st.integers(1, 12), st.integers(1, 30))
def test_query_blocks_score_what_the_whole_prompt_scores(blocks: int, block: int) -> None:
    whole = attended_pairs(blocks * block, blocks * block, causal=True)
    assert whole == sum(attended_pairs(block, (i + 1) * block, causal=True) for i in range(blocks))


def test_decode_reads_the_cache_once_and_only_the_window_of_it() -> None:
    decode = AttentionDecode(batch=2, context=100, heads=8, kv_heads=2, head_dim=16)
    assert memory_bytes(decode) == 2 * (2 * 8 + 2 * 100 * 2) * 16 * 2
    windowed = AttentionDecode(2, 100, 8, 2, 16, window=10)
    assert flops(windowed) == 4 * 2 * 8 * 16 * 10


def test_routed_experts_share_rows_over_the_expert_parallel_group() -> None:
    moe = Moe(tokens=10, hidden=4, inter=8, topk=2, experts=4, tp=2, ep=4)
    assert expert_rows(moe) == 5  # 10*2/4
    assert flops(moe) == 2 * 3 * 5 * 4 * 4  # three matrices of 4 x 8/2
    # one local expert touched: 3*4*4 weights, 5 rows in and out of width 4, 2 B each
    assert memory_bytes(moe) == (48 + 2 * 5 * 4) * 2


def test_copies_and_collectives_do_no_flops() -> None:
    assert flops(Memory("norm", 100)) == flops(GroupCollective("all_reduce", 100, 8)) == 0
    assert memory_bytes(Memory("norm", 100)) == 100
