"""MA Separation in training: memory with gradients and optimizer, and how gradients are synchronised.

GPUs that hold the same shard (replicas of the 16-GPU unit) add their gradients, in one of three ways:

    fp16    an all-reduce of 2 bytes a parameter
    int8    cannot be summed on a ring: all-to-all of shares, sum in fp32, requantise, all-gather
    top_k   each replica's largest 10 % as values and indices, all gathered: bytes grow with the replicas

Expert dropout zeroes whole experts: their tokens need not be sent. What it ignores: the time to quantise and select.
Source: MA Separation document, training configuration; memory after Korthikanti et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.documents.separation import TrainingMemory, int8_bytes, top_k_bytes, training_memory
from simulator import program as p
from simulator.cluster import Cluster
from simulator.model import Model
from simulator.placement import Stage
from simulator.simulation.engine import run
from simulator.units import DTYPE_BYTES
from simulator.workload import prefill_step

Compression = Literal["fp16", "int8", "top_k"]


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """Of the busiest GPU of one role: what it holds, what it sends to synchronise, and for how long alone."""

    memory: TrainingMemory
    sync_bytes: float
    sync_s: float


def gradient_sync(parameters: int, ranks: tuple[int, ...], how: Compression) -> tuple[p.Collective, ...]:
    """The collectives of one shard of ``parameters``, in order, the same on each of ``ranks``."""
    match how:
        case "fp16":
            sizes: tuple[tuple[p.CollectiveKind, int], ...] = (("all_reduce", DTYPE_BYTES["fp16"] * parameters),)
        case "int8":
            sizes = (("all_to_all", int8_bytes(parameters)), ("all_gather", int8_bytes(parameters)))
        case "top_k":
            sizes = (("all_gather", len(ranks) * top_k_bytes(parameters)),)
    return tuple(
        p.Collective(
            reads=(f"g{index}",),
            writes=(f"g{index + 1}",),
            layer=0,
            micro_batch=0,
            kind=kind,
            algorithm="auto",
            ranks=ranks,
            tag=index,
            num_bytes=num_bytes,
            shape=(num_bytes,),
            dtype="int8",
        )
        for index, (kind, num_bytes) in enumerate(sizes)
    )


def sync_bytes(parameters: int, replicas: int, how: Compression) -> float:
    """Bytes a GPU sends: 2(p−1)/p·2N, 2(p−1)/p·N, or (p−1) times its own tenth with indices (6 bytes an entry)."""
    match how:
        case "fp16":
            return 2 * (replicas - 1) / replicas * DTYPE_BYTES["fp16"] * parameters
        case "int8":
            return 2 * (replicas - 1) / replicas * int8_bytes(parameters)
        case "top_k":
            return float((replicas - 1) * top_k_bytes(parameters))


def sync_seconds(parameters: int, ranks: tuple[int, ...], how: Compression, cluster: Cluster) -> float:
    """Of the collectives alone on ``cluster``, by the engine."""
    operations = gradient_sync(parameters, ranks, how)
    lists = tuple(operations if rank in ranks else () for rank in range(cluster.num_ranks))
    program = p.Program(prefill_step(1, 1), "fp16", lists, ((),) * len(lists), ("",) * len(lists))
    return run(program, cluster, [[0.0] * len(row) for row in lists]).duration_s


def training_step(
    model: Model, parameters: int, tokens: int, ranks: tuple[int, ...], how: Compression, cluster: Cluster
) -> TrainingStep:
    """A shard of ``parameters`` (all layers) that ``ranks`` replicate, each with ``tokens`` of its own."""
    memory = training_memory(parameters, tokens, model.hidden_size, model.num_layers, 1)
    return TrainingStep(memory, sync_bytes(parameters, len(ranks), how), sync_seconds(parameters, ranks, how, cluster))


def dispatched_bytes(model: Model, stage: Stage, tokens: int, *, dropout: float = 0.0) -> float:
    """fp16 hidden values sent to experts on other GPUs: tokens·k (co-located: ·(1 − 1/N)), less dropped experts'."""
    assert model.experts is not None
    holders = len(stage.feed_forward_ranks)
    away = 1.0 if not stage.joined else 1 - 1 / holders
    return (1 - dropout) * tokens * model.experts.top_k * away * model.hidden_size * DTYPE_BYTES["fp16"]
