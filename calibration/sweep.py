"""Sweep: times this machine's kernels, cores, messages and collectives with the executor's own operations.

    calibrate_cpu(budget_s)  →  Sweep  →  cpu_profile(sweep)
    calibrate_cuda(budget_s) →  Sweep  →  cuda_profile(sweep)

Kernels are timed one at a time on an idle world, worlds of two to four ranks afterwards. Shapes come class by class in
turn and in seeded order, so that a small budget still covers every class. ``hints`` (the kernels of a plan) go first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest

import numpy as np

from calibration.choosing import in_order
from calibration.fit import FitOptions, device_for, fit_profile
from calibration.in_steps import Played, preferred, rows_in_steps, with_classes
from calibration.journal import Journal
from calibration.points import SOURCE, time_points
from calibration.rows import TimedRow
from calibration.shared_cores import shared_cores
from calibration.teachers import one_core, one_rank_steps, play
from calibration.transfers import collective_curves
from simulator.cluster import Gpu
from simulator.costs.work import kernels_of
from simulator.host import Host
from simulator.kernel import (
    AttentionDecode,
    AttentionPrefill,
    ComputeKernel,
    Gemm,
    GroupCollective,
    Kernel,
    Memory,
    Moe,
    flops,
)
from simulator.profile import Profile, SendRecv
from simulator.program import Program

OnProgress = Callable[[str, float], None]
"""(what is being measured, share done of the whole)."""

CPU_RANKS = 4
KERNEL_SHARE = 0.5  # of the budget, for kernels alone …
STEPS_SHARE = 0.25  # … and for kernels in steps; the rest starts the processes and times worlds
CPU_MOST = 130  # shapes of a class: a small table, which a Gaussian process fits in a second
CPU_MAX_FLOP = 2e9  # some 40 ms on one core
CUDA_MAX_FLOP = 2e13
CUDA_MOST = 300  # points for one GPU, in ten minutes at most
CPU_MATRICES = ((64, 256), (128, 256), (256, 256), (512, 256), (1024, 256), (256, 128), (256, 512), (256, 1024),
                (512, 512), (1024, 1024), (2048, 512), (512, 2048), (4096, 1024))  # fmt: skip
CUDA_MATRICES = tuple((n, k) for n in (512, 1536, 4096, 16384) for k in (512, 2048, 4096, 16384))
CPU_HEADS = ((1, 1, 32), (2, 1, 32), (4, 2, 32), (8, 4, 32), (2, 2, 64), (8, 8, 64), (8, 2, 64))
CUDA_HEADS = ((1, 1, 128), (4, 1, 128), (4, 4, 128), (8, 8, 128), (32, 8, 128), (32, 32, 128))
DATASHEETS = {  # dense bf16 FLOP/s, bytes/s
    "H200": (989e12, 4.8e12),  # NVIDIA H200 datasheet, SXM
    "H100": (989e12, 3.35e12),  # NVIDIA H100 datasheet, SXM
    "A100-SXM4-80GB": (312e12, 2.039e12),  # NVIDIA A100 datasheet
    "A100-SXM4-40GB": (312e12, 1.555e12),
}
MEMORY_KINDS = ("norm", "rope", "copy", "merge", "activation", "add", "embed", "dispatch", "sample")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a calibration measured: timed rows, the device as found, what its ranks share, and programs played whole."""

    rows: tuple[TimedRow, ...]
    gpu: Gpu
    host: Host | None = None
    send_recv: SendRecv | None = None
    played: tuple[Played, ...] = ()


def calibrate_cpu(
    budget_s: float = 50.0,
    *,
    dtype: str = "fp32",
    hints: Sequence[ComputeKernel] = (),
    on_progress: OnProgress | None = None,
    journal: Journal | None = None,
) -> Sweep:
    """Time this machine's CPU as worlds of one-threaded ranks see it, in about ``budget_s`` seconds."""
    from executor.environment import cpu_name, usable_cores
    from executor.supervisor import Supervisor
    from executor.timing import time_kernels

    note = on_progress or (lambda what, share: None)
    began_s = time.monotonic()
    note("starting processes", 0.0)
    with Supervisor(CPU_RANKS, timeout_s=max(60.0, budget_s)) as world:
        deadline_s = KERNEL_SHARE * budget_s
        kernels = cpu_kernels(dtype, hints)

        def is_over(number: int) -> bool:
            spent_s = time.monotonic() - began_s
            note(f"kernels: {number} shapes timed", min(1.0, spent_s / budget_s))
            return spent_s > deadline_s

        def time_one(kernel: ComputeKernel) -> float:
            return float(world.run(time_kernels, (kernel,), dtype, deadline_s)[0][0])

        timed = time_points(kernels, time_one, journal, is_over)
        note("kernels in steps", KERNEL_SHARE)
        played = play(world, STEPS_SHARE * budget_s)
        note("cores, messages and collectives", KERNEL_SHARE + STEPS_SHARE)
        left_s = budget_s - (time.monotonic() - began_s)
        host, send_recv, collectives = _time_world(world, usable_cores(), left_s, note)
    rows = (*preferred(rows_in_steps(played), timed), *(TimedRow(k, s, SOURCE) for k, s in collectives))
    note("done", 1.0)
    return Sweep(rows, cpu_device(cpu_name(), rows), host, send_recv, played)


