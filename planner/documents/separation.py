"""MA Separation's own rules: head and expert distribution, volumes, capacity, compression, memory, predictor.

What it models: every formula of the document as written (``*_as_written``) beside the corrected one, and the memory of
a training step. What it ignores: time; see ``paper_separation.py``. Source: MA Separation document, sections 3.2 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
import numpy.typing as npt

from simulator.model import Model
from simulator.units import DTYPE_BYTES

MEMORY_AS_WRITTEN_GB = {
    "model_params": 23.1,
    "activations": 18.7,
    "gradients": 23.1,
    "optimizer_states": 46.2,
    "communication_buffers": 12.6,
}
PREDICTOR_WIDTHS = (5, 64, 32, 2)  # Linear(5, 64), Linear(64, 32), Linear(32, 2)
SYNC_THRESHOLD = 0.05  # "5% execution time difference"
TOP_K_SHARE = 0.1  # "Keep top 10% of gradients"
INT8_LEVELS = 127


def distribute_heads(num_heads: int, num_gpus: int) -> tuple[int, ...]:
    """Whole heads, the larger shares first: 32 over 12 → 3×8, 2×4. The document's ``32 // 12`` is 2, not 2.67."""
    base, extra = divmod(num_heads, num_gpus)
    return tuple(base + 1 if index < extra else base for index in range(num_gpus))


