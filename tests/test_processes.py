"""Workers of a plan do not outlive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner.processes import LOOK_EVERY_S, each

ROOT = Path(__file__).resolve().parents[1]
PARENT = """
import os, sys, time
from planner.processes import process_pool
if __name__ == "__main__":
    with process_pool(2, start=sys.argv[1]) as pool:
        print(*set(pool.map(nap, [0.2, 0.2])), flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_are_gone_soon_after_their_parent_was_killed(tmp_path, start):
    script = tmp_path / "parent.py"
    naps = "def nap(seconds):\n    time.sleep(seconds)\n    return os.getpid()\n"
    script.write_text(PARENT.replace("if __name__", naps + "if __name__", 1))
    child = subprocess.Popen(
        [sys.executable, str(script), start],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    workers = [int(word) for word in child.stdout.readline().split()]
    assert workers
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 10 * LOOK_EVERY_S  # a busy machine's patience
    while any(_runs(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if _runs(worker)]


class Counting:
    """How many cases this object was asked for."""

    asked = 0

    def __call__(self, case: int) -> tuple[int, int]:
        self.asked += 1
        return case, self.asked


def test_a_workers_cases_are_one_objects_and_come_back_in_order():
    found = each(Counting(), range(5), 2)
    assert [case for case, _ in found] == list(range(5))
    assert max(asked for _, asked in found) >= 3  # 5 cases, 2 workers


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat", encoding="ascii") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
