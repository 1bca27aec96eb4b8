"""The evidence behind ``paper``: steps of the documents' models, lowered and simulated once each and remembered.

What it models: whatever lowering and the engine do, on the documents' clusters with the shipped A100 profile (kernels
fitted to measured tables, NVLink collectives measured, network α-β assumed). What it ignores: variance between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal

from planner.documents.placements import static
from simulator import presets, program
from simulator.cluster import Cluster
from simulator.costs.cost import predict
from simulator.kernel import AttentionPrefill, ComputeKernel, Gemm, Memory
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import Placement
from simulator.profile import Profile, load_profile
from simulator.simulation.engine import simulate
from simulator.simulation.timeline import Timeline
from simulator.units import PICOSECONDS_PER_S
from simulator.workload import Step, decode_step, prefill_step

CLUSTERS = {8: "dgx-a100-5", 4: "dgx-a100-5-nic4", 2: "dgx-a100-5-nic2", 1: "dgx-a100-5-nic1"}
"""NICs a node → preset."""

Part = Literal["projections", "core", "feed_forward", "collective", "elementwise", "ends", "transfer"]


@lru_cache(maxsize=1)
def profile() -> Profile:
    return load_profile("a100-sxm4-80gb")


@lru_cache(maxsize=16)
def model(name: str = "fa-pool") -> Model:
    return presets.model(name)


@lru_cache(maxsize=16)
def cluster(name: str = "dgx-a100-5") -> Cluster:
    return presets.cluster(name)


def nodes(cluster_name: str = "dgx-a100-5") -> tuple[int, ...]:
    return tuple(node for node, _, _ in cluster(cluster_name).rank_nodes())


@lru_cache(maxsize=256)
def timeline(
    placement: Placement,
    step: Step,
    cluster_name: str = "dgx-a100-5",
    model_name: str = "fa-pool",
    cache: Placement | None = None,
) -> Timeline:
    """A simulated step. ``cache``: who decodes after a prefill; a pool's base does (TP 8) unless said otherwise."""
    wanted = model(model_name)
    if cache is None and placement.pool_ranks and step.phase == "prefill" and model_name == "fa-pool":
        cache = static(wanted)
    lowered = lower(wanted, step, placement, nodes=nodes(cluster_name), cache=cache)
    return simulate(lowered, cluster(cluster_name), {profile().gpu.name: profile()})


def prefill_s(placement: Placement, batch: int, length: int, cluster_name: str = "dgx-a100-5") -> float:
    return timeline(placement, prefill_step(batch, length), cluster_name).duration_s


def decode_s(placement: Placement, batch: int, context: int, cluster_name: str = "dgx-a100-5") -> float:
    return timeline(placement, decode_step(batch, context), cluster_name).duration_s


def kv_bytes_per_sequence(length: int) -> int:
    """KV cache of one sequence of the dense model, all layers."""
    return model().kv_bytes_per_token() * length


def seconds_of(kernels: Sequence[ComputeKernel]) -> float:
    """Sum of predicted seconds, one after another on one GPU."""
    return float(predict(kernels, profile()).seconds.sum())


def part_of(operation: program.Operation) -> Part:
    """What an operation belongs to when a step's time is split."""
    match operation:
        case program.Send() | program.Recv():
            return "transfer"
        case program.Collective():
            return "collective"
        case program.Attention() | program.MergeAttention():
            return "core"
        case program.Embed() | program.Sample():
            return "ends"
        case program.Linear(weights=weights):
            name = weights[0].name
            if ".attention." in name:
                return "projections"
            return "ends" if name == "lm_head" else "feed_forward"
        case program.Activation() | program.Experts() | program.Route() | program.Dispatch() | program.Combine():
            return "feed_forward"
        case _:
            return "elementwise"


def parts_s(found: Timeline, rank: int = 0) -> dict[Part, float]:
    """Seconds of every part on one rank."""
    parts: dict[Part, float] = {}
    for index, operation in enumerate(found.program.ranks[rank]):
        span = float(found.end_ps[rank][index] - found.start_ps[rank][index]) / PICOSECONDS_PER_S
        part = part_of(operation)
        parts[part] = parts.get(part, 0.0) + span
    return parts


def sent_bytes(found: program.Program, ranks: Iterable[int], *, to: Callable[[int], bool] = lambda rank: True) -> int:
    """Bytes of point-to-point messages that ``ranks`` send to ranks chosen by ``to``."""
    return sum(
        operation.num_bytes
        for rank in ranks
        for operation in found.ranks[rank]
        if isinstance(operation, program.Send) and to(operation.to)
    )


def core_s(length: int, *, batch: int = 1, heads: int = 4, causal: bool = True) -> float:
    """Flash attention of one layer on one GPU that has ``heads`` of the documents' heads."""
    kernel = AttentionPrefill(batch, length, length, heads, heads, model().head_dim, causal)
    return seconds_of((kernel,))


UNFUSED_PASSES = 4  # mask and softmax each read and write the scores; the matmuls write and read them besides


def unfused_core_s(length: int, *, batch: int, heads: int = 4) -> float:
    """Attention without flash, one layer on one GPU: QKᵀ, mask, softmax, PV through device memory, full square.

    Per head and sequence: GEMMs [n, d]·[d, n] and [n, n]·[n, d] (their bytes include one write and one read of the
    scores); mask and softmax move the n² bf16 scores four more times.
    """
    dim = model().head_dim
    matmuls = seconds_of((Gemm(length, length, dim), Gemm(length, dim, length)))
    scores = 2 * batch * heads * length * length
    return batch * heads * matmuls + seconds_of((Memory("softmax", UNFUSED_PASSES * scores),))