def contiguous_ranges(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """[start, stop) of consecutive shares: GPU 0 has heads 0–2, …, GPU 11 heads 30–31."""
    found, start = [], 0
    for size in sizes:
        found.append((start, start + size))
        start += size
    return tuple(found)


def expert_ranges(num_experts: int, num_gpus: int) -> tuple[tuple[int, int], ...]:
    """Whole experts in order: 16 over 4 → [0, 4), [4, 8), …"""
    return contiguous_ranges(distribute_heads(num_experts, num_gpus))


def balance(sizes: Sequence[int]) -> float:
    """Mean over largest share: 1 when all finish together."""
    return sum(sizes) / len(sizes) / max(sizes)


def fewest_gpus_as_fast(num_heads: int, num_gpus: int) -> int:
    """Fewest GPUs whose largest share is no larger: 11 for 32 heads on 12."""
    share = -(-num_heads // num_gpus)
    return -(-num_heads // share)


def all_reduce_bytes(hidden_size: int, batch: int, sequence_length: int, dtype: str = "fp16") -> int:
    """One hidden vector a token: the document's 2·4096·1024·2048, which is 17.18e9 B (16.0 GiB), not 16.8 GB."""
    return DTYPE_BYTES[dtype] * hidden_size * batch * sequence_length


def all_to_all_elements(hidden_size: int, batch: int, sequence_length: int, top_k: int) -> int:
    """The document's batch·seq·hidden·top_k counts elements and calls them bytes."""
    return batch * sequence_length * hidden_size * top_k


def ring_bytes_per_gpu(num_bytes: int, gpus: int) -> float:
    """A ring all-reduce sends 2(p−1)/p·S from every GPU: p−1 parts to reduce, p−1 to gather."""
    return 2 * (gpus - 1) / gpus * num_bytes


@dataclass(frozen=True, slots=True)
class HierarchicalBytes:
    """Bytes one GPU sends in each phase of a hierarchical all-reduce."""

    reduce_scatter: float
    between_nodes: float
    all_gather: float


def hierarchical_bytes(num_bytes: int, gpus_per_node: int, nodes: int) -> HierarchicalBytes:
    """Reduce-scatter (g−1)/g·S in the node, ring 2(G−1)/G·S/g across, all-gather (g−1)/g·S in the node."""
    inside = (gpus_per_node - 1) / gpus_per_node * num_bytes
    return HierarchicalBytes(inside, 2 * (nodes - 1) / nodes * num_bytes / gpus_per_node, inside)


def broadcast_copies(num_gpus: int) -> int:
    """The document broadcasts every token to every MoE GPU."""
    return num_gpus


def dispatch_copies(num_experts: int, num_gpus: int, top_k: int) -> float:
    """Mean number of MoE GPUs a token needs with uniform routing: N·(1 − C(E−E/N, k)/C(E, k)).

    Without replacement: a GPU of E/N experts is missed by all k choices with that probability.
    """
    missed, others = 1.0, num_experts - num_experts // num_gpus
    for choice in range(top_k):
        missed *= (others - choice) / (num_experts - choice)
    return num_gpus * (1 - missed)


def dropped_share(tokens: int, num_experts: int, top_k: int, capacity_factor: float, rng: np.random.Generator) -> float:
    """Share of token-expert pairs beyond ceil(factor·tokens·k/E) slots, uniform routing without replacement."""
    scores = rng.random((tokens, num_experts))
    chosen = np.argpartition(scores, top_k - 1, axis=1)[:, :top_k]
    counts = np.bincount(chosen.ravel(), minlength=num_experts)
    capacity = ceil(capacity_factor * tokens * top_k / num_experts)
    return float(np.maximum(counts - capacity, 0).sum() / (tokens * top_k))


Floats = npt.NDArray[np.float32]


def quantise_int8(gradient: Floats) -> tuple[npt.NDArray[np.int8], float]:
    """scale = max|g| / 127; q = int8(g / scale), rounded to nearest (the document truncates)."""
    scale = float(np.abs(gradient).max()) / INT8_LEVELS
    if scale == 0.0:
        return np.zeros(gradient.shape, dtype=np.int8), 0.0
    return np.rint(gradient / scale).astype(np.int8), scale


def top_k_gradient(gradient: Floats, share: float = TOP_K_SHARE) -> tuple[npt.NDArray[np.int64], Floats]:
    """k = int(numel·share) entries of largest magnitude: (indices, values)."""
    count = int(gradient.size * share)
    chosen = np.sort(np.argpartition(np.abs(gradient.ravel()), gradient.size - count)[gradient.size - count :])
    return chosen, gradient.ravel()[chosen]


def int8_bytes(num_parameters: int) -> int:
    """One byte a gradient and one fp32 scale."""
    return num_parameters + 4


def top_k_bytes(num_parameters: int, share: float = TOP_K_SHARE) -> int:
    """k values in fp16 and k indices in int32: 6 bytes each, so 0.3 of fp16's 2 bytes, not 0.1."""
    return int(num_parameters * share) * (DTYPE_BYTES["fp16"] + DTYPE_BYTES["int32"])


def int8_all_reduce_bytes(num_parameters: int, gpus: int) -> float:
    """int8 cannot be ring-summed: all-to-all of int8 shares, sum in fp32, requantise, all-gather: 2(p−1)/p·N bytes."""
    return 2 * (gpus - 1) / gpus * int8_bytes(num_parameters)


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes a GPU needs in one training step: fp16 weights and gradients, Adam's states, activations."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


ADAM_BYTES_PER_PARAMETER = 12  # fp32 master weight, first and second moment
ACTIVATION_COPIES = 34  # bytes·tokens·hidden of one layer without attention scores; Korthikanti et al. 2022, eq. 2


def training_memory(parameters: int, tokens: int, hidden_size: int, num_layers: int, shards: int) -> TrainingMemory:
    """2 B weights, 2 B gradients and 12 B Adam a parameter; 34·s·b·h a layer over ``shards`` tensor-parallel ranks."""
    activations = ACTIVATION_COPIES * tokens * hidden_size * num_layers // shards
    return TrainingMemory(2 * parameters, 2 * parameters, ADAM_BYTES_PER_PARAMETER * parameters, activations)


def attention_gpu_parameters(model: Model, heads: int) -> int:
    """Q, K, V columns and O rows of ``heads`` heads, one layer."""
    return 4 * model.hidden_size * heads * model.head_dim


def moe_gpu_parameters(model: Model, experts: int) -> int:
    """``experts`` whole experts of one layer."""
    assert model.experts is not None
    return experts * (3 if model.gated else 2) * model.hidden_size * model.experts.intermediate_size


def memory_as_written_gb() -> float:
    return sum(MEMORY_AS_WRITTEN_GB.values())


def predictor_parameters() -> int:
    """Weights and biases of the 5–64–32–2 network: 384 + 2,080 + 66 = 2,530."""
    return sum((a + 1) * b for a, b in pairwise(PREDICTOR_WIDTHS))


def predict_times(features: Floats, layers: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The document's network: [5] features through (weights, bias) layers, ReLU between → [T_attention, T_moe]."""
    hidden = features
    for index, (weights, bias) in enumerate(layers):
        hidden = hidden @ weights + bias
        if index < len(layers) - 1:
            hidden = np.maximum(hidden, 0)
    return np.asarray(hidden, dtype=np.float32)


def predictor_layers(rng: np.random.Generator) -> tuple[tuple[Floats, Floats], ...]:
    """Untrained layers of the document's widths."""
    return tuple(
        (rng.standard_normal((a, b)).astype(np.float32) / np.float32(a**0.5), np.zeros(b, dtype=np.float32))
        for a, b in pairwise(PREDICTOR_WIDTHS)
    )


def in_balance(attention_s: float, moe_s: float, threshold: float = SYNC_THRESHOLD) -> bool:
    """The 5 % rule: |T_attention − T_moe| ≤ 5 % of the larger."""
    return abs(attention_s - moe_s) <= threshold * max(attention_s, moe_s)


def expert_dropout(outputs: Floats, rate: float, rng: np.random.Generator, *, training: bool) -> Floats:
    """[experts, ...]: in training, each expert's output is zeroed with ``rate`` and the rest scaled by 1/(1 − rate)."""
    if not training:
        return outputs
    kept = rng.random((outputs.shape[0],)) >= rate
    scale = np.where(kept, 1 / (1 - rate), 0.0).reshape(-1, *(1,) * (outputs.ndim - 1))
    return np.asarray(outputs * scale, dtype=np.float32)


def hierarchical_all_reduce(values: Floats, gpus_per_node: int) -> Floats:
    """[gpus, n] → every GPU's sum, by reduce-scatter in the node, sum across nodes, all-gather in the node."""
    gpus, length = values.shape
    nodes = values.reshape(gpus // gpus_per_node, gpus_per_node, length)
    shards = np.stack(np.array_split(nodes.sum(axis=1), gpus_per_node, axis=1))
    return np.broadcast_to(np.concatenate(list(shards.sum(axis=1)), axis=-1), (gpus, length))
