"""Timing: kernels become the operations that a program holds; what is timed is what was asked for."""

from __future__ import annotations

import pytest
import torch

from calibration.rows import TimedRow
from calibration.sweep import CPU_MAX_FLOP, CPU_MOST, cpu_kernels, cuda_device, hints_of
from executor.bench import Bench
from executor.memory_operations import memory_operation
from executor.timing import calls_of, expert_counts, time_kernel
from executor.world_timing import MessageTime, core_s_per_byte, issue_cost, latency_and_bandwidth, receive_cost
from simulator.costs.work import kernels_of
from simulator.errors import ProfileError
from simulator.kernel import AttentionDecode, AttentionPrefill, ComputeKernel, Gemm, Memory, Moe, flops
from simulator.lowering import lower
from simulator.workload import prefill_step
from tests.schemes import static, tiny_model

CPU = torch.device("cpu")
KERNELS: list[ComputeKernel] = [
    Gemm(8, 32, 16, "fp32"),
    Gemm(8, 32, 16, "bf16"),
    AttentionPrefill(2, 8, 8, 4, 2, 16, True, 0, "fp32"),
    AttentionPrefill(1, 8, 24, 4, 4, 16, True, 5, "fp32"),
    AttentionPrefill(1, 8, 24, 4, 4, 16, False, 0, "bf16"),
    AttentionDecode(3, 20, 4, 2, 16, 0, "fp32"),
    AttentionDecode(3, 20, 4, 2, 16, 7, "fp32"),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_the_operation_timed_has_the_kernel_asked_for(kernel: ComputeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("executor.timing.compute", lambda operation, reads, rank: seen.append(operation))
    assert not isinstance(kernel, Memory)
    for call in calls_of(kernel, Bench(CPU, kernel.dtype))[:1]:
        call()
    found = kernels_of(seen[0], kernel.dtype)
    if isinstance(kernel, AttentionDecode) and kernel.window:  # only the keys in the window are read
        kernel = AttentionDecode(3, kernel.window, 4, 2, 16, 0, "fp32")
    assert found == (kernel,)


@pytest.mark.parametrize("kind", ["norm", "rope", "copy", "merge", "activation", "add", "embed", "dispatch", "sample"])
@pytest.mark.parametrize("num_bytes", [2**16, 2**22])
def test_memory_operations_move_about_the_bytes_asked_for(kind: str, num_bytes: int) -> None:
    operation, _ = memory_operation(kind, num_bytes // 4, Bench(CPU, "fp32"))
    (kernel,) = kernels_of(operation, "fp32")
    assert isinstance(kernel, Memory)
    assert kernel.kind == kind
    assert 0.4 * num_bytes <= kernel.bytes_moved <= 1.3 * num_bytes  # whole rows, and slots with room to spare


@pytest.mark.parametrize(
    "kernel", [*KERNELS, Moe(16, 32, 16, 2, 8, 1, 2, "balanced", True, "fp32"), Memory("add", 4096)]
)
def test_every_kernel_has_a_time(kernel: ComputeKernel) -> None:
    assert 0 < time_kernel(kernel, CPU, dtype="fp32", budget_s=0.001) < 1


def test_what_cannot_be_timed_is_refused_by_name() -> None:
    with pytest.raises(ProfileError, match="'fp8' cannot be run here"):
        time_kernel(Gemm(1, 1, 1, "fp8"), CPU)
    with pytest.raises(ProfileError, match="unknown memory kernel 'teleport'"):
        time_kernel(Memory("teleport", 10), CPU, dtype="fp32")


def test_balanced_experts_share_rows_and_a_power_law_does_not() -> None:
    even = Moe(128, 32, 16, 2, 8, 1, 2, "balanced", True, "fp32")
    assert expert_counts(even).tolist() == [32, 32, 32, 32]  # 128·2 rows over 2 GPUs of 4 experts
    skewed = Moe(128, 32, 16, 2, 8, 1, 2, "power_law_1.2", True, "fp32")
    counts = expert_counts(skewed).tolist()
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) > 128


def test_a_sweep_begins_with_the_hints_and_holds_every_class_in_turn() -> None:
    hint = Gemm(77, 128, 64, "fp32")
    kernels = cpu_kernels("fp32", (hint,))
    assert kernels[0] == hint
    assert len(set(kernels)) == len(kernels)
    assert max(flops(kernel) for kernel in kernels) <= CPU_MAX_FLOP
    for kind in (Gemm, AttentionPrefill, AttentionDecode, Memory, Moe):
        assert any(isinstance(kernel, kind) for kernel in kernels[1:9])
        assert sum(isinstance(kernel, kind) for kernel in kernels[1:]) <= CPU_MOST


def test_a_plans_own_kernels_are_its_hints() -> None:
    model = tiny_model()
    program = lower(model, prefill_step(1, 40), static(model, 2), nodes=(0, 0), dtype="fp32")
    hints = hints_of((program, program))
    assert len(set(hints)) == len(hints)
    assert Gemm(40, 256, 128, "fp32") in hints  # gate and up, 2·128 of 2·256 columns
    assert AttentionPrefill(1, 40, 40, 4, 2, 16, True, 0, "fp32") in hints


def test_known_gpus_have_datasheet_peaks_and_others_the_best_rates_seen() -> None:
    rows = [TimedRow(Gemm(10, 10, 10, "bf16"), 1e-6, "here")]
    assert cuda_device("NVIDIA H200", 10, 132, rows).memory_bandwidth_bytes_per_s == 4.8e12
    assert cuda_device("Another", 10, 8, rows).compute_flop_per_s == pytest.approx(2e9)  # 2·10³ FLOP in 1 µs


def test_latency_and_bandwidth_of_a_straight_line() -> None:
    times = [
        MessageTime(size, 1.7e-4 + size / 2e9, size / 1e9, 5e-5 + size / 1e11, 2e-5)
        for size in (2**12, 2**16, 2**20, 2**22)
    ]
    latency_s, bandwidth = latency_and_bandwidth(times)
    assert latency_s == pytest.approx(1e-4)  # 170 µs less 50 of the sender's thread and 20 of the receiver's
    assert bandwidth == pytest.approx(2e9)
    assert core_s_per_byte(times) == pytest.approx(0.5e-9)  # 1 ns a byte at both ends together
    assert issue_cost(times) == pytest.approx((5e-5, 1e-11))
    assert receive_cost(times) == pytest.approx((2e-5, 0.0), abs=1e-15)
