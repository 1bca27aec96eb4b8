"""A calibration killed at random points and taken up again has the points of one that was not, each timed once.

Real kernels timed by a real process that is killed with SIGKILL: a few times here, at twenty points for the report.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch

from calibration.journal import Journal
from calibration.sweep import cpu_kernels
from executor.timing import time_kernel
from simulator.errors import AttnplanError
from simulator.kernel import ComputeKernel
from tests.reliability.scale import of, record

FACTS = {"device": "this core", "torch": torch.__version__, "seed": "0"}


def calibrate(path: Path, kernels: tuple[ComputeKernel, ...]) -> None:
    """Time what the journal does not have yet, one point after another."""
    with Journal(path, FACTS) as journal:
        for kernel in kernels:
            if kernel not in journal.seconds:
                journal.add(kernel, time_kernel(kernel, torch.device("cpu"), dtype="fp32", budget_s=0.01))


def points(path: Path) -> dict[ComputeKernel, float]:
    with Journal(path, FACTS) as journal:
        return dict(journal.seconds)


def test_a_calibration_killed_again_and_again_ends_with_the_same_points(tmp_path: Path) -> None:
    path, chance, kills = tmp_path / "points.jsonl", random.Random(0), of(4, 20)
    kernels = cpu_kernels("fp32")[: 10 * kills]
    context, before, most_lost = multiprocessing.get_context("fork"), dict[ComputeKernel, float](), 0
    for _ in range(kills):
        process = context.Process(target=calibrate, args=(path, kernels))
        process.start()
        wait_for_more(path, chance.randrange(1, 6))
        lines = path.read_bytes().count(b"\n")
        process.kill()
        process.join()
        after = points(path) if path.exists() else {}
        assert list(after)[: len(before)] == list(before), "a point that was on disk is gone or has moved"
        assert all(after[kernel] == seconds for kernel, seconds in before.items()), "a point was timed twice"
        most_lost = max(most_lost, lines - 1 - len(after))
        before = after
    assert 0 < len(before) < len(kernels), "the kills did not fall into the calibration"
    calibrate(path, kernels)
    assert tuple(points(path)) == kernels
    assert most_lost <= 0, "a finished point was lost"
    record("killed calibration", kills=kills, points=len(kernels), finished_points_lost=max(0, most_lost))


def wait_for_more(path: Path, count: int) -> None:
    """Until ``count`` more points are on disk, and a moment into the next."""
    begun = path.read_bytes().count(b"\n") if path.exists() else 0
    until_s = time.monotonic() + 30.0
    while (path.read_bytes().count(b"\n") if path.exists() else 0) < begun + count:
        assert time.monotonic() < until_s, "no point was written"
        time.sleep(0.001)
    time.sleep(0.002)


@pytest.mark.parametrize("cut", range(1, of(6, 40)))
def test_a_line_cut_short_anywhere_costs_that_point_only(cut: int, tmp_path: Path) -> None:
    path, kernels = tmp_path / "points.jsonl", cpu_kernels("fp32")[:3]
    with Journal(path, FACTS) as journal:
        for number, kernel in enumerate(kernels, 1):
            journal.add(kernel, float(number))
    path.write_bytes(path.read_bytes()[:-cut])
    assert points(path) == {kernels[0]: 1.0, kernels[1]: 2.0}
    with Journal(path, FACTS) as journal:
        journal.add(kernels[2], 4.0)
    assert points(path) == {kernels[0]: 1.0, kernels[1]: 2.0, kernels[2]: 4.0}


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"kernel": "Gemm", "m": "x", "seconds": 1.0}', b"\xff\n", b'{"kernel": NaN}', b"{}", b"null"],
)
def test_a_journal_that_is_not_one_is_refused(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_bytes(json.dumps({"facts": FACTS}).encode() + b"\n" + line + b"\n")
    with pytest.raises(AttnplanError, match=r"points\.jsonl"):
        points(path)


def test_another_torch_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    with Journal(path, {**FACTS, "torch": "1.0"}):
        pass
    with pytest.raises(AttnplanError, match=r"torch was '1\.0', is"):
        points(path)
