"""Kernels: the smallest things that have a measured time.

A program's operation is made of kernels; a profile predicts a kernel's seconds; a row of OPS.csv
*is* a kernel. FLOPs and bytes are functions of the shape and nothing else (the least any
implementation must do; what a kernel wastes is the profile's business).
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.units import DTYPE_BYTES


@dataclass(frozen=True, slots=True)
class Gemm:
    """``[m, k] @ [k, n]``: 2·m·n·k FLOPs."""

    m: int
    n: int
    k: int
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True)
class AttentionPrefill:
    """``batch`` sequences, each ``seq_q`` queries against ``seq_kv`` keys.

    ``causal`` is bottom-right aligned (flash-attn ≥ 2.1): query i sees keys up to
    ``seq_kv − seq_q + i``. ``window`` > 0: at most that many of the latest keys.
    """

    batch: int
    seq_q: int
    seq_kv: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    window: int = 0
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True)
class AttentionDecode:
    """One query a sequence against ``context`` cached keys; memory-bound on the KV cache."""

    batch: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True)
class Moe:
    """Routed experts of one GPU: its share of ``tokens``·``topk`` rows through gated experts.

    ``tp`` divides ``inter``, ``ep`` divides ``experts``; ``routing`` is ``balanced`` or
    ``power_law_A``. As in AIConfigurator's tables: ``tokens`` is the number *before* top-k that
    the whole expert-parallel group routes.
    """

    tokens: int
    hidden: int
    inter: int
    topk: int
    experts: int
    tp: int = 1
    ep: int = 1
    routing: str = "balanced"
    gated: bool = True
    dtype: str = "bf16"


@dataclass(frozen=True, slots=True)
class Memory:
    """An element-wise or copying kernel (norm, rope, activation, add, slice, concat, merge)."""

    kind: str
    bytes_moved: int


@dataclass(frozen=True, slots=True)
class GroupCollective:
    """A collective inside one node. ``num_bytes`` is nccl-tests' size column
    (all_gather: total output; reduce_scatter: total input; all_to_all: one rank's buffer)."""

    kind: str
    num_bytes: int
    gpus: int


ComputeKernel = Gemm | AttentionPrefill | AttentionDecode | Moe | Memory
Kernel = ComputeKernel | GroupCollective


def attended_pairs(seq_q: int, seq_kv: int, *, causal: bool, window: int = 0) -> int:
    """Number of (query, key) pairs one head of one sequence scores, exactly.

    Causal, bottom-right: query i sees ``past + i + 1`` keys with ``past = seq_kv − seq_q``; a window
    of w keeps min(w, ·) of them. The sum over i is an arithmetic series plus a flat part.
    """
    if not causal:
        return seq_q * min(seq_kv, window) if window else seq_q * seq_kv
    past = seq_kv - seq_q
    if not window or window >= seq_kv:
        return seq_q * past + seq_q * (seq_q + 1) // 2
    growing = min(max(window - past, 0), seq_q)  # rows that still see fewer than `window` keys
    return growing * past + growing * (growing + 1) // 2 + (seq_q - growing) * window


def expert_rows(kernel: Moe) -> int:
    """Token-expert pairs one GPU of a balanced group computes (rounded up)."""
    return -(-kernel.tokens * kernel.topk // kernel.ep)


def flops(kernel: Kernel) -> int:
    """Multiply-adds count two. Attention: QKᵀ and PV, so 4·head_dim FLOPs a scored pair."""
    match kernel:
        case Gemm(m=m, n=n, k=k):
            return 2 * m * n * k
        case AttentionPrefill():
            pairs = attended_pairs(kernel.seq_q, kernel.seq_kv, causal=kernel.causal, window=kernel.window)
            return 4 * kernel.batch * kernel.heads * kernel.head_dim * pairs
        case AttentionDecode():
            keys = min(kernel.context, kernel.window or kernel.context)
            return 4 * kernel.batch * kernel.heads * kernel.head_dim * keys
        case Moe():
            matrices = 3 if kernel.gated else 2
            return 2 * matrices * expert_rows(kernel) * kernel.hidden * (kernel.inter // kernel.tp)
        case Memory() | GroupCollective():
            return 0


def memory_bytes(kernel: Kernel) -> int:
    """Fewest bytes through device memory: each input read once, each output written once."""
    match kernel:
        case Gemm(m=m, n=n, k=k, dtype=dtype):
            return (m * k + k * n + m * n) * DTYPE_BYTES[dtype]
        case AttentionPrefill():
            keys = kernel.seq_kv if not kernel.window else min(kernel.seq_kv, kernel.window + kernel.seq_q)
            rows = 2 * kernel.seq_q * kernel.heads + 2 * keys * kernel.kv_heads
            return kernel.batch * rows * kernel.head_dim * DTYPE_BYTES[kernel.dtype]
        case AttentionDecode():
            keys = min(kernel.context, kernel.window or kernel.context)
            rows = 2 * kernel.heads + 2 * keys * kernel.kv_heads
            return kernel.batch * rows * kernel.head_dim * DTYPE_BYTES[kernel.dtype]
        case Moe():
            touched = min(kernel.experts // kernel.ep, expert_rows(kernel))
            weights = (3 if kernel.gated else 2) * touched * kernel.hidden * (kernel.inter // kernel.tp)
            return (weights + 2 * expert_rows(kernel) * kernel.hidden) * DTYPE_BYTES[kernel.dtype]
        case Memory(bytes_moved=num_bytes) | GroupCollective(num_bytes=num_bytes):
            return num_bytes
