"""Columns: kernels of a class as rows of numbers, and how far those lie from what calibration saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from simulator.costs import physics
from simulator.costs.physics import Array
from simulator.errors import SpecError
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, GroupCollective, Kernel, Memory, Moe
from simulator.profile import KernelModel

NOVEL_COLUMNS = frozenset({"causal", "window", "past", "alpha", "gated"})
NOVEL_OCTAVES = 1.0


def rows_of(kernels: Sequence[Kernel]) -> Array:
    """[n, columns] of kernels of one class."""
    return np.array([_columns(kernel) for kernel in kernels], dtype=np.float64)


def _columns(kernel: Kernel) -> tuple[float, ...]:
    match kernel:
        case Gemm():
            return kernel.m, kernel.n, kernel.k
        case AttentionPrefill(batch=batch, seq_q=seq_q, seq_kv=seq_kv, heads=heads):
            mask = (float(kernel.causal), float(kernel.window))
            return batch, seq_q, seq_kv, heads, kernel.kv_heads, kernel.head_dim, *mask
        case AttentionDecode(batch=batch, context=context, heads=heads):
            return batch, context, heads, kernel.kv_heads, kernel.head_dim, kernel.window
        case Moe(tokens=tokens, hidden=hidden, inter=inter, topk=topk, experts=experts):
            rest = (kernel.tp, kernel.ep, routing_alpha(kernel.routing), float(kernel.gated))
            return tokens, hidden, inter, topk, experts, *rest
        case Memory() | GroupCollective():
            raise AssertionError("memory kernels and collectives have no column form")


def class_of(kernel: Kernel) -> str:
    """``gemm``, ``attention_prefill``, ``attention_decode``, ``moe``, ``memory`` or ``collective``."""
    match kernel:
        case Gemm():
            return "gemm"
        case AttentionPrefill():
            return "attention_prefill"
        case AttentionDecode():
            return "attention_decode"
        case Moe():
            return "moe"
        case Memory():
            return "memory"
        case GroupCollective():
            return "collective"


def routing_alpha(routing: str) -> float:
    """0 for ``balanced`` (or empty); A for ``power_law_A``."""
    if routing in ("", "balanced"):
        return 0.0
    prefix, _, number = routing.rpartition("_")
    try:
        alpha = float(number)
    except ValueError:
        alpha = -1.0
    if prefix != "power_law" or not 0.0 < alpha < 10.0:
        raise SpecError(f"routing: unknown {routing!r}; known: balanced, power_law_A with 0 < A < 10")
    return alpha if alpha != 1.0 else 1.0 + 1e-6  # x^-1 is the limit of the generator's formula


def range_columns(kernel: str, rows: Array) -> dict[str, Array]:
    """What a calibrated range is stated in: the columns, for prefill the prefix, for experts their matrix."""
    values = {name: rows[:, i] for i, name in enumerate(physics.COLUMNS[kernel])}
    if kernel == "attention_prefill":
        values["past"] = values["seq_kv"] - values["seq_q"]
    if kernel == "moe":  # of one model: its experts' matrices
        values["matrix"] = values["hidden"] * values["inter"]
    return values


def octaves_outside(columns: Mapping[str, Array], model: KernelModel) -> Array:
    """Largest distance of any column from its calibrated range, in doublings (0 inside).

    A kind never timed (a prefix, a window, another mask or routing) is NOVEL_OCTAVES away however long it is:
    the physical counts cover it, no row confirms it.
    """
    worst = np.zeros(len(next(iter(columns.values()))))
    for name, values in columns.items():
        bounds = model.calibrated.get(name)
        if bounds is None:
            continue
        if name in NOVEL_COLUMNS:
            away = NOVEL_OCTAVES * ((values > bounds.high) | (values < bounds.low))
        else:
            above = np.log2(np.maximum(values, 1.0) / max(bounds.high, 1.0))
            below = np.log2(max(bounds.low, 1.0) / np.maximum(values, 1.0))
            away = np.maximum(above, below)
        worst = np.maximum(worst, away)
    return np.where(worst > 1e-9, worst, 0.0)
