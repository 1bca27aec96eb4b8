"""A run that fails: soon, with the culprit's name and last operation, finished steps readable, no orphans.

Four faults here, twenty runs with culprit, step and world size drawn anew for the report; all over real processes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from executor.environment import environment
from executor.runner import last_operation, partial
from executor.session import Generation
from executor.supervisor import Supervisor, worker_environment
from simulator.errors import ExecutionError
from simulator.placement import AttentionGrid
from tests.executor_faults import Fault, generate_with_fault
from tests.executor_world import generation_of
from tests.reliability.scale import of, record
from tests.schemes import pooled, static, tiny_model

MODEL = tiny_model()
WORLDS: dict[int, Generation] = {
    2: generation_of(MODEL, static(MODEL, 2), world=2),
    3: generation_of(MODEL, pooled(MODEL, 2, AttentionGrid(heads=(8,))), world=3),
    4: generation_of(MODEL, static(MODEL, 4), world=4),
}
TIMEOUT_S = 2.0
KILLED_S = 5.0
NOTICED_S: dict[Fault, float] = {"kill": KILLED_S, "raise": KILLED_S, "hang": TIMEOUT_S + 5.0, "stop": TIMEOUT_S + 5.0}
WORDS: dict[Fault, str] = {
    "kill": "rank {} died (signal SIGKILL)",
    "hang": "rank {} hung",
    "stop": "rank {} hung",
    "raise": "rank {} failed: ValueError: the matrix is singular",
}


def runs() -> list[tuple[Fault, int, int, int]]:
    """(fault, world size, culprit, step). The culprit has a Linear to fail in: pool ranks have none."""
    chosen: list[tuple[Fault, int, int, int]] = [(fault, 2, 1, 2) for fault in NOTICED_S]
    chance = random.Random(0)
    for number in range(of(0, 16)):
        size = chance.choice((2, 3, 4))
        culprit = chance.randrange(2 if size == 3 else size)
        chosen.append((list(NOTICED_S)[number % 4], size, culprit, chance.randrange(4)))
    return chosen


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(("fault", "size", "culprit", "step"), runs())
def test_a_failing_rank_ends_the_run_and_is_named(
    fault: Fault, size: int, culprit: int, step: int, tmp_path: Path
) -> None:
    generation = WORLDS[size]
    world = Supervisor(size, directory=tmp_path, timeout_s=TIMEOUT_S)
    pids = [process.popen.pid for process in world.processes]
    began_s = time.monotonic()
    with pytest.raises(ExecutionError) as caught:
        world.run(
            generate_with_fault, generation, culprit, step, fault,
            describe=lambda rank, progress: last_operation(generation, rank, progress),
        )  # fmt: skip
    ended_s = time.monotonic() - began_s
    assert ended_s < NOTICED_S[fault]
    message = str(caught.value)
    assert WORDS[fault].format(culprit) in message
    assert f"(Linear, layer 0, micro-batch 0) of {f'decode step {step}' if step else 'prefill'}" in message
    assert not any(alive(pid) for pid in pids)
    finished = partial(generation, tmp_path, environment(torch.device("cpu"), "math"))
    assert [done.index for done in finished.steps] == list(range(step))
    with pytest.raises(ExecutionError, match="closed by an earlier failure"):
        world.run(generate_with_fault, generation, culprit, step, fault)
    record("rank failure", runs=1, fault=fault, seconds=round(ended_s, 2), limit_s=NOTICED_S[fault])


def test_workers_end_when_their_supervisor_is_killed() -> None:
    command = [sys.executable, "-m", "tests.executor_faults"]
    done = subprocess.run(command, env=worker_environment(), capture_output=True, text=True, timeout=120, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    until_s = time.monotonic() + 5.0
    while any(alive(pid) for pid in pids) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
