"""Statements F25–F38: the FA Pool methodology's threshold and memory claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from planner.documents.placements import static
from planner.documents.rules import Measured, threshold_tokens, threshold_tokens_by_reading
from planner.paper.architecture import pooled_program
from planner.paper.speedup import NIC_BYTES_PER_S, break_even_tokens
from planner.paper.statement import Statement, close, judged, unverifiable
from planner.paper.steps import (
    core_s,
    kv_bytes_per_sequence,
    model,
    nodes,
    parts_s,
    seconds_of,
    timeline,
    unfused_core_s,
)
from simulator.kernel import Gemm, Memory
from simulator.lowering import lower
from simulator.memory import peak_activation_bytes, weight_slices
from simulator.units import GB, GiB, format_bytes
from simulator.workload import prefill_step

Rows = tuple[Statement, ...]
LATENCY_BATCH = 16  # the batch at which measured kernels reproduce their 35 and 45 ms


def rows() -> Rows:
    return (*_threshold(), *_overheads(), *_base_memory(), *_base_total(), *_pool_memory())


def feed_forward_s(tokens: int) -> float:
    """One layer's feed-forward on one of 8 tensor-parallel GPUs, no all-reduce."""
    wanted = model()
    width = wanted.intermediate_size // 8
    up, down = Gemm(tokens, width, wanted.hidden_size), Gemm(tokens, wanted.hidden_size, width)
    return seconds_of((up, Memory("activation", 4 * tokens * width), down))


def projections_s(tokens: int) -> float:
    """One layer's Q, K, V and output projections on one of 8 GPUs."""
    wanted = model()
    width = wanted.hidden_size // 8
    return seconds_of((Gemm(tokens, 3 * width, wanted.hidden_size), Gemm(tokens, wanted.hidden_size, width)))


@lru_cache(maxsize=1)
def attention_block_s() -> tuple[float, float]:
    """(feed-forward, attention block with projections and one all-reduce) of S2: TP 8, 16 × 4096, four layers."""
    parts = parts_s(timeline(static(model()), prefill_step(LATENCY_BATCH, 4096)))
    all_reduces = 2 * model().num_layers + 1  # the embedding has one too
    one_a_layer_s = parts["collective"] * model().num_layers / all_reduces
    return parts["feed_forward"], parts["projections"] + parts["core"] + one_a_layer_s


def transfer_s(batch: int, length: int, nics: int = 8) -> float:
    """Q and KV to a pool node and O back, all layers, each byte over the rails once, nothing overlapped."""
    wanted = model()
    hidden_bytes = 2 * batch * length * wanted.hidden_size
    units = 2 + 2 * wanted.num_key_value_heads / wanted.num_attention_heads
    return wanted.num_layers * units * hidden_bytes / (nics * NIC_BYTES_PER_S)


def crossing_tokens(attention: Callable[[int], float], batch: int) -> float:
    """The shortest length whose attention takes longer than its feed-forward; by bisection over 256 … 1M tokens."""
    low, high = 256.0, 2.0**20
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        longer = attention(int(middle)) > feed_forward_s(batch * int(middle))
        low, high = (low, middle) if longer else (middle, high)
    return high


def _half_octave(tokens: float) -> bool:
    return abs(math.log2(tokens / 4096)) <= 0.5


def _threshold() -> Rows:
    feed_forward, attention = attention_block_s()
    readings = threshold_tokens_by_reading()
    batch = f"prefill of {LATENCY_BATCH} sequences on TP 8, all 4 layers, no all-reduce"
    return (
        judged(
            "F25",
            "threshold = argmin_t(Attention(t) > FFN(t) + Communication)",
            f"t* = {threshold_tokens():.0f} "
            f"tokens from their own 35, 45, 8 ms ({readings[1]:.0f} and {readings[2]:.0f} by other readings)",
            holds=close(threshold_tokens(), Measured().tokens),
            assuming="smallest t, not argmin of a truth value",
        ),
        judged(
            "F26",
            "FFN takes about 35 ms at 4096 tokens",
            f"{1e3 * feed_forward:.1f} ms",
            holds=close(1e3 * feed_forward * 1024 / LATENCY_BATCH, 35, 0.1),
            holds_if=close(1e3 * feed_forward, 35, 0.1),
            criterion="within 10 %",
            assuming=batch,
            tag="fitted",
        ),
        judged(
            "F27",
            "attention takes 45 ms at 4096 tokens",
            f"{1e3 * attention:.1f} ms",
            holds=close(1e3 * attention * 1024 / LATENCY_BATCH, 45, 0.1),
            holds_if=close(1e3 * attention, 45, 0.1),
            criterion="within 10 %",
            assuming=f"{LATENCY_BATCH} sequences, causal flash attention, with projections and one all-reduce",
            tag="fitted",
        ),
    )


