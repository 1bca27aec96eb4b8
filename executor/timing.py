"""Timing: the seconds of one kernel shape on this device, measured by running the executor's own operation.

A kernel becomes the operation a program would hold, with random weights; what the step would find cold (weights,
cached keys) is rotated through more copies than the caches hold. The median of several calls after a warm-up.
What it ignores: what other ranks do meanwhile (``world_timing`` measures that).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from executor.bench import Bench, Call
from executor.cache import LayerCache
from executor.clock import clock_for
from executor.experts import Ragged
from executor.memory_operations import memory_operation
from executor.operations import Rank, Value, compute
from executor.progress import State
from executor.weights import TORCH_DTYPES
from executor.worker import Worker
from simulator import program as p
from simulator.costs.columns import routing_alpha
from simulator.errors import ProfileError
from simulator.kernel import AttentionDecode, AttentionPrefill, ComputeKernel, Gemm, Memory, Moe, expert_rows
from simulator.units import DTYPE_BYTES

MIN_CALLS, MAX_CALLS = 3, 50
DEFAULT_BUDGET_S = 0.15
SWEEP_BUDGET_S = 0.04  # a kernel's share of a calibration of many
OTHER_ROWS = 512  # times 256 in fp32: half a megabyte a tensor, an L2 cache in all
CUDA_BATCH = 5  # calls between two events: one alone would time the launch


def time_kernel(
    kernel: ComputeKernel, device: torch.device, *, dtype: str = "", budget_s: float = DEFAULT_BUDGET_S
) -> float:
    """Seconds of ``kernel``; ``dtype`` is for ``Memory`` kernels, which have none of their own."""
    own = dtype or "bf16" if isinstance(kernel, Memory) else kernel.dtype
    if own not in TORCH_DTYPES:
        raise ProfileError(f"timing: dtype {own!r} cannot be run here; known: {', '.join(TORCH_DTYPES)}")
    with torch.inference_mode():
        return median_seconds(calls_of(kernel, Bench(device, own)), device, budget_s)


def median_seconds(calls: list[Call], device: torch.device, budget_s: float) -> float:
    """Median seconds of one call, going round ``calls``, after each was warmed up once."""
    for call in calls[:2]:
        call()
    clock, batch = clock_for(device), CUDA_BATCH if device.type == "cuda" else 1
    disturb = between_calls() if device.type == "cpu" else lambda: None
    times: list[float] = []
    began_s, number = time.perf_counter(), 0
    while len(times) < MIN_CALLS or (time.perf_counter() - began_s < budget_s and len(times) < MAX_CALLS):
        disturb()
        clock.start()
        for _ in range(batch):
            calls[number % len(calls)]()
            number += 1
        times.append(clock.seconds([clock.mark()])[0] / batch)
    return median(times)


def between_calls() -> Call:
    """What a step does between two operations alike: other code and other data, so that neither stays in a core's
    own caches (a norm of two rows takes 11 µs in a loop and 30 µs in a step)."""
    left, right = torch.ones(OTHER_ROWS, 256), torch.ones(256, 256)

    def disturb() -> Tensor:
        product = left @ right
        return torch.softmax(product + left, dim=-1).sum()

    return disturb


def calls_of(kernel: ComputeKernel, bench: Bench) -> list[Call]:
    """Calls that each run the kernel once, on other copies of what is cold."""
    match kernel:
        case Gemm():
            return _gemm(kernel, bench)
        case AttentionPrefill():
            return _prefill(kernel, bench)
        case AttentionDecode():
            return _decode(kernel, bench)
        case Moe():
            return _moe(kernel, bench)
        case Memory():
            return _memory(kernel, bench)


def _call(operation: p.Compute, reads: list[Value], rank: Rank) -> Call:
    return lambda: compute(operation, reads, rank)


def _gemm(kernel: Gemm, bench: Bench) -> list[Call]:
    rank, x = bench.rank(), bench.tensor(kernel.m, kernel.k)
    calls = []
    for copy in range(bench.copies(kernel.k * kernel.n * DTYPE_BYTES[kernel.dtype])):
        weight = p.WeightSlice(f"copy{copy}", (0, kernel.k), (0, kernel.n))
        operation = p.Linear(
            reads=("x",), writes=("y",), layer=0, micro_batch=0, num_tokens=kernel.m, weights=(weight,)
        )
        rank.weights.matrix(operation.weights)
        calls.append(_call(operation, [x], rank))
    return calls


def _attention(kernel: AttentionPrefill | AttentionDecode, segment: p.Segment, decode: bool) -> p.Attention:
    return p.Attention(
        reads=("q", "kv"),
        writes=("o",),
        layer=0,
        micro_batch=0,
        segments=(segment,),
        num_tokens=segment.count * segment.chunks[0].num_queries,
        heads=(0, kernel.heads),
        kv_heads=(0, kernel.kv_heads),
        group_size=kernel.heads // kernel.kv_heads,
        head_dim=kernel.head_dim,
        window=kernel.window,
        decode=decode,
    )


def _prefill(kernel: AttentionPrefill, bench: Bench) -> list[Call]:
    chunk = p.Chunk(kernel.seq_q, 0, kernel.seq_kv, kernel.causal)
    operation = _attention(kernel, p.Segment(kernel.batch, (chunk,), kernel.seq_kv), False)
    q = bench.tensor(kernel.batch * kernel.seq_q, kernel.heads, kernel.head_dim)
    kv = bench.tensor(kernel.batch * kernel.seq_kv, 2, kernel.kv_heads, kernel.head_dim)
    return [_call(operation, [q, kv], bench.rank(kernel.head_dim))]


def _decode(kernel: AttentionDecode, bench: Bench) -> list[Call]:
    first = max(0, kernel.context - kernel.window) if kernel.window else 0
    chunk = p.Chunk(1, first, kernel.context, False)
    operation = _attention(kernel, p.Segment(kernel.batch, (chunk,), kernel.context), True)
    q = bench.tensor(kernel.batch, kernel.heads, kernel.head_dim)
    shape = (kernel.batch, kernel.context, 2, kernel.kv_heads, kernel.head_dim)
    calls, size = [], DTYPE_BYTES[kernel.dtype]
    for _ in range(bench.copies(torch.Size(shape).numel() * size)):
        rank = bench.rank(kernel.head_dim)
        rank.cache.layers[0] = LayerCache(bench.tensor(*shape), [kernel.context] * kernel.batch)
        calls.append(_call(operation, [q], rank))
    return calls


def _moe(kernel: Moe, bench: Bench) -> list[Call]:
    """One GPU's experts on its rows, dropless; a power law's hottest experts are taken, as the tables do."""
    held, width = kernel.experts // kernel.ep, kernel.inter // kernel.tp
    counts = expert_counts(kernel)
    rows = bench.tensor(int(counts.sum()), kernel.hidden)
    rank = bench.rank()
    calls = []
    matrices = 3 if kernel.gated else 2
    for copy in range(bench.copies(matrices * held * kernel.hidden * width * DTYPE_BYTES[kernel.dtype])):
        operation = p.Experts(
            reads=("rows",),
            writes=("out",),
            layer=copy,
            micro_batch=0,
            num_tokens=kernel.tokens,
            hidden=kernel.hidden,
            intermediate=(0, width),
            num_experts=kernel.experts,
            top_k=kernel.topk,
            experts=(0, held),
            capacity=None,
            peers=1,
            kind="silu",
            gated=kernel.gated,
        )
        calls.append(_call(operation, [Ragged(rows, counts.to(bench.device))], rank))
        calls[-1]()
    return calls


def expert_counts(kernel: Moe) -> Tensor:
    """Rows of each expert of the busiest GPU. Power law: quantiles of x^−A on [1, E], as the profile's model has it."""
    held, alpha = kernel.experts // kernel.ep, routing_alpha(kernel.routing)
    total = expert_rows(kernel)
    if alpha == 0:
        return torch.bincount(torch.arange(total) % held, minlength=held)
    place = (torch.arange(kernel.experts, dtype=torch.float64) + 0.5) / kernel.experts
    power = 1 - alpha
    loads = (1 + place * (kernel.experts**power - 1)) ** (1 / power)
    share = loads / loads.sum() * kernel.tokens * kernel.topk
    hottest: Tensor = share.sort(descending=True).values[:held]
    return hottest.clamp(max=kernel.tokens).round().to(torch.int64)


def _memory(kernel: Memory, bench: Bench) -> list[Call]:
    """An operation of this kind that moves about ``bytes_moved`` (``work.memory_traffic`` counts them)."""
    operation, reads = memory_operation(kernel.kind, kernel.bytes_moved // DTYPE_BYTES[bench.dtype], bench)
    return [_call(operation, reads, bench.rank())]


def time_kernels(worker: Worker, kernels: Sequence[ComputeKernel], dtype: str, limit_s: float) -> list[float]:
    """Job: rank 0 times kernels in order until ``limit_s`` is over; the others rest. Seconds of those timed.

    With time left every kernel is timed again and the lower median counts: a disturbed window only ever adds.
    """
    found: list[float] = []
    began_s = time.monotonic()
    for number in range(2 * len(kernels)) if worker.world.rank == 0 else ():
        if time.monotonic() - began_s > limit_s:
            break
        worker.progress.note(State.RUNNING, number)
        kernel = kernels[number % len(kernels)]
        seconds = time_kernel(kernel, worker.world.device, dtype=dtype, budget_s=SWEEP_BUDGET_S)
        if number < len(kernels):
            found.append(seconds)
        else:
            found[number - len(kernels)] = min(found[number - len(kernels)], seconds)
    return found
