"""Splits of MA Separation's 16 GPUs: time of attention and of experts per layer, for every split and phase.

Three readings of the experts' time: ``measured`` is the fused-MoE kernel fitted to measured tables (A100 rows are gated
and skewed, so balanced and ungated is an extrapolation: tag *assumed*); ``grouped`` runs each expert as two dense
matmuls of measured speed; ``roof`` reads the weights at the datasheet's bandwidth.
Attention is the core (flash attention of a GPU's heads); projections are shown separately. No communication.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.documents.separation import moe_gpu_parameters
from planner.paper.steps import model, profile, seconds_of
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, Moe
from simulator.units import DTYPE_BYTES
from simulator.workload import Phase

GPUS = 16
LENGTH = 2048


@dataclass(frozen=True, slots=True)
class SplitTimes:
    """Seconds a layer of the slowest GPU of each role."""

    attention_gpus: int
    moe_gpus: int
    core_s: float
    projections_s: float
    measured_s: float
    grouped_s: float
    roof_s: float

    @property
    def ratio(self) -> float:
        """T_attention / T_moe with measured kernels."""
        return self.core_s / self.measured_s


@lru_cache(maxsize=128)
def split_times(phase: Phase, batch: int, attention_gpus: int, *, length: int = LENGTH) -> SplitTimes:
    """``attention_gpus`` of 16 attend, the others hold the experts evenly (the largest share counts)."""
    wanted = model("ma-separation")
    assert wanted.experts is not None
    experts, moe_gpus = wanted.experts, GPUS - attention_gpus
    heads = -(-wanted.num_attention_heads // attention_gpus)
    held = -(-experts.num_experts // moe_gpus)
    tokens = batch * (length if phase == "prefill" else 1)
    width, hidden, inner = heads * wanted.head_dim, wanted.hidden_size, experts.intermediate_size
    rows = max(1, tokens * experts.top_k // experts.num_experts)
    if phase == "prefill":
        core = seconds_of((AttentionPrefill(batch, length, length, heads, heads, wanted.head_dim),))
    else:
        core = seconds_of((AttentionDecode(batch, length, heads, heads, wanted.head_dim),))
    share = max(1, experts.num_experts // held)
    fused = Moe(tokens, hidden, inner, experts.top_k, experts.num_experts, 1, share, gated=wanted.gated)
    weights = DTYPE_BYTES[wanted.weight_dtype] * moe_gpu_parameters(wanted, held)
    return SplitTimes(
        attention_gpus,
        moe_gpus,
        core,
        seconds_of((Gemm(tokens, 3 * width, hidden), Gemm(tokens, hidden, width))),
        seconds_of((fused,)),
        held * seconds_of((Gemm(rows, inner, hidden), Gemm(rows, hidden, inner))),
        weights / profile().gpu.memory_bandwidth_bytes_per_s,
    )


def sweep(phase: Phase, batch: int) -> tuple[SplitTimes, ...]:
    """Every split whose experts divide evenly: 8, 12, 14 or 15 attention GPUs, and the uneven ones between."""
    return tuple(split_times(phase, batch, gpus) for gpus in range(1, GPUS))


def crossover(phase: Phase, batch: int) -> int | None:
    """Most attention GPUs with which attention still takes longer than the experts; None: never."""
    slower = [times.attention_gpus for times in sweep(phase, batch) if times.ratio > 1]
    return max(slower, default=None)


def balancing_batch(phase: Phase, attention_gpus: int = 12) -> int | None:
    """The smallest power of two whose attention takes longer than the experts on this split."""
    batches = [2**power for power in range(13)]
    return next((batch for batch in batches if split_times(phase, batch, attention_gpus).ratio >= 1), None)