def _time_world(
    world: object, cores: int, left_s: float, note: OnProgress
) -> tuple[Host, SendRecv, list[tuple[Kernel, float]]]:
    from executor import world_timing as timing
    from executor.step_timing import Timing
    from executor.supervisor import Supervisor

    assert isinstance(world, Supervisor)
    loaded_s = max(0.3, min(1.0, left_s / 12))
    capacity, turn_share = shared_cores(world, cores, one_rank_steps(), Timing(loaded_s / 2))
    bandwidth = timing.memory_bandwidth_bytes_per_s(world, cores, loaded_s)
    times = timing.time_messages(world)
    latency_s, bytes_per_s = timing.latency_and_bandwidth(times)
    issue_s, issue_s_per_byte = timing.issue_cost(times)
    receive_s, receive_s_per_byte = timing.receive_cost(times)
    found: list[timing.CollectiveTime] = []
    for kind in timing.COLLECTIVE_KINDS:
        for num_ranks in range(2, CPU_RANKS + 1):
            note(f"{kind} of {num_ranks} ranks", 0.9)
            found.extend(timing.time_collective(world, kind, num_ranks))
    message_s, collective_s_per_byte = timing.collective_threads(found)
    host = Host(
        core_capacity=capacity,
        transfer_issue_s=issue_s,
        send_issue_s_per_byte=issue_s_per_byte,
        receive_s=receive_s,
        receive_s_per_byte=receive_s_per_byte,
        collective_message_s=message_s,
        collective_s_per_byte=collective_s_per_byte,
        turn_share=turn_share,
        memory_bandwidth_bytes_per_s=bandwidth,
    )
    measured = SendRecv(
        latency_s=latency_s,
        bandwidth_bytes_per_s=bytes_per_s,
        tag="measured",
        source=f"{SOURCE}: ping-pong of two ranks",
    )
    return host, measured, [(time.kernel, time.seconds) for time in found]


def calibrate_cuda(
    budget_s: float = 120.0,
    *,
    dtype: str = "bf16",
    hints: Sequence[ComputeKernel] = (),
    on_progress: OnProgress | None = None,
    journal: Journal | None = None,
) -> Sweep:
    """Time the current CUDA device, in this process. Collectives need several GPUs: import nccl-tests' logs."""
    import torch

    from executor.timing import time_kernel

    note = on_progress or (lambda what, share: None)
    device, began_s = torch.device("cuda"), time.monotonic()
    properties = torch.cuda.get_device_properties(device)
    candidates = [[k for k in kernels if flops(k) <= CUDA_MAX_FLOP] for kernels in (*cuda_kernels(dtype), hints)]
    guess = cuda_device(properties.name, properties.total_memory, properties.multi_processor_count, ())
    kernels = in_order(candidates, device_for(dtype, guess), hints, CUDA_MOST)

    def is_over(number: int) -> bool:
        spent_s = time.monotonic() - began_s
        note(f"kernels: {number} shapes timed", min(1.0, spent_s / budget_s))
        return spent_s > budget_s

    def time_one(kernel: ComputeKernel) -> float | None:
        try:
            return time_kernel(kernel, device, dtype=dtype)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None

    rows = time_points(kernels, time_one, journal, is_over)
    gpu = cuda_device(properties.name, properties.total_memory, properties.multi_processor_count, rows)
    return Sweep(rows, gpu)


def hints_of(programs: Iterable[Program]) -> tuple[ComputeKernel, ...]:
    """Every distinct kernel of the programs: what a calibration for one plan should time first."""
    return tuple(
        dict.fromkeys(
            kernel
            for program in programs
            for operations in program.ranks
            for operation in operations
            for kernel in kernels_of(operation, program.dtype)
        )
    )


def cpu_kernels(dtype: str, hints: Sequence[ComputeKernel] = ()) -> tuple[ComputeKernel, ...]:
    """Shapes of the size that CPU ranks finish in milliseconds."""
    attention = [
        AttentionPrefill(batch, seq_q, seq_q + past * seq_q, *heads, causal, 0, dtype)
        for batch, seq_q, past, heads, causal in product(
            (1, 2), (32, 64, 128, 256, 512, 1024), (0, 1, 3), CPU_HEADS, (True, True, False)
        )
    ]
    decode = [
        AttentionDecode(batch, context, *heads, 0, dtype)
        for batch, context, heads in product((1, 2, 4, 8), (64, 256, 1024, 4096), CPU_HEADS)
    ]
    gemm = [Gemm(m, n, k, dtype) for m in (1, 2, 4, 16, 64, 128, 256, 512, 1024, 2048) for n, k in CPU_MATRICES]
    moe = [
        Moe(tokens, 256, inter, 2, 8, 1, ep, "balanced", True, dtype)
        for tokens, inter, ep in product((2, 16, 128, 512), (256, 512), (1, 2, 4))
    ]
    memory = [Memory(kind, num_bytes) for kind in MEMORY_KINDS for num_bytes in (2**12, 2**15, 2**18, 2**21, 2**23)]
    return tuple(_in_turn((gemm, attention, decode, memory, moe), CPU_MAX_FLOP, hints, CPU_MOST))


