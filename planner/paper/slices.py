"""When slicing heads pays (S8): one decode layer with heads alone, heads × slices, heads × KV blocks, in closed form.

Times are kernels of the A100 profile plus bytes over NVLink. What it ignores: lowering, projections, W_O.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.documents.two_level import FORMS, TwoLevel, moved_bytes
from planner.paper.steps import seconds_of
from simulator.kernel import AttentionDecode
from simulator.units import GB

NVLINK_BYTES_PER_S = 230e9  # NCCL bus bandwidth inside an A100 node: 222–235 GB/s measured
COLLECTIVE_S = 15e-6  # assumed: latency of a small collective of four GPUs


@dataclass(frozen=True, slots=True)
class SliceChoice:
    """One decode layer on 16 GPUs, seconds: heads on their own GPUs, heads × slices, or heads × KV blocks."""

    kv_heads: int
    heads_only_s: float
    slices_s: float
    sequence_s: float


@lru_cache(maxsize=32)
def decode_choice(kv_heads: int, *, batch: int = 128, length: int = 10_000, gpus: int = 16) -> SliceChoice:
    """With fewer KV heads than GPUs, heads alone replicate KV; m = gpus/kv_heads slices or KV blocks share it.

    Slices: partial scores of B·heads·L fp32 are all-reduced in the group, KV is read once over the group.
    KV blocks: outputs and log-sum-exps of B·heads·(d + 1) are exchanged instead.
    """
    group = max(1, gpus // kv_heads)
    heads, here = 32, max(1, kv_heads // gpus)
    queries = max(1, heads // gpus)
    alone = seconds_of((AttentionDecode(batch, length, queries, here, 128),))
    if group == 1:
        return SliceChoice(kv_heads, alone, alone, alone)
    shared = seconds_of((AttentionDecode(batch, length // group, queries * group, here, 128),))
    scores = 4 * batch * queries * group * length
    outputs = batch * queries * group * (128 * 2 + 4)
    ring = 2 * (group - 1) / group * scores / NVLINK_BYTES_PER_S + COLLECTIVE_S
    merge = (group - 1) / group * outputs / NVLINK_BYTES_PER_S + COLLECTIVE_S
    return SliceChoice(kv_heads, alone, shared + ring, shared + merge)


def byte_table(sizes: TwoLevel | None = None) -> tuple[tuple[str, float], ...]:
    """(form, GB a device sends) of S8."""
    return tuple((form, moved_bytes(sizes or TwoLevel(), form) / GB) for form in FORMS)
