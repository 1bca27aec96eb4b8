"""The FA Pool documents' own rules, as plain functions.

What it models: the rules exactly as written (block size, GPU allocation, threshold, categories). Their metrics are in
``simulator.metrics``, beside attnplan's. What it ignores: everything physical; see ``paper_*.py``.
Source: FA Pool documents, methodology, keypoints and experiments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BASE_GPUS = 8  # "8 GPUs dedicated to base layer operations"
MAX_POOL_GPUS = 32  # "Maximum GPUs: 32 additional GPUs"
THRESHOLD_TOKENS = 4096  # "Sequence length ≥ 4096 tokens"
POOL_STEPS = ((4096, 0), (8192, 8), (16384, 16), (32768, 24))  # (below this length, pool GPUs); else 32
CATEGORY_EDGES = (("short", 512), ("medium", 2048), ("long", 8192), ("very long", 32768))
"""Lower edges; half-open here, because the documents' ranges overlap at their edges."""


def allocate_gpus(sequence_length: int) -> tuple[int, int]:
    """(base GPUs, pool GPUs) of ``allocate_gpus`` in the documents, boundaries and all."""
    for limit, pool_gpus in POOL_STEPS:
        if sequence_length < limit:
            return BASE_GPUS, pool_gpus
    return BASE_GPUS, MAX_POOL_GPUS


def activates_pool(sequence_lengths: Sequence[int], threshold_tokens: int = THRESHOLD_TOKENS) -> bool:
    """The batch-level check: its longest sequence decides."""
    return max(sequence_lengths) >= threshold_tokens


def check_pool_size(pool_gpus: int) -> int:
    """``pool_gpus``, or ValueError beyond the documents' maximum."""
    if not 0 <= pool_gpus <= MAX_POOL_GPUS:
        raise ValueError(f"pool of {pool_gpus} GPUs; the documents allow 0 to {MAX_POOL_GPUS}")
    return pool_gpus


def block_size(num_tokens: int, pool_gpus: int) -> int:
    """b = ceil(n / p)."""
    return -(-num_tokens // pool_gpus)


def query_blocks(num_tokens: int, pool_gpus: int) -> tuple[tuple[int, int], ...]:
    """[i·b, min((i+1)·b, n)) of every GPU that gets any query; fewer than p where b overshoots (n=5, p=4: 3)."""
    size = block_size(num_tokens, pool_gpus)
    return tuple((start, min(start + size, num_tokens)) for start in range(0, num_tokens, size))


def causal_pairs(start: int, stop: int) -> int:
    """(query, key) pairs of queries [start, stop) under a causal mask: Σ (i+1) = (stop² + stop − start² − start)/2."""
    return (stop * (stop + 1) - start * (start + 1)) // 2


def causal_imbalance(num_tokens: int, pool_gpus: int) -> float:
    """Largest over mean causal work of the documents' contiguous blocks; tends to 2 − 1/p.

    The last of p equal blocks sees n²/p − n²/2p² pairs, the mean is n²/2p: the ratio is 2 − 1/p.
    """
    work = [causal_pairs(start, stop) for start, stop in query_blocks(num_tokens, pool_gpus)]
    return max(work) * pool_gpus / sum(work)


def attend(q: Floats, k: Floats, v: Floats, *, first_row: int = 0, causal: bool = True) -> Floats:
    """[rows, d] attention in double precision; row i of ``q`` is query ``first_row`` + i."""
    scores = q @ k.T / math.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.arange(len(k)) <= first_row + np.arange(len(q))[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True) @ v)


def attend_by_blocks(q: Floats, k: Floats, v: Floats, pool_gpus: int, *, causal: bool = True) -> Floats:
    """The documents' algorithm: O_i = attention(Q_i, K, V), concatenated; the mask must know each block's first row."""
    blocks = query_blocks(len(q), pool_gpus)
    return np.concatenate([attend(q[a:b], k, v, first_row=a, causal=causal) for a, b in blocks])


@dataclass(frozen=True, slots=True)
class Measured:
    """The documents' three times at one length, in seconds."""

    attention_s: float = 45e-3
    feed_forward_s: float = 35e-3
    communication_s: float = 8e-3
    tokens: int = 4096


def threshold_tokens(measured: Measured | None = None) -> float:
    """The smallest t with Attention(t) > FFN(t) + Communication: quadratic, linear and linear through ``measured``.

    Communication is read as constant ("8 ms for 8 pool GPUs"): a·x² = f·x + c with x = t/n. Linear in t it would be
    t = n·(f + c)/a; see ``threshold_tokens_by_reading``.
    """
    found = measured or Measured()
    a, f, c = found.attention_s, found.feed_forward_s, found.communication_s
    return found.tokens * (f + math.sqrt(f * f + 4 * a * c)) / (2 * a)


def threshold_tokens_by_reading(measured: Measured | None = None) -> tuple[float, float, float]:
    """(communication constant, communication linear, feed-forward and communication constant)."""
    found = measured or Measured()
    overhead = (found.feed_forward_s + found.communication_s) / found.attention_s
    return threshold_tokens(found), found.tokens * overhead, found.tokens * math.sqrt(overhead)


def category(num_tokens: int) -> str:
    """The documents' length category, half-open; ValueError below 512 tokens."""
    names = [name for name, lower in CATEGORY_EDGES if num_tokens >= lower]
    if not names:
        raise ValueError(f"{num_tokens} tokens lie below the documents' first category (512)")
    return names[-1]


def amdahl_share(speed_up: float, gpus: int) -> float:
    """The parallel share x that gives ``speed_up`` on ``gpus``: 1/(1−x+x/p) = s → x = (1 − 1/s)/(1 − 1/p)."""
    return (1 - 1 / speed_up) / (1 - 1 / gpus)
