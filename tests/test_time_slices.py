"""Slices: what a thread asked for is what it and its children get, where the kernel lets it ask."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from executor.supervisor import worker_environment
from executor.time_slices import SLICE_S, own_slice_s
from executor.turns import keep_turns, rest

CODE = (
    "import threading; from executor.time_slices import ask_for_slices, own_slice_s; agreed = ask_for_slices(); "
    "found = [own_slice_s()]; thread = threading.Thread(target=lambda: found.append(own_slice_s())); "
    "thread.start(); thread.join(); print(agreed, *found)"
)


@pytest.mark.skipif(own_slice_s() is None, reason="this kernel shows no slices (before Linux 6.12)")
def test_a_thread_and_the_threads_it_starts_have_the_slice_it_asked_for() -> None:
    text = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    assert text.split() == ["True", str(SLICE_S), str(SLICE_S)]


def test_where_nobody_can_be_asked_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from executor import time_slices

    monkeypatch.setattr("platform.machine", lambda: "abacus")
    assert not time_slices.ask_for_slices()


SPIN = """
import os, time
from executor.time_slices import ask_for_slices
os.sched_setaffinity(0, {int(os.environ["CORE"])}); ask_for_slices()
runs, began, last = [], time.perf_counter(), time.perf_counter()
until = last + 0.3
while last < until:
    now = time.perf_counter()
    if now - last > 1e-4:
        runs.append(last - began); began = now
    last = now
print(max(runs))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's affinity")
def test_ranks_of_a_core_take_turns_shorter_than_the_kernels_tick() -> None:
    core = min(os.sched_getaffinity(0))
    environment = {**os.environ, "CORE": str(core)}
    kept = keep_turns([(core,), (core,)], worker_environment())
    try:
        ranks = [
            subprocess.Popen([sys.executable, "-c", SPIN], env=environment, stdout=subprocess.PIPE) for _ in range(2)
        ]
        longest_s = [float(rank.communicate(timeout=60)[0]) for rank in ranks]
    finally:
        rest(kept)
    assert len(kept) == 1
    assert min(longest_s) < 3e-3  # left to itself this kernel changes at its tick: 4 ms


def test_who_keeps_turns_ends_with_the_one_who_started_it() -> None:
    (kept,) = keep_turns([(0,), (0,)], worker_environment())
    assert kept.stdin is not None
    kept.stdin.close()
    assert kept.wait(timeout=30) == 0


def test_ranks_on_cores_of_their_own_need_nobody() -> None:
    assert keep_turns([(0,), (1,), (), ()], worker_environment()) == []
