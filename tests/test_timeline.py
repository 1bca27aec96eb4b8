"""Timeline: its numbers by hand, parts that sum to the whole, the critical path, and the Chrome trace."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.program import Program
from simulator.simulation.critical_path import critical_path, path_times
from simulator.simulation.engine import World, run
from simulator.simulation.timeline import (
    Timeline,
    breakdown,
    covered,
    imbalance,
    link_utilisation,
    rank_times,
    utilisation,
)
from tests.hand_made import cluster, collective, compute, durations, program, recv, send
from tests.played import MB
from tests.random_programs import SHAPES, random_program


def overlapping() -> Program:
    """Rank 0: compute 0–1, send 1–4 (3 MB), compute 1–2. Rank 1: receive 1–4, compute 4–5."""
    return program([compute(writes=["a"]), send(1, "a", 3 * MB), compute()], [recv(0, "x", 3 * MB), compute(["x"])])


def timeline_of(built: Program, world: World | None = None) -> Timeline:
    return run(built, cluster(), durations(built, 1e-3), world)


def test_a_ranks_time_is_compute_exposed_transfer_and_idle() -> None:
    timeline = timeline_of(overlapping())
    first, second = rank_times(timeline, 0), rank_times(timeline, 1)
    assert (first.compute_s, first.hidden_s, first.exposed_s, first.idle_s) == (0.002, 0.001, 0.002, 0.001)
    assert (second.compute_s, second.hidden_s, second.exposed_s, second.idle_s) == (0.001, 0.0, 0.003, 0.001)


def test_the_breakdown_is_the_mean_over_ranks() -> None:
    parts = breakdown(timeline_of(overlapping(), World(launch_s=(0.0005, 0.0))))
    # compute (2 + 1)/2 − launch 0.5/2; exposed (2 + 3)/2; idle (1 + 1)/2
    assert parts.compute_s == pytest.approx(0.00125)
    assert parts.launch_s == pytest.approx(0.00025)
    assert parts.exposed_communication_s == pytest.approx(0.0025)
    assert parts.imbalance_s == pytest.approx(0.001)
    assert parts.total_s == pytest.approx(0.005)


def test_utilisation_and_imbalance_of_a_role() -> None:
    timeline = timeline_of(overlapping())
    assert utilisation(timeline, [0, 1]) == pytest.approx((2 + 1) / 2 / 5)
    assert utilisation(timeline, []) == 0.0
    assert imbalance(timeline, [0, 1]) == pytest.approx(2 / 1.5)


def test_a_links_utilisation_is_its_bytes_over_its_capacity() -> None:
    assert link_utilisation(timeline_of(overlapping())) == {
        "node 0 gpu 0 out": pytest.approx(0.6),  # 3 MB in 5 ms at 1 GB/s
        "node 0 gpu 1 in": pytest.approx(0.6),
    }


INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=12)


@settings(max_examples=500, deadline=None)
@given(INTERVALS)
def test_covered_time_is_the_number_of_covered_units(intervals: list[tuple[int, int]]) -> None:
    start = np.array([a for a, _ in intervals], dtype=np.int64)
    end = np.array([a + length for a, length in intervals], dtype=np.int64)
    assert covered(start, end) == len({unit for a, length in intervals for unit in range(a, a + length)})


def test_the_critical_path_goes_through_the_transfer_that_delays() -> None:
    path = critical_path(timeline_of(overlapping()))
    assert [(link.rank, link.operation) for link in path] == [(0, 0), (1, 0), (1, 1)]
    times = path_times(path)
    assert (times.compute_s, times.point_to_point_s, times.collective_s) == pytest.approx((0.002, 0.003, 0.0))


def test_the_critical_path_of_a_collective_comes_from_its_last_rank() -> None:
    built = program(
        [compute(writes=["a"]), collective((0, 1), MB, reads=["a"], writes=["s"]), compute(["s"])],
        [compute(), compute(writes=["a"]), collective((0, 1), MB, reads=["a"], writes=["s"])],
    )
    path = critical_path(timeline_of(built))
    assert [(link.rank, link.operation) for link in path] == [(1, 0), (1, 1), (0, 1), (0, 2)]


def test_an_empty_program_has_no_path_and_no_time() -> None:
    timeline = timeline_of(program([], []))
    assert critical_path(timeline) == ()
    assert timeline.duration_s == 0.0
    assert utilisation(timeline, [0]) == 0.0
    assert link_utilisation(timeline) == {}


@settings(max_examples=500, deadline=None)
@given(SHAPES)
def test_the_critical_path_has_no_gaps_and_every_breakdown_sums_to_the_step(
    shape: list[tuple[str, int, int, int]],
) -> None:
    timeline = timeline_of(random_program(shape))
    path = critical_path(timeline)
    assert path[0].start_ps == 0
    assert path[-1].end_ps == timeline.makespan_ps
    assert all(before.end_ps == after.start_ps for before, after in pairwise(path))
    assert path_times(path).total_s == pytest.approx(timeline.duration_s)
    assert breakdown(timeline).total_s == pytest.approx(timeline.duration_s)
