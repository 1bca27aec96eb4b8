"""Threshold: the documents' formula, the closed-form break-even of a pool, and the planner's own by bisection.

Documents: threshold = argmin_t(Attention(t) > FFN(t) + Communication): the least t at which attention takes longer.
With their 35, 45 and 8 ms at 4096 tokens, attention quadratic and feed-forward linear in t (x = t / 4096):

    45·x² > 35·x + 8   ⇔   x > (35 + sqrt(35² + 4·45·8)) / (2·45) = (35 + 51.62) / 90 = 0.9625   →   t* = 3942

Closed form (causal prefill, every key byte enters each pool node once, r = kv_heads/heads, g rails of β bytes/s, F
FLOP/s, s bytes an element): a pool of p pays when moving q, k, v and o costs less than the attention it takes over:
n* = (2r + 1)·s·F / (2·g·β·(1/g − 1/p)). It is independent of batch and hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from simulator.errors import SpecError

DOCUMENTS_TOKENS = 4096
DOCUMENTS_FEED_FORWARD_S = 35e-3
DOCUMENTS_ATTENTION_S = 45e-3
DOCUMENTS_COMMUNICATION_S = 8e-3


def documents_threshold(
    *,
    attention_s: float = DOCUMENTS_ATTENTION_S,
    feed_forward_s: float = DOCUMENTS_FEED_FORWARD_S,
    communication_s: float = DOCUMENTS_COMMUNICATION_S,
    tokens: int = DOCUMENTS_TOKENS,
) -> int:
    """The t, in whole tokens, beyond which attention_s·x² > feed_forward_s·x + communication_s, x = t / ``tokens``."""
    root = sqrt(feed_forward_s**2 + 4 * attention_s * communication_s)
    return int((feed_forward_s + root) / (2 * attention_s) * tokens)


@dataclass(frozen=True, slots=True)
class Rails:
    """What decides whether a pool pays: g rails of β bytes/s a node, F FLOP/s a GPU, r = kv_heads/heads, s bytes."""

    rails: int
    rail_bytes_per_s: float
    compute_flop_per_s: float
    kv_ratio: float
    element_bytes: int = 2
    base_gpus: int = 8


def break_even_tokens(rails: Rails, pool: int) -> float:
    """n* of the module docstring, with the base's own GPUs as g of (1/g − 1/p); infinite for a pool no larger.

    Base attention: 2·n²·h·d/(F·base) seconds a sequence (causal: 4·n²·h·d/2). Pool: the same over p. Transfer:
    (2r + 1)·n·h·d·s bytes through rails·β. Equal at n* = (2r + 1)·s·F/(2·rails·β·(1/base − 1/p)).
    """
    if pool <= rails.base_gpus:
        return float("inf")
    saved = 1 / rails.base_gpus - 1 / pool
    moved = (2 * rails.kv_ratio + 1) * rails.element_bytes * rails.compute_flop_per_s
    return moved / (2 * rails.rails * rails.rail_bytes_per_s * saved)


@dataclass(frozen=True, slots=True)
class Found:
    """A threshold by bisection: tokens (None: not up to the largest length asked), the bracket it lies in, and the
    thresholds if the pool were 10 % slower or faster."""

    tokens: int | None
    low: int
    high: int
    pool_slower: int | None
    pool_faster: int | None


Times = Callable[[int], tuple[float, float]]
"""Tokens → seconds (without a pool, with the best one)."""


def bisect_threshold(times: Times, *, low: int = 256, high: int = 262144, tolerance: float = 0.01) -> Found:
    """The length from which a pool is faster, to ``tolerance``; one crossing is assumed between ``low`` and ``high``.

    ±10 % sensitivity uses the lengths already tried and as few new ones as its own bisection needs.
    """
    if low >= high:
        raise SpecError(f"threshold: low {low} must be below high {high}")
    known: dict[int, tuple[float, float]] = {}

    def ask(tokens: int) -> tuple[float, float]:
        if tokens not in known:
            known[tokens] = times(tokens)
        return known[tokens]

    tokens, bracket = _crossing(ask, 1.0, low, high, tolerance)
    slower, _ = _crossing(ask, 1.1, low, high, tolerance)
    faster, _ = _crossing(ask, 0.9, low, high, tolerance)
    return Found(tokens, *bracket, slower, faster)


def _crossing(times: Times, factor: float, low: int, high: int, tolerance: float) -> tuple[int | None, tuple[int, int]]:
    """The least length (on a bisected grid) at which factor × pool < alone."""

    def pays(tokens: int) -> bool:
        alone_s, pool_s = times(tokens)
        return factor * pool_s < alone_s

    if pays(low):
        return low, (low, low)
    if not pays(high):
        return None, (high, high)
    while high - low > max(1, round(low * tolerance)):
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high, (low, high)
