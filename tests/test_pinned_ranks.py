"""Ranks that stay on a core of their node: they share that core, however idle the others are."""

from __future__ import annotations

import pytest

from simulator.cluster import Cluster
from simulator.host import Host
from simulator.simulation.engine import World, run
from simulator.simulation.timeline import Timeline
from tests.hand_made import compute, cpu_cluster, durations, program, recv, send


def spans(timeline: Timeline) -> list[list[tuple[float, float]]]:
    """Start and end of every operation, ms."""
    return [
        [(start / 1e9, end / 1e9) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        for starts, ends in zip(timeline.start_ps, timeline.end_ps, strict=True)
    ]


def pinned(ranks: int, cores: int, *, link: float = 1e9) -> Cluster:
    cluster = cpu_cluster(ranks, cores, link=link)
    nodes = tuple(node.model_copy(update={"pinned": True}) for node in cluster.nodes)
    return cluster.model_copy(update={"nodes": nodes})


def test_two_ranks_pinned_to_one_core_share_it_while_the_other_is_idle() -> None:
    built = program([compute()], [], [compute()])  # ranks 0 and 2: both on core 0 of 2
    assert spans(run(built, cpu_cluster(3, 2), durations(built, 1e-3)))[0] == [(0, 1)]
    assert spans(run(built, pinned(3, 2), durations(built, 1e-3)))[0] == [(0, 2)]


def test_ranks_pinned_to_different_cores_still_share_what_the_node_can_do_in_all() -> None:
    built = program([compute()], [compute()])
    world = World(hosts={"cpu": Host(core_capacity=1.6)})
    assert spans(run(built, pinned(2, 2), durations(built, 1e-3), world))[0] == [(0, 1.25)]  # 2 / 1.6


def test_bytes_cost_the_cores_of_the_ranks_that_move_them() -> None:
    """0.5 ns a byte at each end, ranks 0 and 2 on core 0: 1 MB takes 1 ms of it; between two cores 0.5 ms of each."""
    same = program([compute(writes=["x"]), send(2, "x", 10**6)], [], [recv(0, "x", 10**6)])
    other = program([compute(writes=["x"]), send(1, "x", 10**6)], [recv(0, "x", 10**6)])
    world = World(hosts={"cpu": Host(transfer_core_s_per_byte=0.5e-9)})
    ended = [
        spans(run(built, pinned(3, 2, link=4e9), durations(built, 1e-3), world))[0][1][1] for built in (same, other)
    ]
    assert ended == [pytest.approx(2.0), pytest.approx(1.5)]  # after a kernel of 1 ms


def test_pinning_needs_to_know_the_cores() -> None:
    node = cpu_cluster(2, 2).nodes[0].model_dump() | {"cores": None, "pinned": True}
    with pytest.raises(ValueError, match=r"nodes\[0\].pinned: needs cores"):
        Cluster.model_validate(cpu_cluster(2, 2).model_dump() | {"nodes": [node]})
