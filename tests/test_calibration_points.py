"""Timing points: which come first, what is timed again, what must not change underneath."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.choosing import LENGTH, NOISE, in_order
from calibration.journal import Journal
from calibration.points import driver_version, facts, journal_beside, time_points
from calibration.sweep import CUDA_MOST, cuda_kernels
from simulator.costs.columns import class_of, rows_of
from simulator.costs.gaussian_kernel import matern
from simulator.costs.physics import GEMM_START, Device, gemm
from simulator.errors import ProfileError
from simulator.kernel import AttentionPrefill, ComputeKernel, Gemm, Memory

H200 = Device(989e12, 4.8e12, 132, 2)
FACTS = {"device": "NVIDIA H200", "driver": "550.54.15", "torch": "2.13.0"}
SHAPES = tuple(Gemm(m, n, 64, "fp32") for m in (1, 4, 16, 64) for n in (8, 32, 128, 512))


def test_the_first_300_points_cover_every_class_and_repeat_none() -> None:
    chosen = in_order(cuda_kernels("bf16"), H200, (), CUDA_MOST)
    assert len(chosen) == len(set(chosen)) == CUDA_MOST
    first = [type(kernel) for kernel in chosen[:24]]
    assert {class_of(kernel) for kernel in chosen[:24] if not isinstance(kernel, Memory)} == {
        "gemm", "attention_prefill", "attention_decode", "moe",
    }  # fmt: skip
    assert Memory in first


def test_the_order_is_the_same_every_time() -> None:
    assert in_order(cuda_kernels("bf16"), H200, (), 60) == in_order(cuda_kernels("bf16"), H200, (), 60)


def test_a_plans_kernels_are_timed_earlier_than_others_alike() -> None:
    hint = AttentionPrefill(1, 4096, 16384, 5, 1, 128, True, 0, "bf16")
    hinted = in_order((*cuda_kernels("bf16"), [hint]), H200, (hint,), CUDA_MOST)
    plain = in_order((*cuda_kernels("bf16"), [hint]), H200, (), CUDA_MOST)
    assert hinted.index(hint) < (plain.index(hint) if hint in plain else CUDA_MOST)
    assert hinted.index(hint) < CUDA_MOST // 10


def test_chosen_points_leave_a_gaussian_process_surer_than_random_ones() -> None:
    gemms = cuda_kernels("bf16")[0]
    features = gemm(rows_of(gemms), GEMM_START, H200).features
    scale = features.std(axis=0)
    x = (features - features.mean(axis=0)) / np.where(scale > 1e-9, scale, 1.0)

    def unsure(points: list[int]) -> float:
        """Mean posterior variance: 1 − k(x, P)·(K(P, P) + noise)⁻¹·k(P, x)."""
        known = matern(x[points], x[points], LENGTH) + NOISE * np.eye(len(points))
        across = matern(x, x[points], LENGTH)
        return float(1.0 - (across * np.linalg.solve(known, across.T).T).sum(axis=1).mean())

    chosen = [gemms.index(kernel) for kernel in in_order([gemms], H200, (), 30)]
    draws = [np.random.default_rng(seed).permutation(len(gemms))[:30].tolist() for seed in range(5)]
    assert unsure(chosen) < min(unsure(draw) for draw in draws)


def test_points_in_the_journal_are_not_timed_again(tmp_path: Path) -> None:
    path, timed = tmp_path / "p.points", []

    def time_one(kernel: ComputeKernel) -> float:
        timed.append(kernel)
        return 1e-6

    time_points(SHAPES, time_one, Journal(path, FACTS), lambda number: number >= 5)
    rows = time_points(SHAPES, time_one, Journal(path, FACTS), lambda number: False)
    assert timed == list(SHAPES)
    assert [row.kernel for row in rows] == list(SHAPES)


def test_a_line_cut_short_by_a_crash_is_timed_again(tmp_path: Path) -> None:
    path = tmp_path / "p.points"
    with Journal(path, FACTS) as journal:
        journal.add(SHAPES[0], 1e-6)
        journal.add(SHAPES[1], 2e-6)
    path.write_bytes(path.read_bytes()[:-9])
    with Journal(path, FACTS) as journal:
        assert journal.seconds == {SHAPES[0]: 1e-6}
        journal.add(SHAPES[1], 3e-6)
    with Journal(path, FACTS) as journal:
        assert journal.seconds == {SHAPES[0]: 1e-6, SHAPES[1]: 3e-6}


@pytest.mark.parametrize("changed", ["device", "driver", "torch"])
def test_another_gpu_driver_or_torch_is_refused_by_name(tmp_path: Path, changed: str) -> None:
    path = tmp_path / "p.points"
    Journal(path, FACTS).__exit__(None, None, None)
    with pytest.raises(ProfileError, match=f"{changed} was '{FACTS[changed]}', is 'other'; remove the file"):
        Journal(path, FACTS | {changed: "other"})


@pytest.mark.parametrize("line", ["[]", "{", '{"kernel": "Gemm", "m": 1, "seconds": -1.0}', '{"kernel": "Nothing"}'])
def test_a_journal_that_is_none_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.points"
    path.write_text(json.dumps({"facts": FACTS}) + f"\n{line}\n")
    with pytest.raises(ProfileError, match=r"line 2.*remove the file to begin again"):
        Journal(path, FACTS)


def test_facts_name_the_device_and_torch() -> None:
    import torch

    found = facts("cpu", "fp32")
    assert found["torch"] == torch.__version__
    assert found["device"]


def test_the_driver_version_is_read_where_the_kernel_module_tells_it(tmp_path: Path) -> None:
    path = tmp_path / "version"
    path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert driver_version(path) == "550.54.15"
    assert driver_version(tmp_path / "none") == "unknown"


def test_the_journal_lies_beside_the_profile() -> None:
    assert journal_beside(Path("out/profile.json")) == Path("out/profile.json.points")
