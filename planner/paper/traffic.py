"""Statements M20–M32: MA Separation's communication volumes, compression, memory, kernels and metrics."""

from __future__ import annotations

import numpy as np

from planner.documents.placements import ma_separation
from planner.documents.separation import (
    MEMORY_AS_WRITTEN_GB,
    TOP_K_SHARE,
    all_reduce_bytes,
    all_to_all_elements,
    attention_gpu_parameters,
    hierarchical_bytes,
    int8_all_reduce_bytes,
    memory_as_written_gb,
    moe_gpu_parameters,
    quantise_int8,
    ring_bytes_per_gpu,
    top_k_bytes,
    top_k_gradient,
    training_memory,
)
from planner.paper.separation import CLUSTER, separated_program
from planner.paper.statement import Statement, close, judged, specified
from planner.paper.steps import cluster, model, nodes
from simulator import program as p
from simulator.lowering import lower
from simulator.metrics import documents_gap_tpot_s, tokens_per_s
from simulator.units import GB, GiB
from simulator.workload import prefill_step

Rows = tuple[Statement, ...]
PRINTED = 0.005  # three printed digits
PCIE_BYTES_PER_S = 32e9  # PCIe 4.0 x16 one way, what an A100 offloads over; datasheet


def rows() -> Rows:
    return (*_volumes(), *_compression(), *_memory(), *_kernels(), *_metrics())


def _volumes() -> Rows:
    reduced = all_reduce_bytes(4096, 1024, 2048)
    phases = hierarchical_bytes(reduced, 4, 3)
    elements = all_to_all_elements(4096, 1024, 2048, 2)
    return (
        judged(
            "M20",
            "attention all-reduce is 16.8 GB",
            f"{reduced / GB:.2f} GB = {reduced / GiB:.1f} GiB; a ring of 12 sends "
            f"{ring_bytes_per_gpu(reduced, 12) / GB:.1f} GB from each GPU",
            holds=close(reduced / GB, 16.8, PRINTED),
            criterion="three digits",
        ),
        judged(
            "M21",
            "4.2 GB in each node and 4.2 GB across",
            f"each GPU sends {phases.reduce_scatter / GB:.1f} GB in its node "
            f"(and again to gather) and {phases.between_nodes / GB:.1f} GB across 3 nodes",
            holds=close(phases.reduce_scatter / GB, 4.2) and close(phases.between_nodes / GB, 4.2),
        ),
        judged(
            "M22",
            "MoE all-to-all is 16.8 GB",
            f"{elements / 1e9:.2f} G elements, {2 * elements / GB:.1f} GB in fp16",
            holds=close(2 * elements / GB, 16.8, PRINTED),
            criterion="three digits",
        ),
    )


def _compression() -> Rows:
    gradient = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    quantised, scale = quantise_int8(gradient)
    error = float(np.abs(quantised.astype(np.float32) * scale - gradient).max())
    indices, values = top_k_gradient(gradient)
    parameters = model("ma-separation").layer_parameters()
    small = float(np.abs(np.delete(gradient, indices)).max())
    return (
        judged(
            "M23",
            "8-bit gradients, scale = max|g| / 127",
            f"largest error {error / scale:.2f} of a step; an all-reduce needs "
            f"{int8_all_reduce_bytes(parameters, 16) / GB:.1f} GB instead of "
            f"{ring_bytes_per_gpu(2 * parameters, 16) / GB:.1f}",
            holds=error <= 0.5 * scale * 1.001 and int(np.abs(quantised).max()) == 127,
            criterion="error at most half a step",
            assuming="training only; rounded, not truncated",
        ),
        judged(
            "M24",
            "keep the largest 10 % of gradients",
            f"{len(values)} of {gradient.size}; "
            f"{top_k_bytes(parameters) / (2 * parameters):.2f} of fp16's bytes, for each needs an index",
            holds=len(values) == int(gradient.size * TOP_K_SHARE) and float(np.abs(values).min()) >= small,
            criterion="exact",
            assuming="training only",
        ),
        specified(
            "M25",
            "4 nodes of 4 GPUs",
            f"{[nodes(CLUSTER).count(n) for n in range(4)]}",
            implemented=[nodes(CLUSTER).count(n) for n in range(4)] == [4] * 4,
        ),
    )