def cuda_kernels(dtype: str) -> tuple[list[ComputeKernel], ...]:
    """Shapes of one GPU's share of a large model."""
    gemm = [
        Gemm(m, n, k, dtype)
        for m in (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 65536)
        for n, k in CUDA_MATRICES
    ]
    attention = [
        AttentionPrefill(batch, seq_q, seq_q + past * seq_q, *heads, True, 0, dtype)
        for batch, seq_q, past, heads in product(
            (1, 4), (128, 512, 1024, 2048, 4096, 8192, 16384), (0, 1, 3), CUDA_HEADS
        )
    ]
    decode = [
        AttentionDecode(batch, context, *heads, 0, dtype)
        for batch, context, heads in product((1, 8, 32, 128, 256), (512, 2048, 8192, 32768), CUDA_HEADS)
    ]
    moe = [
        Moe(tokens, 4096, inter, 2, 8, 1, ep, "balanced", True, dtype)
        for tokens, inter, ep in product((16, 128, 1024, 8192), (2048, 14336), (1, 2, 4, 8))
    ]
    memory = [Memory(kind, num_bytes) for kind in MEMORY_KINDS for num_bytes in (2**16, 2**20, 2**24, 2**27, 2**30)]
    return (gemm, attention, decode, memory, moe)  # type: ignore[return-value]


def _in_turn(
    classes: Sequence[Sequence[ComputeKernel]], max_flop: float, hints: Sequence[ComputeKernel], most: int = 10**6
) -> Iterator[ComputeKernel]:
    """Hints, then one shape of each class after another, ``most`` of each; none twice, none beyond ``max_flop``."""
    generator = np.random.default_rng(0)
    shuffled = [[shapes[i] for i in generator.permutation(len(shapes))[:most]] for shapes in classes]
    seen: set[ComputeKernel] = set()
    for kernel in (*hints, *(kernel for turn in zip_longest(*shuffled) for kernel in turn)):
        if kernel is not None and kernel not in seen and flops(kernel) <= max_flop:
            seen.add(kernel)
            yield kernel


def cpu_device(name: str, rows: Sequence[TimedRow]) -> Gpu:
    """One core as measured: its best GEMM rate, its best streaming rate and the memory it may use."""
    rates = [flops(row.kernel) / row.seconds for row in rows if isinstance(row.kernel, Gemm)]
    streams = [row.kernel.bytes_moved / row.seconds for row in rows if isinstance(row.kernel, Memory)]
    return Gpu(
        name="cpu-core",
        kind="cpu",
        compute_flop_per_s=max(rates, default=1e9),
        memory_bandwidth_bytes_per_s=max(streams, default=1e9),
        memory_bytes=2**31,
        num_sms=1,
        source=f"{SOURCE} ({name}): best rates seen, one thread",
    )


def cuda_device(name: str, memory_bytes: int, num_sms: int, rows: Sequence[TimedRow]) -> Gpu:
    """The device torch names, with its datasheet's dense bf16 peak and bandwidth if known, else the best seen."""
    seen = cpu_device(name, rows)
    known = next((peaks for part, peaks in DATASHEETS.items() if part in name), None)
    flop_per_s, bytes_per_s = known or (seen.compute_flop_per_s, seen.memory_bandwidth_bytes_per_s)
    return Gpu(
        name=name,
        compute_flop_per_s=flop_per_s,
        memory_bandwidth_bytes_per_s=bytes_per_s,
        memory_bytes=memory_bytes,
        num_sms=num_sms,
        source="datasheet, dense bf16" if known else f"{SOURCE}: best rates seen",
    )


def cuda_profile(sweep: Sweep, *, name: str = "local-cuda", donor: Profile | None = None) -> Profile:
    """The profile of a CUDA sweep; collectives and links are not in it. ``donor``: see ``calibration.transferring``."""
    options = replace(FitOptions(), name=name, source=SOURCE, tag="fitted", donor=donor)
    return fit_profile(sweep.rows, sweep.gpu, options)


def cpu_profile(sweep: Sweep, *, name: str = "local-cpu", donor: Profile | None = None) -> Profile:
    """The profile of a CPU sweep, with what its ranks share."""
    options = replace(FitOptions(), name=name, source=SOURCE, host_launch_s=0.0, tag="fitted", donor=donor)
    profile = fit_profile(sweep.rows, sweep.gpu, options)
    curves = collective_curves([row for row in sweep.rows if isinstance(row.kernel, GroupCollective)], "measured")
    profile = profile.model_copy(update={"host": sweep.host, "send_recv": sweep.send_recv, "collectives": curves})
    return with_classes(profile, sweep.played, one_core(sweep.gpu)) if sweep.played else profile
