"""Memory operations: for every kind of element-wise or copying kernel, an operation that moves a number of bytes.

``simulator.costs.work.memory_traffic`` counts an operation's bytes; this is its inverse, for the stopwatch.
"""

from __future__ import annotations

from math import ceil

import torch

from executor.bench import Bench
from executor.experts import Assignment, slots_of
from executor.operations import Value
from simulator import program as p
from simulator.errors import ProfileError
from simulator.tile import Tile
from simulator.workload import Sequences


def memory_operation(kind: str, elements: int, bench: Bench) -> tuple[p.Compute, list[Value]]:
    """An operation of ``kind`` that reads and writes about ``elements`` values, and what it reads."""
    width = 512 if elements >= 2**16 else 64
    place = {"layer": 0, "micro_batch": 0}
    match kind:
        case "norm":
            tokens = max(1, elements // (2 * width))
            norm = p.Norm(reads=("x",), writes=("y",), num_tokens=tokens, width=width, weight="norm", eps=1e-6, **place)
            return norm, [bench.tensor(tokens, width)]
        case "add":
            tokens = max(1, elements // (3 * width))
            add = p.Add(reads=("x", "y"), writes=("z",), num_tokens=tokens, width=width, **place)
            return add, [bench.tensor(tokens, width), bench.tensor(tokens, width)]
        case "activation":
            tokens = max(1, elements // (3 * width))
            active = p.Activation(
                reads=("x",), writes=("y",), num_tokens=tokens, width=width, kind="silu", gated=True, **place
            )
            return active, [bench.tensor(tokens, 2 * width)]
        case "rope":
            return _rope(max(1, elements // (2 * 3 * width)), width, bench)
        case "merge":
            return _merge(max(1, elements // (3 * width)), width, bench)
        case "copy":
            return _copy(max(2, elements // (2 * width)), width, bench)
        case "embed":
            tokens = max(1, elements // (2 * width))
            table = p.WeightSlice("embed", (0, 8192), (0, width))
            embed = p.Embed(reads=("tokens",), writes=("x",), num_tokens=tokens, weight=table, **place)
            return embed, [torch.randint(8192, (tokens,), device=bench.device)]
        case "sample":
            rows = max(1, elements // 8192)
            sample = p.Sample(reads=("x",), writes=("y",), layer=0, micro_batch=0, rows=rows, vocab=8192, shards=1)
            return sample, [bench.tensor(rows, 8192)]
        case "dispatch" | "route":
            return _dispatch(max(1, elements // (2 * 2 * width)), width, bench)
    raise ProfileError(f"timing: unknown memory kernel {kind!r}")


def _rope(tokens: int, width: int, bench: Bench) -> tuple[p.Compute, list[Value]]:
    """As many query as KV heads: 3·width columns."""
    batch = (Sequences(1, 0, tokens),)
    heads = width // 64
    operation = p.Rope(
        reads=("qkv",),
        writes=("q", "kv"),
        layer=0,
        micro_batch=0,
        batch=batch,
        block=(((0, tokens),),),
        num_tokens=tokens,
        heads=heads,
        kv_heads=heads,
        head_dim=64,
        theta=1e4,
        qk_norm=False,
        eps=1e-6,
    )
    return operation, [bench.tensor(tokens, 3 * width)]


def _merge(tokens: int, width: int, bench: Bench) -> tuple[p.Compute, list[Value]]:
    heads = width // 64
    operation = p.MergeAttention(
        reads=("a", "b", "c", "d"),
        writes=("o",),
        layer=0,
        micro_batch=0,
        num_tokens=tokens,
        heads=heads,
        head_dim=64,
        parts=2,
    )
    parts: list[Value] = []
    for _ in range(2):
        parts += [bench.tensor(tokens, heads, 64), bench.tensor(tokens, heads).float()]
    return operation, parts


def _copy(tokens: int, width: int, bench: Bench) -> tuple[p.Compute, list[Value]]:
    """Two halves put together."""
    half = tokens // 2
    batch = (Sequences(1, 0, 2 * half),)
    parts = tuple(Tile((0, 1), (((i * half, (i + 1) * half),),)) for i in range(2))
    whole = Tile((0, 1), (((0, 2 * half),),))
    operation = p.Concat(
        reads=("a", "b"),
        writes=("c",),
        layer=0,
        micro_batch=0,
        batch=batch,
        parts=parts,
        target=whole,
        row_width=width,
    )
    return operation, [bench.tensor(half, width), bench.tensor(half, width)]


def _dispatch(tokens: int, width: int, bench: Bench) -> tuple[p.Compute, list[Value]]:
    """Every token to two of eight experts, in slots with room for all: 2·tokens rows."""
    experts = torch.stack([torch.arange(tokens) % 8, (torch.arange(tokens) + 1) % 8], dim=1).to(bench.device)
    gates = torch.full(experts.shape, 0.5, device=bench.device)
    assignment = Assignment(experts, gates, slots_of(experts, 8))
    operation = p.Dispatch(
        reads=("x", "a"),
        writes=("rows",),
        layer=0,
        micro_batch=0,
        num_tokens=tokens,
        hidden=width,
        num_experts=8,
        top_k=2,
        experts=(0, 8),
        capacity=ceil(tokens / 4) + 2,
    )
    return operation, [bench.tensor(tokens, width), assignment]