def _overheads() -> Rows:
    moved = {batch: 1e3 * transfer_s(batch, 4096) for batch in (1, 3, LATENCY_BATCH)}
    unfused = crossing_tokens(lambda n: unfused_core_s(n, batch=LATENCY_BATCH), LATENCY_BATCH)
    causal = crossing_tokens(lambda n: core_s(n, batch=LATENCY_BATCH), LATENCY_BATCH)
    block = crossing_tokens(lambda n: core_s(n, batch=LATENCY_BATCH) + projections_s(LATENCY_BATCH * n), LATENCY_BATCH)
    return (
        judged(
            "F28",
            "communication takes about 8 ms with 8 pool GPUs",
            ", ".join(f"{t:.1f} ms at batch {b}" for b, t in moved.items()),
            holds=close(moved[LATENCY_BATCH], 8, 0.1),
            holds_if=close(moved[3], 8, 0.1),
            criterion=f"within 10 % at batch {LATENCY_BATCH}, which their other times need",
            assuming="batch 3, 8 HDR NICs, each byte once",
            tag="assumed",
        ),
        judged(
            "F29",
            "attention is the bottleneck from 4096 tokens",
            f"attention exceeds FFN from {causal:,.0f} tokens "
            f"(causal flash core), {block:,.0f} (with projections), {unfused:,.0f} (unfused core); a pool breaks even "
            f"from {break_even_tokens(8):,.0f}",
            holds=_half_octave(causal),
            holds_if=_half_octave(unfused),
            criterion="crossing within half an octave (their steps are octaves)",
            assuming="attention without flash",
            tag="fitted",
        ),
    )


def _base_memory() -> Rows:
    fp16 = 13e9 * 2 / 8
    tensor = 1024 * 4096 * 4096 * 2
    step = lower(model(), prefill_step(1024, 4096), static(model()), nodes=nodes())
    peak = peak_activation_bytes(step, 0)
    kv = 1024 * kv_bytes_per_sequence(4096) / 8
    batch = 20 * GB * 8 / kv_bytes_per_sequence(4096)
    return (
        judged(
            "F30",
            "parameters take 1.6 GB on a base GPU (13 B / 8)",
            f"{fp16 / GB:.2f} GB in fp16; all of the real "
            f"0.805 B model is {2 * model().layer_parameters() / GB:.2f} GB",
            holds=close(fp16, 1.6 * GB),
            holds_if=close(fp16 / 2, 1.6 * GB),
            assuming="one byte a parameter",
        ),
        judged(
            "F31",
            "base activations take about 32 GB",
            f"peak {format_bytes(peak)} of live values on TP 8; one "
            f"unsharded [1024, 4096, 4096] tensor is {tensor / GiB:.0f} GiB",
            holds=close(peak, 32 * GB, 0.1),
            holds_if=close(tensor, 32 * GiB),
            criterion="within 10 %",
            assuming="they count one unsharded fp16 hidden tensor",
        ),
        judged(
            "F32",
            "base KV cache takes about 20 GB at 4096 tokens",
            f"{kv / GB:.1f} GB a GPU at batch 1024 over 8; 20 GB is batch {batch:.0f}",
            holds=close(kv, 20 * GB, 0.1),
            criterion="within 10 % at batch 1024",
        ),
    )


def _base_total() -> Rows:
    return (
        judged(
            "F33",
            "base total is about 65 GB",
            f"{1.6 + 32 + 20:.1f} GB: the sum of their own parts",
            holds=close(1.6 + 32 + 20, 65),
            criterion="sum within 5 %",
        ),
    )


def _pool_memory() -> Rows:
    pool_weights = sum(s.num_parameters for rank in pooled_program().ranks[8:16] for s in weight_slices(model(), rank))
    fits = int(15 * GB // kv_bytes_per_sequence(4096))
    return (
        judged(
            "F34", "no parameters on the pool", f"{pool_weights} parameters", holds=pool_weights == 0, criterion="exact"
        ),
        unverifiable(
            "F35",
            "pool activations take 25 GB",
            "no batch is given that would make them so",
            why="depends on an unstated batch and workspace",
        ),
        judged(
            "F36",
            "replicated KV takes 15 GB on a pool GPU",
            f"{format_bytes(1024 * kv_bytes_per_sequence(4096))} at "
            f"batch 1024; 15 GB holds batch {fits} at 4096 tokens",
            holds=fits >= 1024,
            holds_if=fits >= LATENCY_BATCH,
            criterion="the stated batch fits in 15 GB",
            assuming=f"batch {LATENCY_BATCH}, as their latencies need",
        ),
        unverifiable(
            "F37",
            "pool attention blocks take 5 GB",
            "flash attention stores no score blocks",
            why="depends on an unstated batch and kernel",
        ),
        judged(
            "F38",
            "pool total is 45 GB",
            f"{25 + 15 + 5} GB: the sum of their own parts",
            holds=close(25 + 15 + 5, 45),
            criterion="sum within 5 %",
        ),
    )
