"""Engine on random programs: symmetry, bounds, bytes, coalesced tasks, determinism."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.program import Recv, Send
from simulator.simulation.engine import run
from simulator.simulation.streams import tasks_of
from tests.hand_made import cluster, compute, cpu_cluster, durations, send
from tests.played import MS, play
from tests.random_programs import SHAPES, random_program
from tests.reliability.scale import ENOUGH


@ENOUGH
@given(SHAPES, st.permutations(range(4)))
def test_relabelling_the_ranks_of_a_symmetric_node_changes_nothing(
    shape: list[tuple[str, int, int, int]], order: list[int]
) -> None:
    plain = random_program(shape)
    other = random_program(shape, tuple(order))
    assume(all(len(ops) for ops in plain.ranks))
    times, moved = play(plain), play(other)
    assert [moved[order[rank]] for rank in range(4)] == [
        [(pytest.approx(a, abs=1e-8), pytest.approx(b, abs=1e-8)) for a, b in rank] for rank in times
    ]


@ENOUGH
@given(SHAPES)
def test_no_step_beats_its_compute_its_bytes_or_its_dependencies(shape: list[tuple[str, int, int, int]]) -> None:
    built = random_program(shape)
    machine = cluster(latency_s=1e-6)
    timeline = run(built, machine, durations(built, 1e-3))
    for rank, operations in enumerate(built.ranks):
        kernels = sum(type(o).__name__ == "Add" for o in operations)
        sent = sum(o.num_bytes for o in operations if isinstance(o, Send))
        received = sum(o.num_bytes for o in operations if isinstance(o, Recv))
        assert timeline.makespan_ps >= kernels * MS
        assert timeline.makespan_ps >= max(sent, received) * 1000 - len(operations)  # 1 GB/s: 1000 ps a byte
        starts, ends = timeline.start_ps[rank], timeline.end_ps[rank]
        writer: dict[str, int] = {}
        for index, operation in enumerate(operations):
            assert ends[index] >= starts[index] >= 0
            assert all(starts[index] >= ends[writer[name]] for name in operation.reads if name in writer)
            if isinstance(operation, Send | Recv):
                assert ends[index] - starts[index] >= 10**6  # the latency
            writer |= dict.fromkeys(operation.writes, index)


@ENOUGH
@given(SHAPES)
def test_bytes_on_the_links_are_the_messages_bytes(shape: list[tuple[str, int, int, int]]) -> None:
    """Sent = received = planned: each port carries its messages and a ring all-reduce of two moves S each way."""
    built = random_program(shape)
    timeline = run(built, cluster(), durations(built, 1e-3))
    carried = dict(zip((r.name for r in timeline.resources), timeline.resource_units, strict=True))
    for rank, operations in enumerate(built.ranks):
        both = sum(o.num_bytes for o in operations if type(o).__name__ == "Collective")
        sent = sum(o.num_bytes for o in operations if isinstance(o, Send))
        received = sum(o.num_bytes for o in operations if isinstance(o, Recv))
        assert carried[f"node 0 gpu {rank} out"] == pytest.approx(sent + both)
        assert carried[f"node 0 gpu {rank} in"] == pytest.approx(received + both)


@ENOUGH
@given(SHAPES)
def test_coalesced_tasks_run_as_the_single_operations_would(shape: list[tuple[str, int, int, int]]) -> None:
    """CPU nodes run operation by operation; with a core a rank, no transfer cost and the same link it is the same."""
    built = random_program(shape)
    gpus = play(built, cluster(4, kind="pcie"))
    cores = play(built, cpu_cluster(4, 4))
    for one, other in zip(gpus, cores, strict=True):
        assert one == [(pytest.approx(a, abs=1e-8), pytest.approx(b, abs=1e-8)) for a, b in other]


def test_compute_between_transfers_is_one_task() -> None:
    operations = [compute(writes=["a"]), compute(["a"], ["b"]), send(1, "b", 1), compute(), compute()]
    tasks = tasks_of([operations])
    assert (tasks.first, tasks.last) == ([0, 3, 2], [1, 4, 2])  # compute first, then transfers
    assert tasks.task_of.tolist() == [0, 0, 2, 1, 1]
    assert (tasks.left, tasks.followers) == ([0, 1, 2], [[1, 2], [], []])  # the Send has no Recv


SCRIPT = """
from simulator.simulation.chrome_trace import chrome_trace
from simulator.simulation.engine import World, run
from tests.hand_made import cluster, durations
from tests.random_programs import random_program
import hashlib
shape = [("message", i % 4, 1 + i % 3, 1 + i % 7) if i % 3 else ("collective", i % 4, 1 + i % 2, 3) for i in range(60)]
built = random_program(shape)
timeline = run(built, cluster(2, 2, latency_s=1e-6), durations(built, 1e-3), World(record_load=True))
print(hashlib.sha256(chrome_trace(timeline, cluster(2, 2)).encode()).hexdigest())
"""


def test_traces_are_byte_identical_under_any_hash_seed() -> None:
    digests = set()
    for seed in ("0", "1", "4711"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        digests.add(done.stdout)
    assert len(digests) == 1
