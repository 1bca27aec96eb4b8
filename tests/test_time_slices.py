"""Slices: what a thread asked for is what it and its children get, where the kernel lets it ask."""

from __future__ import annotations

import subprocess
import sys

import pytest

from executor.time_slices import SLICE_S, own_slice_s

CODE = (
    "import threading; from executor.time_slices import ask_for_slices, own_slice_s; agreed = ask_for_slices(); "
    "found = [own_slice_s()]; thread = threading.Thread(target=lambda: found.append(own_slice_s())); "
    "thread.start(); thread.join(); print(agreed, *found)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's policies")
def test_a_rank_runs_in_batch_policy_where_the_kernel_agrees() -> None:
    code = (
        "import os; from executor.time_slices import ask_for_slices; "
        "print(ask_for_slices(), os.sched_getscheduler(0) == os.SCHED_BATCH)"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert text.split() in (["True", "True"], ["False", "False"])  # what was agreed is what is


@pytest.mark.skipif(own_slice_s() is None, reason="this kernel shows no slices (before Linux 6.12)")
def test_a_thread_and_the_threads_it_starts_have_the_slice_it_asked_for() -> None:
    text = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    assert text.split() == ["True", str(SLICE_S), str(SLICE_S)]


def test_where_nobody_can_be_asked_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from executor import time_slices

    monkeypatch.setattr("platform.machine", lambda: "abacus")
    assert not time_slices.ask_for_slices()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's policies")
def test_who_runs_when_the_machine_is_idle_goes_on_doing_so() -> None:
    code = (
        "import os; from executor.time_slices import ask_for_slices; "
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); "
        "print(ask_for_slices(), os.sched_getscheduler(0) == os.SCHED_IDLE)"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert text.split() == ["False", "True"]
