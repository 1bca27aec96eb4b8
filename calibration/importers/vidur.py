"""Vidur's profiling tables → measured kernels and collectives.

What it reads: ``compute/*/mlp.csv`` (projections, feed-forward, norms of one layer under tensor parallelism)
and ``network/*/{all_reduce,send_recv}.csv``. Medians count; times are ms, sizes bytes, weights fp16.
What it ignores: min, max, mean and std, embeddings and rotary positions (their traffic is not stated).
Source: microsoft/vidur data/profiling (MIT); shapes from its vidur/profiling/mlp.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibration.importers.collective_row import CollectiveRow, Kind
from simulator.errors import SpecError
from simulator.formats.table import Row, read_rows
from simulator.kernel import ComputeKernel, Gemm, Memory

DTYPE, DTYPE_BYTES = "fp16", 2
NETWORK_KINDS: dict[str, Kind] = {"all_reduce": "all_reduce", "send_recv": "send_recv"}


@dataclass(frozen=True, slots=True)
class KernelRow:
    """A kernel and the time somebody measured for it."""

    kernel: ComputeKernel
    duration_s: float
    place: str
    tag: Literal["imported"] = "imported"


def read_compute(path: Path) -> tuple[KernelRow, ...]:
    """Every projection, feed-forward matrix, norm, activation and addition of an ``mlp.csv``."""
    rows = []
    for row in read_rows(path):
        kernels = _kernels(row)
        for name, kernel in kernels.items():
            duration_s = row.positive(f"time_stats.{name}.median") * 1e-3
            rows.append(KernelRow(kernel, duration_s, f"{row.place} {name}"))
    if not rows:
        raise SpecError(f"{path}: no rows; give Vidur's mlp.csv")
    return tuple(rows)


def _kernels(row: Row) -> dict[str, ComputeKernel]:
    """One rank's kernels: columns of the first matrix and rows of the second are divided by ``tp``."""
    tp = row.whole("num_tensor_parallel_workers", least=1)
    heads, kv_heads = row.whole("n_head", least=1), row.whole("n_kv_head", least=1)
    hidden, inter = row.whole("n_embd", least=1), row.whole("n_expanded_embd", least=1)
    tokens, gated = row.whole("num_tokens", least=1), _flag(row, "use_gated_mlp")
    for name, value in (("n_head", heads), ("n_kv_head", kv_heads), ("n_expanded_embd", inter)):
        if value % tp:
            raise SpecError(f"{row.place}: {name}: {value} does not divide by {tp} tensor-parallel workers")
    if hidden % heads:
        raise SpecError(f"{row.place}: n_embd: {hidden} does not divide by {heads} heads")
    head_dim, up = hidden // heads, (2 if gated else 1) * inter // tp
    hidden_bytes = tokens * hidden * DTYPE_BYTES
    norm = Memory("norm", 2 * hidden_bytes)  # read and written
    return {
        "attn_pre_proj": Gemm(tokens, (heads + 2 * kv_heads) * head_dim // tp, hidden, DTYPE),
        "attn_post_proj": Gemm(tokens, hidden, hidden // tp, DTYPE),
        "mlp_up_proj": Gemm(tokens, up, hidden, DTYPE),
        "mlp_down_proj": Gemm(tokens, hidden, inter // tp, DTYPE),
        "mlp_act": Memory("activation", tokens * (up + inter // tp) * DTYPE_BYTES),
        "input_layernorm": norm,
        "post_attention_layernorm": norm,
        "add": Memory("add", 3 * hidden_bytes),  # two read, one written
    }


def _flag(row: Row, column: str) -> bool:
    value = row.text(column)
    if value not in ("True", "False"):
        raise SpecError(f"{row.place}: {column}: neither True nor False, got {value[:40]!r}")
    return value == "True"


def read_network(path: Path) -> tuple[CollectiveRow, ...]:
    """Every (ranks, ranks a node, bytes) once: the median over ranks of each rank's median."""
    found: dict[tuple[Kind, int, int, int], list[tuple[float, str]]] = defaultdict(list)
    for row in read_rows(path):
        name = row.text("collective")
        if name not in NETWORK_KINDS:
            raise SpecError(f"{row.place}: collective: unknown {name[:40]!r}; known: {', '.join(NETWORK_KINDS)}")
        gpus, per_node = row.whole("num_workers", least=2), row.whole("devices_per_node", least=1)
        if gpus % per_node:
            raise SpecError(f"{row.place}: num_workers: {gpus} does not divide by {per_node} devices a node")
        duration_s = row.positive(f"time_stats.{name}.median") * 1e-3
        key = (NETWORK_KINDS[name], gpus, gpus // per_node, row.whole("size", least=1))
        found[key].append((duration_s, row.place))
    if not found:
        raise SpecError(f"{path}: no rows; give Vidur's all_reduce.csv or send_recv.csv")
    return tuple(
        CollectiveRow(
            kind,
            num_bytes=num_bytes,
            gpus=gpus,
            nodes=nodes,
            duration_s=statistics.median(duration_s for duration_s, _ in times),
            dtype=DTYPE,
            place=times[0][1],
        )
        for (kind, gpus, nodes, num_bytes), times in sorted(found.items())
    )