def _memory() -> Rows:
    wanted = model("ma-separation")
    attention = 4 * attention_gpu_parameters(wanted, 3)
    experts = 4 * moe_gpu_parameters(wanted, 4)
    one = training_memory(attention, 16 * 2048, 4096, 4, 12)
    other = training_memory(experts, 16 * 2048, 4096, 4, 4)
    excess = memory_as_written_gb() - cluster(CLUSTER).gpus[0].memory_bytes / GiB
    return (
        judged(
            "M26",
            "every GPU holds 23.1 GB of parameters, 18.7 of activations, 23.1 of gradients, 46.2 of optimizer",
            f"4 layers in training: {one.weights / GB:.2f} GB of parameters and {one.total / GB:.1f} in all on "
            "an attention GPU, "
            f"{other.weights / GB:.2f} and {other.total / GB:.1f} on an MoE GPU",
            holds=all(close(m.weights / GB, MEMORY_AS_WRITTEN_GB["model_params"], 0.1) for m in (one, other)),
            criterion="parameters within 10 % on both roles",
            assuming="fp16 and Adam, 16 sequences of 2048",
        ),
        judged(
            "M27",
            "sum 123.7 GB = 1.55 × 80 GB with offloading",
            f"{memory_as_written_gb():.1f} GB, "
            f"{memory_as_written_gb() / 80:.2f} × 80; the {excess:.1f} GB above take "
            f"{excess * GB / PCIE_BYTES_PER_S:.2f} s a "
            "sweep over PCIe",
            holds=close(memory_as_written_gb(), 123.7, PRINTED) and close(memory_as_written_gb() / 80, 1.55, PRINTED),
            criterion="three digits",
        ),
    )


def _kernels() -> Rows:
    program = separated_program()
    mapped = {o.heads for rank in program.ranks[:12] for o in rank if isinstance(o, p.Attention)}
    routed = [o for rank in program.ranks[12:] for o in rank if isinstance(o, p.Route)]
    wanted = model("ma-separation")
    full = lower(wanted, prefill_step(1024, 2048), ma_separation(wanted), nodes=nodes(CLUSTER))
    return (
        specified(
            "M28",
            "fused attention kernel with a head mapping",
            f"{len(mapped)} head ranges, one Attention operation each",
            implemented=len(mapped) == 12,
            assuming="library kernels; the mapping is the operation's head range",
        ),
        specified(
            "M29",
            "expert routing kernel",
            f"{len(routed)} Route operations of 16 experts, top 2",
            implemented=bool(routed) and all(o.num_experts == 16 and o.top_k == 2 for o in routed),
            assuming="library kernels",
        ),
        specified(
            "M32",
            "2048 tokens, batch 1024",
            f"{full.step.num_tokens:,} tokens lowered",
            implemented=full.step.num_tokens == 2048 * 1024,
        ),
    )


def _metrics() -> Rows:
    gaps = np.full(100, 10e-3)
    as_written, right = documents_gap_tpot_s(gaps), float(gaps.mean())
    inputs, both = tokens_per_s(2048, 1.0), tokens_per_s(2048 + 128, 1.0)
    return (
        judged(
            "M30",
            "TPOT: mean of (gap / num_tokens)",
            f"{1e3 * as_written:.1f} ms where tokens come every {1e3 * right:.0f} ms; "
            "num_tokens is undefined and cudaEventRecords does not exist",
            holds=close(as_written, right),
        ),
        judged(
            "M31",
            "TPS: input tokens per second",
            f"{inputs:.0f} where the FA Pool definition gives {both:.0f} (2048 in, 128 out)",
            holds=close(inputs, both),
            criterion="both documents' definitions agree within 5 %",
        ),
    )
