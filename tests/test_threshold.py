"""Thresholds: the documents' formula, the closed form, and bisection."""

from __future__ import annotations

import pytest

from planner.threshold import Rails, bisect_threshold, break_even_tokens, documents_threshold
from simulator.errors import SpecError

A100_RAIL = 25e9  # HDR, bytes/s each way
A100_FLASH_FLOP_PER_S = 200e12  # what causal flash attention reaches of 312e12 (FACTS, section 3)


def test_documents_formula_gives_3942_tokens() -> None:
    # 45x² = 35x + 8 → x = (35 + sqrt(1225 + 1440))/90 = (35 + 51.6236)/90 = 0.962485; 4096·x = 3942.3…
    root = (35 + (35**2 + 4 * 45 * 8) ** 0.5) / 90
    assert int(root * 4096) == 3942
    assert documents_threshold() == 3942


def test_closed_form_break_even_is_inverse_in_rails() -> None:
    tokens = [break_even_tokens(Rails(rails, A100_RAIL, A100_FLASH_FLOP_PER_S, 1.0), 16) for rails in (8, 4, 2, 1)]
    # (2+1)·2·200e12 / (2·8·25e9·(1/8 − 1/16)) = 1.2e15 / 2.5e10 = 48000
    assert tokens[0] == pytest.approx(48000)
    assert [t / tokens[0] for t in tokens] == pytest.approx([1, 2, 4, 8])


def test_pool_no_larger_than_its_base_never_pays_in_the_closed_form() -> None:
    assert break_even_tokens(Rails(8, A100_RAIL, A100_FLASH_FLOP_PER_S, 1.0), 8) == float("inf")


def test_fewer_kv_heads_lower_the_break_even() -> None:
    rails = [Rails(8, A100_RAIL, A100_FLASH_FLOP_PER_S, ratio) for ratio in (1.0, 0.125)]
    many, few = (break_even_tokens(rail, 32) for rail in rails)
    assert few / many == pytest.approx((2 * 0.125 + 1) / 3)


def test_bisection_finds_a_crossing_and_its_sensitivity() -> None:
    # alone n², pool n²/2 + 500·n: equal at n = 1000; pool 10 % slower: n² = 0.55n² + 550n → 1222; faster: 818
    found = bisect_threshold(lambda n: (n**2, n**2 / 2 + 500 * n), low=16, high=65536, tolerance=0.001)
    assert found.tokens == pytest.approx(1000, rel=0.005)
    assert found.pool_slower == pytest.approx(550 / 0.45, rel=0.005)
    assert found.pool_faster == pytest.approx(450 / 0.55, rel=0.005)
    assert found.low <= 1000 <= found.high


def test_pool_that_never_pays_has_no_threshold() -> None:
    assert bisect_threshold(lambda n: (1.0, 2.0)).tokens is None
    with pytest.raises(SpecError, match="must be below"):
        bisect_threshold(lambda n: (1.0, 2.0), low=8, high=8)
