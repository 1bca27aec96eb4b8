"""S7 and S8 as whole steps: MA Separation and two-level partitioning lowered and played, beside their closed forms.

What it models: all that a step has (projections, norms, messages, collectives, the schedule of micro-batches) on
``a100-4x4`` with the shipped profile. ``split.py`` and ``slices.py`` have kernels and bytes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.documents.placements import heads_and_blocks, ma_separation, static, two_level
from planner.documents.two_level import FORMS, Form
from planner.paper.steps import cluster, model, nodes, parts_s, profile, timeline
from simulator.errors import InfeasibleError
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import Exit, Placement
from simulator.simulation.engine import simulate
from simulator.simulation.timeline import Timeline
from simulator.workload import Phase, Step, decode_step, prefill_step

CLUSTER = "a100-4x4"
GPUS = 16


@dataclass(frozen=True, slots=True)
class SplitStep:
    """Seconds a layer: what the busiest GPU of each role computes, and the step."""

    attention_gpus: int
    core_s: float
    experts_s: float
    step_s: float

    @property
    def ratio(self) -> float:
        """Attention's core over the experts."""
        return self.core_s / self.experts_s


def _step(phase: Phase, batch: int, length: int) -> Step:
    return prefill_step(batch, length) if phase == "prefill" else decode_step(batch, length)


@lru_cache(maxsize=64)
def split_step(
    phase: Phase, batch: int, attention_gpus: int, exit: Exit = "all_to_all", *, micro_batches: int = 1
) -> SplitStep | None:
    """MA Separation at 2048 tokens; None where experts do not divide by their GPUs and the exit needs that."""
    wanted = model("ma-separation")
    placement = ma_separation(wanted, attention_gpus, GPUS - attention_gpus, exit=exit, micro_batches=micro_batches)
    try:
        played = timeline(placement, _step(phase, batch, 2048), CLUSTER, model_name="ma-separation")
    except InfeasibleError:
        return None
    parts = [parts_s(played, rank) for rank in range(GPUS)]
    core = max(found.get("core", 0.0) for found in parts[:attention_gpus])
    experts = max(found.get("feed_forward", 0.0) for found in parts[attention_gpus:])
    layers = wanted.num_layers
    return SplitStep(attention_gpus, core / layers, experts / layers, played.duration_s / layers)


def _play(wanted: Model, placement: Placement, step: Step) -> Timeline:
    lowered = lower(wanted, step, placement, nodes=nodes(CLUSTER))
    return simulate(lowered, cluster(CLUSTER), {profile().gpu.name: profile()})


@lru_cache(maxsize=1)
def form_seconds() -> dict[Form | str, float]:
    """Prefill of the two-level document's 128 × 10,000 tokens, one layer: every form on 4 × 4, heads alone on 16."""
    wanted, step = model("two-level"), prefill_step(128, 10_000)
    found: dict[Form | str, float] = {
        form: _play(wanted, two_level(wanted, dim_mode=form), step).duration_s for form in FORMS
    }
    found["heads alone"] = _play(wanted, static(wanted, GPUS), step).duration_s
    return found


@dataclass(frozen=True, slots=True)
class SliceStep:
    """One decode layer on 16 GPUs, whole steps, seconds: heads alone, heads × slices, heads × KV blocks."""

    kv_heads: int
    heads_only_s: float
    slices_s: float
    sequence_s: float


@lru_cache(maxsize=16)
def slice_step(kv_heads: int, *, batch: int = 128, length: int = 10_000) -> SliceStep:
    """As ``slices.decode_choice``, whose placements these are; with 16 KV heads and more there is nothing to share."""
    wanted = model("two-level").model_copy(update={"num_key_value_heads": kv_heads})
    step, group = decode_step(batch, length), max(1, GPUS // kv_heads)
    alone = _play(wanted, static(wanted, GPUS), step).duration_s
    if group == 1:
        return SliceStep(kv_heads, alone, alone, alone)
    sliced = two_level(wanted, GPUS // group, group, dim_mode="score_sum")
    blocks = heads_and_blocks(wanted, GPUS // group, group)
    return SliceStep(kv_heads, alone, _play(wanted, sliced, step).duration_s, _play(wanted, blocks, step).duration_s)
