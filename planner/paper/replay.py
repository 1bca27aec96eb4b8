"""Seed replay: what it takes for the documents' baseline column to come out. Not first principles.

The baseline is read as a prefill of 12 sequences, TP 8 in either pipeline stage with nothing overlapped (so TP 8's
time), attention *without* flash, plus ONE constant fitted to the baseline column. The FA Pool column is then printed
from the same model with flash attention, and never fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from planner.documents.placements import fa_pool, static
from planner.documents.rules import allocate_gpus
from planner.paper.steps import core_s, model, prefill_s, unfused_core_s

BATCH = 12
LENGTHS = (512, 2048, 8192, 16384)
BASELINE_MS = (45.0, 78.0, 245.0, 892.0)  # experiments 5.1, "Baseline TPOT"
FA_POOL_MS = (41.0, 56.0, 117.0, 279.0)  # experiments 5.1, "FA Pool TPOT"


@dataclass(frozen=True, slots=True)
class Replay:
    """The fitted constant, both columns in ms, and the relative RMS error of the baseline column."""

    constant_ms: float
    baseline_ms: tuple[float, ...]
    fa_pool_ms: tuple[float, ...]
    baseline_rms: float
    fa_pool_rms: float


@lru_cache(maxsize=1)
def replay() -> Replay:
    """Least squares in relative error: Σ((p_i + c)/d_i − 1)² is least at c = Σ(d_i − p_i)/d_i² / Σ1/d_i²."""
    plain = [_unfused_ms(length) for length in LENGTHS]
    pairs = list(zip(plain, BASELINE_MS, strict=True))
    constant = sum((d - p) / d**2 for p, d in pairs) / sum(1 / d**2 for _, d in pairs)
    baseline = tuple(p + constant for p in plain)
    pool = tuple(_pool_ms(length) + constant for length in LENGTHS)
    return Replay(constant, baseline, pool, relative_rms(baseline, BASELINE_MS), relative_rms(pool, FA_POOL_MS))


def relative_rms(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    return math.sqrt(sum((a / b - 1) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours))


def _unfused_ms(length: int) -> float:
    layers = model().num_layers
    swapped = layers * (unfused_core_s(length, batch=BATCH) - core_s(length, batch=BATCH))
    return 1e3 * (prefill_s(static(model()), BATCH, length) + swapped)


def _pool_ms(length: int) -> float:
    pool = allocate_gpus(length)[1]
    placement = fa_pool(model(), pool, micro_batches=2) if pool else static(model())
    return 1e3 * prefill_s(placement, BATCH, length)
