"""Ranks that share the cores and the memory of a CPU node."""

from __future__ import annotations

import pytest

from simulator.host import Host
from simulator.simulation.engine import World, run
from tests.hand_made import compute, cpu_cluster, durations, program, recv, send
from tests.played import MB, play, spans


def test_three_cpu_ranks_share_two_cores() -> None:
    built = program([compute()], [compute()], [compute(), compute()])
    # 3 at 2/3 core until 1.5 ms; the fourth kernel alone: 1 ms
    assert play(built, cpu_cluster(3, 2)) == [[(0, 1.5)], [(0, 1.5)], [(0, 1.5), (1.5, 2.5)]]


def test_a_host_may_have_less_capacity_than_cores() -> None:
    built = program([compute()], [compute()])
    world = World(hosts={"cpu": Host(core_capacity=1.6)})
    assert spans(run(built, cpu_cluster(2, 2), durations(built, 1e-3), world))[0] == [(0, 1.25)]  # 2 / 1.6


def test_kernels_of_a_cpu_node_share_its_memory_bandwidth() -> None:
    built = program([compute()], [compute()])
    world = World(
        hosts={"cpu": Host(memory_bandwidth_bytes_per_s=3e9)}, moved_bytes=[[2e6], [2e6]]
    )  # each alone moves 2 MB in 1 ms: 2 GB/s; together 4 of 3 GB/s
    assert spans(run(built, cpu_cluster(2, 2), durations(built, 1e-3), world))[1] == [(0, pytest.approx(4 / 3, 1e-9))]


def test_moving_bytes_costs_core_time_at_both_ends() -> None:
    """1 core, 0.5 ns a byte at each end: 1 MB takes 1 ms of that core and so 1 ms, though the bus takes 0.5 ms."""
    built = program([send(1, "a", MB)], [recv(0, "a", MB)])
    world = World(hosts={"cpu": Host(transfer_core_s_per_byte=0.5e-9)})
    assert spans(run(built, cpu_cluster(2, 1, link=2e9), [[0], [0]], world))[0] == [(0, pytest.approx(1, 1e-9))]
