"""Where a speed-up of FA Pool comes from: flash attention, added GPUs, communication, overlap; and its ceiling.

First principles only: simulated steps of the documents' dense model on DGX A100 nodes. ``Split`` walks from the
unfused TP 8 step to the pool in four steps whose factors multiply to the whole. Break-even lengths come from kernels
in closed form. What it ignores: serving effects (queueing, activation of the pool).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from planner.documents.placements import fa_pool, static
from planner.documents.rules import BASE_GPUS, allocate_gpus
from planner.paper.steps import cluster, core_s, model, prefill_s, unfused_core_s
from simulator.units import DTYPE_BYTES

NIC_BYTES_PER_S = 25e9  # one HDR NIC, 200 Gb/s; FA Pool experiments 4.6
SPLIT_BATCH = 2  # two sequences, so that two micro-batches can overlap


@dataclass(frozen=True, slots=True)
class Split:
    """Factors of unfused TP 8 → FA Pool at one length; above 1 is faster. ``total`` is their product."""

    length: int
    pool_gpus: int
    flash: float
    added_gpus: float
    communication: float
    overlap: float

    @property
    def total(self) -> float:
        return self.flash * self.added_gpus * self.communication * self.overlap

    @property
    def over_flash_baseline(self) -> float:
        """What FA Pool adds to a baseline that uses flash attention too."""
        return self.added_gpus * self.communication * self.overlap


@lru_cache(maxsize=32)
def split(length: int, pool_gpus: int | None = None, batch: int = SPLIT_BATCH) -> Split:
    """``pool_gpus`` None: the documents' own rule. Added GPUs: attention at pool speed with free transfers."""
    layers = model().num_layers
    pool = allocate_gpus(length)[1] if pool_gpus is None else pool_gpus
    flash_s = prefill_s(static(model()), batch, length)
    here_s = layers * core_s(length, batch=batch)
    unfused_s = flash_s - here_s + layers * unfused_core_s(length, batch=batch)
    if not pool:
        return Split(length, 0, unfused_s / flash_s, 1.0, 1.0, 1.0)
    free_s = flash_s - here_s + here_s * BASE_GPUS / pool
    plain_s = prefill_s(fa_pool(model(), pool), batch, length)
    overlapped_s = min(plain_s, prefill_s(fa_pool(model(), pool, micro_batches=batch), batch, length))
    return Split(length, pool, unfused_s / flash_s, flash_s / free_s, free_s / plain_s, plain_s / overlapped_s)


@lru_cache(maxsize=256)
def speed_up(length: int, pool_gpus: int, *, nics: int = 8) -> float:
    """TP 8 over FA Pool, one sequence, both with causal flash attention, simulated."""
    name = {8: "dgx-a100-5"}.get(nics, f"dgx-a100-5-nic{nics}")
    return prefill_s(static(model()), 1, length, name) / prefill_s(fa_pool(model(), pool_gpus), 1, length, name)


@lru_cache(maxsize=64)
def overlapped_speed_up(length: int, pool_gpus: int) -> float:
    """TP 8 over FA Pool for two sequences, both in two micro-batches, so that either may overlap what it can."""
    two = static(model(), micro_batches=2)
    return prefill_s(two, 2, length) / prefill_s(fa_pool(model(), pool_gpus, micro_batches=2), 2, length)


@lru_cache(maxsize=32)
def ceiling(length: int, *, unfused: bool = False) -> float:
    """TP 8 over itself without attention: what an infinite pool with free transfers would give, no overlap."""
    layers, batch = model().num_layers, 1
    step_s = prefill_s(static(model()), batch, length)
    core = layers * core_s(length)
    if unfused:
        return (step_s - core + layers * unfused_core_s(length, batch=batch)) / (step_s - core)
    return step_s / (step_s - core)


@lru_cache(maxsize=32)
def baseline_s(length: int) -> float:
    """TP 8 × PP 2, one sequence, not filled: TP 8's time and one stage boundary, the hidden state over 8 NICs once."""
    hidden_bytes = length * model().hidden_size * DTYPE_BYTES["bf16"]
    return prefill_s(static(model()), 1, length) + hidden_bytes / (8 * NIC_BYTES_PER_S) + _hop_s()


