"""A run that fails: soon, with the culprit's name and last operation, finished steps readable, no orphans."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executor.environment import environment
from executor.runner import last_operation, partial
from executor.supervisor import Supervisor, worker_environment
from simulator.errors import ExecutionError
from simulator.placement import AttentionGrid
from tests.executor_faults import Fault, generate_with_fault
from tests.executor_world import generation_of
from tests.schemes import pooled, tiny_model

import torch  # isort: skip

MODEL = tiny_model()
GENERATION = generation_of(MODEL, pooled(MODEL, 2, AttentionGrid(heads=(8,))), world=3)
TIMEOUT_S = 2.0
CULPRIT, FAULTY_STEP = 1, 2


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    ("fault", "limit_s", "words"),
    [
        ("kill", 5.0, "rank 1 died (signal SIGKILL)"),
        ("hang", TIMEOUT_S + 5.0, "rank 1 hung"),
        ("stop", TIMEOUT_S + 5.0, "rank 1 hung"),
        ("raise", 5.0, "rank 1 failed: ValueError: the matrix is singular"),
    ],
)
def test_a_failing_rank_ends_the_run_and_is_named(fault: Fault, limit_s: float, words: str, tmp_path: Path) -> None:
    world = Supervisor(3, directory=tmp_path, timeout_s=TIMEOUT_S)
    pids = [process.popen.pid for process in world.processes]
    began_s = time.monotonic()
    with pytest.raises(ExecutionError) as caught:
        world.run(
            generate_with_fault, GENERATION, CULPRIT, FAULTY_STEP, fault,
            describe=lambda rank, progress: last_operation(GENERATION, rank, progress),
        )  # fmt: skip
    assert time.monotonic() - began_s < limit_s
    message = str(caught.value)
    assert words in message
    assert "(Linear, layer 0, micro-batch 0) of decode step 2" in message
    assert not any(alive(pid) for pid in pids)
    finished = partial(GENERATION, tmp_path, environment(torch.device("cpu"), "math"))
    assert [step.index for step in finished.steps] == list(range(FAULTY_STEP))
    with pytest.raises(ExecutionError, match="closed by an earlier failure"):
        world.run(generate_with_fault, GENERATION, CULPRIT, FAULTY_STEP, fault)


def test_workers_end_when_their_supervisor_is_killed() -> None:
    command = [sys.executable, "-m", "tests.executor_faults"]
    done = subprocess.run(command, env=worker_environment(), capture_output=True, text=True, timeout=120, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    until_s = time.monotonic() + 5.0
    while any(alive(pid) for pid in pids) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
