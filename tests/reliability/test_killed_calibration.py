"""A calibration killed at random points and taken up again has the points of one that was not, each timed once.

A real ``plan calibrate --device cpu`` is killed with SIGKILL, workers and all: twice here, at twenty points for the
report, which then lets it end. A calibration times the shapes of :func:`calibration.sweep.cpu_kernels` in their order
until its time is over, so the points of an uninterrupted one are a beginning of that order.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from calibration.journal import Journal
from calibration.points import facts, journal_beside
from calibration.sweep import cpu_kernels
from simulator.errors import AttnplanError
from simulator.kernel import ComputeKernel
from simulator.profile import load_profile
from tests.reliability.scale import FULL, ROOT, of, record

FACTS = {"device": "this core", "torch": torch.__version__, "seed": "0"}
COMMAND = (sys.executable, "-m", "planner.cli", "calibrate", "--device", "cpu", "-o", "profile.json")
PATIENCE_S = 300.0  # for the first new point: five processes import torch before it, on a machine that may be busy


def calibrating(folder: Path, budget_s: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "--budget", str(budget_s)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            text=True)  # fmt: skip


def points(path: Path, written_on: dict[str, str]) -> dict[ComputeKernel, float]:
    with Journal(path, written_on) as journal:
        return dict(journal.seconds)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_calibration_killed_again_and_again_keeps_every_point_and_times_none_twice(tmp_path: Path) -> None:
    output, chance, kills = tmp_path / "profile.json", random.Random(0), of(2, 20)
    journal, before = journal_beside(output), dict[ComputeKernel, float]()
    for _ in range(kills):
        process = calibrating(tmp_path, budget_s=600)
        wait_for_a_point(journal, process, lines(journal))
        time.sleep(chance.uniform(0.0, 1.0))
        finished = lines(journal) - 1
        process.kill()
        process.communicate()
        after = points(journal, facts("cpu", "fp32"))
        assert len(after) >= finished, "a finished point was lost"
        assert list(after.items())[: len(before)] == list(before.items()), "a point is gone, moved or timed twice"
        before = after
    assert tuple(before) == cpu_kernels("fp32")[: len(before)], "not the points of an uninterrupted calibration"
    assert not output.exists(), "a profile of a calibration that never ended"
    if FULL:
        assert_it_ends_with(before, tmp_path)
    record("killed calibration", kills=kills, points=len(before), finished_points_lost=0)


def wait_for_a_point(journal: Path, process: subprocess.Popen[str], begun: int) -> None:
    """Until the journal has a point more than its ``begun`` lines (the first line is its header)."""
    until_s = time.monotonic() + PATIENCE_S
    while lines(journal) <= max(1, begun):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until_s, "no point was written"
        time.sleep(0.005)


def assert_it_ends_with(known: Mapping[ComputeKernel, float], folder: Path) -> None:
    """A last run whose time is over at once: it keeps the points there are, writes the profile and sweeps up."""
    process = calibrating(folder, budget_s=1)
    _, complaint = process.communicate(timeout=600)
    assert process.returncode == 0, complaint
    assert f"{len(known)} points are timed already" in complaint
    profile = load_profile(str(folder / "profile.json"))
    assert sum(source.num_rows for source in profile.provenance) >= len(known), "it rests on fewer points than known"
    assert not journal_beside(folder / "profile.json").exists()


@pytest.mark.parametrize("cut", range(1, of(6, 40)))
def test_a_line_cut_short_anywhere_costs_that_point_only(cut: int, tmp_path: Path) -> None:
    path, kernels = tmp_path / "points.jsonl", cpu_kernels("fp32")[:3]
    with Journal(path, FACTS) as journal:
        for number, kernel in enumerate(kernels, 1):
            journal.add(kernel, float(number))
    path.write_bytes(path.read_bytes()[:-cut])
    assert points(path, FACTS) == {kernels[0]: 1.0, kernels[1]: 2.0}
    with Journal(path, FACTS) as journal:
        journal.add(kernels[2], 4.0)
    assert points(path, FACTS) == {kernels[0]: 1.0, kernels[1]: 2.0, kernels[2]: 4.0}


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"kernel": "Gemm", "m": "x", "seconds": 1.0}', b"\xff\n", b'{"kernel": NaN}', b"{}", b"null"],
)
def test_a_journal_that_is_not_one_is_refused(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_bytes(json.dumps({"facts": FACTS}).encode() + b"\n" + line + b"\n")
    with pytest.raises(AttnplanError, match=r"points\.jsonl"):
        points(path, FACTS)


def test_another_torch_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    with Journal(path, {**FACTS, "torch": "1.0"}):
        pass
    with pytest.raises(AttnplanError, match=r"torch was '1\.0', is"):
        points(path, FACTS)