@lru_cache(maxsize=32)
def over_baseline(length: int, pool_gpus: int | None = None) -> float:
    """TP 8 × PP 2 over FA Pool (None: the documents' rule), one sequence of causal flash attention."""
    pool = allocate_gpus(length)[1] if pool_gpus is None else pool_gpus
    return baseline_s(length) / prefill_s(fa_pool(model(), pool) if pool else static(model()), 1, length)


def overlapped_pool_s(length: int, pool_gpus: int, nics: int) -> float:
    """One layer's attention in the pool: Q in, then KV in behind the attention it feeds (chunked chain), O back.

    Each byte enters a pool node once: n·hidden·s for Q, 2r of that for KV, one more back for O, over ``nics`` rails.
    """
    wanted = model()
    hidden_bytes = length * wanted.hidden_size * DTYPE_BYTES["bf16"]
    kv_share = 2 * wanted.num_key_value_heads / wanted.num_attention_heads
    unit_s = hidden_bytes / (nics * NIC_BYTES_PER_S)
    latency_s = _hop_s() * (2 + math.ceil(pool_gpus / BASE_GPUS))
    return unit_s + max(kv_share * unit_s, core_s(length) * BASE_GPUS / pool_gpus) + unit_s + latency_s


def _hop_s() -> float:
    node = cluster().nodes[0]
    assert node.nics is not None
    return node.nics.latency_s + cluster().fabric.latency_s


@lru_cache(maxsize=32)
def break_even_tokens(nics: int, pool_gpus: int = 16) -> float:
    """The length from which the pool's attention, KV overlapped, takes less time than TP 8's own; by bisection."""
    low, high = 1024.0, 4.0e6
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        faster = overlapped_pool_s(int(middle), pool_gpus, nics) < core_s(int(middle))
        low, high = (low, middle) if faster else (middle, high)
    return high


def closed_form_break_even_tokens(nics: int, pool_gpus: float, flop_per_s: float) -> float:
    """n* = (2r+1)·s·F / (2·g·β·(1/8 − 1/p)): Q and KV in, nothing overlapped, O streamed back; batch and hidden cancel.

    Attention of n causal tokens is 2·n²·hidden FLOPs; on 8 against p GPUs it saves 2n²h/F·(1/8 − 1/p); moving
    (2r+1)·n·h·s bytes over g rails costs (2r+1)·n·h·s/(g·β). Equal at n*.
    """
    wanted = model()
    r = wanted.num_key_value_heads / wanted.num_attention_heads
    saved = 2 * nics * NIC_BYTES_PER_S * (1 / BASE_GPUS - 1 / pool_gpus)
    return (2 * r + 1) * DTYPE_BYTES["bf16"] * flop_per_s / saved


def flash_flop_per_s(length: int) -> float:
    """Rate of the fitted causal kernel at TP 8: 2·n²·hidden/8 FLOPs over its seconds."""
    return 2 * length**2 * model().hidden_size / BASE_GPUS / core_s(length)


@lru_cache(maxsize=16)
def simulated_break_even_tokens(nics: int = 8, pool_gpus: int = 32) -> float:
    """The length from which a simulated pool step is faster than TP 8; by bisection to 1 %, in steps of 128 tokens."""
    low, high = 15e3 * 8 / nics, 60e3 * 8 / nics
    while high / low > 1.01:
        middle = int(math.sqrt(low * high)) // 128 * 128
        low, high = (low, middle) if speed_up(middle, pool_gpus, nics=nics) > 1 else (middle, high)
    return math.sqrt(low * high)


def simulated_attention_s(length: int, pool_gpus: int, *, nics: int = 8) -> float:
    """One layer's attention in a simulated pool step: the step without everything TP 8 does besides attention."""
    name = {8: "dgx-a100-5"}.get(nics, f"dgx-a100-5-nic{nics}")
    layers = model().num_layers
    rest_s = prefill_s(static(model()), 1, length, name) - layers * core_s(length)
    return (prefill_s(fa_pool(model(), pool_gpus), 1, length, name) - rest_s) / layers
