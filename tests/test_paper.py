"""Statements of the documents: complete, computed, and the documents' own rules by hand-computed values."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.documents import rules as documents
from planner.documents import separation, two_level
from planner.paper import experiments as paper_experiments
from planner.paper import replay as paper_replay
from planner.paper import speedup as paper_speedup
from planner.paper import statements as paper
from planner.paper import two_level as paper_two_level
from planner.paper.page import page
from planner.paper.statement import Statement, close, judged, specified, unverifiable
from planner.paper.steps import model, nodes
from simulator.lowering import lower
from simulator.placement import AttentionGrid, Placement, Stage
from simulator.program import Collective, Send
from simulator.workload import prefill_step

EXPECTED_IDS = [
    f"{letter}{number:02d}"
    for letter, count in (("F", 45), ("K", 10), ("E", 38), ("M", 32), ("T", 21))
    for number in range(1, count + 1)
]


@pytest.fixture(scope="module")
def rows() -> tuple[Statement, ...]:
    return paper.rows()


def by_id(rows: tuple[Statement, ...], wanted: str) -> Statement:
    return next(row for row in rows if row.id == wanted)


def test_every_statement_of_the_documents_has_one_row(rows: tuple[Statement, ...]) -> None:
    assert [row.id for row in rows] == EXPECTED_IDS
    assert len(rows) == 146


def test_every_row_says_claim_value_criterion_and_tag(rows: tuple[Statement, ...]) -> None:
    for row in rows:
        assert row.claim, row.id
        assert row.ours, row.id
        assert row.criterion, row.id
        assert row.tag in {"measured", "replayed", "imported", "fitted", "assumed", "derived"}
        if row.verdict == "only under assumption":
            assert row.assumptions, row.id


def test_every_specification_is_implemented(rows: tuple[Statement, ...]) -> None:
    assert [row.id for row in rows if row.verdict == "not implemented"] == []


def test_rows_take_less_than_twenty_seconds() -> None:
    paper.rows.cache_clear()
    start = time.perf_counter()
    paper.rows()
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("wanted", "verdict"),
    [
        ("F14", "inconsistent"),  # 0.805 B, or 13.15 B with 16 gated experts a layer
        ("F33", "inconsistent"),  # 1.6 + 32 + 20 = 53.6, not 65
        ("F38", "consistent"),  # 25 + 15 + 5 = 45
        ("M07", "inconsistent"),  # 32 // 12 = 2
        ("M20", "inconsistent"),  # 2·4096·1024·2048 = 17.18e9
        ("M27", "consistent"),  # 123.7 = 1.55 × 80
        ("T05", "inconsistent"),  # sixteen 256 × 256 blocks cover 1/16
        ("T15", "inconsistent"),  # 3·4096·256 = 3,145,728
        ("T18", "inconsistent"),  # 16 < 32
    ],
)
def test_arithmetic_decides_verdicts(rows: tuple[Statement, ...], wanted: str, verdict: str) -> None:
    assert by_id(rows, wanted).verdict == verdict


def test_verdicts_follow_the_documents_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_two_level, "PARAMETERS_AS_WRITTEN", 3_145_728)
    assert by_id(paper_two_level.rows(), "T15").verdict == "consistent"
    monkeypatch.setattr(paper_experiments, "FA_POOL_TPS", (26.7, 36.6, 70.0, 58.7))  # 2048/56, 8192/117, 16384/279
    assert by_id(paper_experiments.rows(), "E15").verdict == "consistent"


def test_no_row_uses_the_seed_replay(monkeypatch: pytest.MonkeyPatch, rows: tuple[Statement, ...]) -> None:
    def refuse() -> None:
        raise AssertionError("first principles must not use the fitted replay")

    monkeypatch.setattr(paper_replay, "replay", refuse)
    again = [row for part in paper.PARTS for row in part.rows()]
    assert sorted(again, key=lambda row: row.id) == sorted(rows, key=lambda row: row.id)


def test_verdict_words() -> None:
    assert judged("F01", "c", "o", holds=True).verdict == "consistent"
    assert judged("F01", "c", "o", holds=False, holds_if=True).verdict == "only under assumption"
    assert judged("F01", "c", "o", holds=False).verdict == "inconsistent"
    assert specified("F01", "c", "o", implemented=False).verdict == "not implemented"
    assert unverifiable("F01", "c", "o", why="w").verdict == "unverifiable"


def test_the_replay_fits_one_constant_and_nothing_else() -> None:
    found = paper_replay.replay()
    plain = [ours - found.constant_ms for ours in found.baseline_ms]

    def rms(constant: float) -> float:
        return paper_replay.relative_rms(tuple(p + constant for p in plain), paper_replay.BASELINE_MS)

    assert found.baseline_rms <= 0.15
    assert rms(found.constant_ms) <= min(rms(found.constant_ms - 1), rms(found.constant_ms + 1))
    assert found.fa_pool_rms > 0.15  # nobody tuned this column


@pytest.mark.parametrize("length", [2048, 8192, 16384])
def test_factors_of_a_speed_up_multiply_to_it(length: int) -> None:
    found = paper_speedup.split(length)
    assert found.total == pytest.approx(found.flash * found.over_flash_baseline)
    assert found.added_gpus >= 1
    assert found.communication <= 1
    assert found.overlap >= 1


def test_more_nics_break_even_earlier() -> None:
    lengths = [paper_speedup.break_even_tokens(nics) for nics in (8, 4, 2, 1)]
    assert lengths == sorted(lengths)


def test_closed_form_break_even_by_hand() -> None:
    # (2+1)·2 B·160e12 / (2·8·25e9·(1/8 − 1/32)) = 960e12 / 37.5e9 = 25,600 tokens
    assert paper_speedup.closed_form_break_even_tokens(8, 32, 160e12) == pytest.approx(25_600)


def test_the_page_holds_every_statement_and_both_parts(rows: tuple[Statement, ...]) -> None:
    text = page(rows)
    assert all(f"| {wanted} |" in text for wanted in EXPECTED_IDS)
    assert text.index("First principles") < text.index("Seed replay")
    assert "**fitted**" in text


def test_the_committed_page_has_every_statement() -> None:
    text = paper.DEFAULT_FILE.read_text(encoding="utf-8")
    assert all(f"| {wanted} |" in text for wanted in EXPECTED_IDS)


@given(st.integers(1, 5000), st.integers(1, 32))
def test_query_blocks_cover_every_query_once(num_tokens: int, pool_gpus: int) -> None:
    blocks = documents.query_blocks(num_tokens, pool_gpus)
    assert [i for start, stop in blocks for i in range(start, stop)] == list(range(num_tokens))
    assert len(blocks) <= pool_gpus
    work = sum(documents.causal_pairs(start, stop) for start, stop in blocks)
    assert work == num_tokens * (num_tokens + 1) // 2


def test_ceiling_can_leave_a_gpu_without_queries() -> None:
    assert documents.query_blocks(5, 4) == ((0, 2), (2, 4), (4, 5))  # b = 2: the fourth GPU idles


@pytest.mark.parametrize(
    ("length", "pool"), [(4095, 0), (4096, 8), (8191, 8), (8192, 16), (16384, 24), (32767, 24), (32768, 32)]
)
def test_allocate_gpus_at_its_boundaries(length: int, pool: int) -> None:
    assert documents.allocate_gpus(length) == (8, pool)


def test_threshold_from_their_three_times() -> None:
    # 4096·(35 + √(35² + 4·45·8)) / 90 = 4096·(35 + 51.62)/90 = 3942
    assert round(documents.threshold_tokens()) == 3942


@pytest.mark.parametrize("pool", [8, 16, 24, 32])
def test_contiguous_causal_blocks_are_up_to_twice_the_mean(pool: int) -> None:
    assert documents.causal_imbalance(512 * pool, pool) == pytest.approx(2 - 1 / pool, rel=0.01)


def test_a_pool_of_33_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 32"):
        documents.check_pool_size(33)


@given(st.integers(1, 128), st.integers(1, 64))
def test_heads_are_dealt_whole_and_differ_by_at_most_one(heads: int, gpus: int) -> None:
    sizes = separation.distribute_heads(heads, gpus)
    assert sum(sizes) == heads
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)


def test_twelve_attention_gpus_are_no_faster_than_eleven() -> None:
    assert separation.fewest_gpus_as_fast(32, 12) == 11


def test_dispatch_needs_fewer_copies_than_broadcast() -> None:
    # 4·(1 − C(12,2)/C(16,2)) = 4·(1 − 66/120) = 1.8
    assert separation.dispatch_copies(16, 4, 2) == pytest.approx(1.8)


def test_hierarchical_bytes_by_hand() -> None:
    # S = 17.18 GB: 3/4·S in the node, 2·(2/3)·S/4 across 3 nodes
    found = separation.hierarchical_bytes(12_000, 4, 3)
    assert (found.reduce_scatter, found.between_nodes, found.all_gather) == (9_000, 4_000, 9_000)


@given(st.integers(0, 2**32 - 1))
def test_int8_round_trip_errs_by_at_most_half_a_step(seed: int) -> None:
    gradient = np.random.default_rng(seed).standard_normal(257).astype(np.float32)
    quantised, scale = separation.quantise_int8(gradient)
    assert np.abs(quantised * scale - gradient).max() <= scale * 0.5001


def test_zero_gradients_quantise_to_zero() -> None:
    quantised, scale = separation.quantise_int8(np.zeros(4, dtype=np.float32))
    assert scale == 0.0
    assert not quantised.any()


def test_top_ten_per_cent_saves_seventy_per_cent_not_ninety() -> None:
    assert separation.top_k_bytes(1000) / 2000 == pytest.approx(0.3)  # 100·(2 + 4) / 2000


def test_capacity_one_drops_less_with_more_tokens() -> None:
    rng = np.random.default_rng(0)
    few, many = (separation.dropped_share(tokens, 16, 2, 1.0, rng) for tokens in (256, 65536))
    assert 0 < many < few < 0.2
    assert separation.dropped_share(256, 16, 2, 16.0, rng) == 0.0


def test_slices_with_their_own_softmax_are_another_model() -> None:
    per_slice, score_sum = two_level.form_errors(np.random.default_rng(3))
    assert per_slice > 0.5
    assert score_sum < 1e-12


def test_exact_two_level_forms_move_the_bytes_of_the_table() -> None:
    sizes = two_level.TwoLevel()
    # scores: 128·8·10000²·2 B = 204.8 GB, ring 2·3/4; Q, K: 3·2·128·10000·256·2 B
    assert two_level.moved_bytes(sizes, "score_sum") == pytest.approx(307.2e9)
    assert two_level.moved_bytes(sizes, "gather_qk") == pytest.approx(3.93216e9)
    assert two_level.moved_bytes(sizes, "per_slice") == 0


@pytest.mark.parametrize("form", two_level.FORMS)
def test_lowered_forms_send_the_bytes_of_the_table(form: two_level.Form) -> None:
    sizes = two_level.TwoLevel(batch=2, length=640)
    ranks = tuple(range(16))
    grid = AttentionGrid(heads=(8,) * 4, dim_slices=4)
    stage = Stage(
        first_layer=0, last_layer=1, attention_ranks=ranks, grid=grid, feed_forward_ranks=ranks, tensor_degree=16
    )
    placement = Placement(name=form, stages=(stage,), dim_mode=form)
    lowered = lower(model("two-level"), prefill_step(2, 640), placement, nodes=nodes("a100-4x4"))
    sent = 0.0
    for operation in lowered.ranks[0]:
        if isinstance(operation, Send) and operation.layer == 0:
            sent += operation.num_bytes
        elif isinstance(operation, Collective) and len(operation.ranks) == sizes.slices:
            sent += 2 * (sizes.slices - 1) / sizes.slices * operation.num_bytes  # a ring all-reduce of the scores
    assert sent == two_level.moved_bytes(sizes, form)


@pytest.mark.parametrize("causal", [True, False])
def test_query_blocks_attend_as_the_whole(causal: bool) -> None:
    q, k, v = np.random.default_rng(1).standard_normal((3, 37, 8))
    whole = documents.attend(q, k, v, causal=causal)
    np.testing.assert_allclose(documents.attend_by_blocks(q, k, v, 5, causal=causal), whole, atol=1e-12)


def test_slices_must_divide_the_head_dimension() -> None:
    with pytest.raises(ValueError, match="head_dim 128"):
        two_level.TwoLevel(slices=5)


def test_amdahl_share_inverts_amdahl() -> None:
    share = documents.amdahl_share(2.0, 4)
    assert 1 / (1 - share + share / 4) == pytest.approx(2.0)
    assert documents.amdahl_share(2.1, 2) > 1  # 2.1× on 16 instead of 8 GPUs is impossible
    assert math.isclose(documents.amdahl_share(3.0, 4), 8 / 9)


def test_close_is_relative_to_the_claim() -> None:
    assert close(95, 100)
    assert not close(94, 100)
