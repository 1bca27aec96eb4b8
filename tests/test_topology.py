"""Topology: resources, capacities, routes; arithmetic routes equal networkx shortest paths."""

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster import Fabric
from simulator.errors import SpecError
from simulator.fabric.topology import Topology, graph
from tests.hand_made import cluster


def names(topology: Topology, source: int, target: int) -> list[str]:
    return [topology.resources[number].name for number in topology.route(source, target).resources]


def test_a_switch_gives_every_gpu_a_port_out_and_a_port_in() -> None:
    topology = Topology(cluster(4, latency_s=5e-6))
    assert names(topology, 1, 3) == ["node 0 gpu 1 out", "node 0 gpu 3 in"]
    assert topology.route(1, 3).latency_s == 5e-6
    assert len(topology.resources) == 8


def test_pairwise_links_share_a_gpus_bandwidth_over_its_peers() -> None:
    topology = Topology(cluster(4, link=3e9, kind="pairwise"))
    (number,) = topology.route(0, 2).resources
    assert topology.resources[number].bandwidth_bytes_per_s == 1e9  # 3e9 / (4 - 1)
    assert len(topology.resources) == 12  # ordered pairs


def test_a_bus_is_one_resource_for_all_pairs_and_both_directions() -> None:
    topology = Topology(cluster(4, kind="pcie"))
    assert topology.route(0, 1).resources == topology.route(3, 2).resources == (0,)


def test_messages_between_nodes_use_the_nics_of_both_gpus_and_the_spine_across_rails() -> None:
    topology = Topology(cluster(8, 2, nics=4, fabric=Fabric(latency_s=2e-6), nic_latency_s=5e-6))
    assert names(topology, 2, 11) == ["node 0 nic 1 out", "node 1 nic 1 in"]  # 2·4//8 = 3·4//8 = 1
    assert names(topology, 0, 15) == ["node 0 nic 0 out", "leaf 0.0 up", "leaf 0.3 down", "node 1 nic 3 in"]
    assert topology.hop_s(2, 11) == pytest.approx(7e-6)  # one NIC latency + leaf
    assert topology.hop_s(0, 15) == pytest.approx(11e-6)  # + leaf, spine, leaf
    assert topology.route(2, 11).latency_s == topology.route(0, 15).latency_s == pytest.approx(11e-6)


def test_without_rails_all_nics_of_a_node_hang_on_one_leaf() -> None:
    topology = Topology(cluster(2, 4, fabric=Fabric(rails=False, nodes_per_leaf=2, latency_s=0)))
    assert names(topology, 0, 3) == ["node 0 nic 0 out", "node 1 nic 1 in"]
    assert names(topology, 0, 5) == ["node 0 nic 0 out", "leaf 0 up", "leaf 1 down", "node 2 nic 1 in"]


def test_a_leafs_uplink_is_its_nics_over_the_oversubscription() -> None:
    topology = Topology(cluster(2, 6, fabric=Fabric(oversubscription=3.0), nic=25e9))
    up, _ = topology.uplink((0, 1))
    assert topology.resources[up].bandwidth_bytes_per_s == 50e9  # 6 nodes · 25e9 / 3
    assert not topology.never_binding
    assert up in Topology(cluster(2, 6)).never_binding


def test_more_nics_than_gpus_serve_a_gpu_together() -> None:
    topology = Topology(cluster(8, 2, nics=16, nic=12.5e9))
    assert topology.resources[topology.nic_of(3).out].bandwidth_bytes_per_s == 25e9


def test_fewer_nics_than_gpus_are_shared_by_neighbours() -> None:
    topology = Topology(cluster(8, 2, nics=2))
    assert [topology.resources[topology.nic_of(rank).out].name for rank in (0, 3, 4, 7)] == [
        "node 0 nic 0 out", "node 0 nic 0 out", "node 0 nic 1 out", "node 0 nic 1 out",
    ]  # fmt: skip


def test_a_single_node_has_no_nics_to_ask_for() -> None:
    with pytest.raises(SpecError, match="rank 0's node states no nics"):
        Topology(cluster(2)).nic_of(0)


def test_a_rank_reaches_itself_for_nothing() -> None:
    assert Topology(cluster(2)).route(1, 1).resources == ()


@settings(max_examples=500, deadline=None)
@given(
    gpus=st.integers(2, 5),
    nodes=st.integers(1, 4),
    nics=st.integers(1, 6),
    kind=st.sampled_from(["switch", "pairwise", "pcie"]),
    rails=st.booleans(),
    per_leaf=st.sampled_from([None, 1, 2]),
    pair=st.tuples(st.integers(0, 19), st.integers(0, 19)),
)
def test_routes_are_the_shortest_paths_of_the_graph(
    gpus: int, nodes: int, nics: int, kind: str, rails: bool, per_leaf: int | None, pair: tuple[int, int]
) -> None:
    fabric = Fabric(rails=rails, nodes_per_leaf=per_leaf, latency_s=2e-6)
    topology = Topology(cluster(gpus, nodes, nics=nics, kind=kind, latency_s=1e-6, nic_latency_s=3e-6, fabric=fabric))
    source, target = (rank % (gpus * nodes) for rank in pair)
    others = [f"gpu {rank}" for rank in range(gpus * nodes) if rank not in (source, target)]
    drawn = nx.restricted_view(graph(topology), others, [])
    path = nx.shortest_path(drawn, f"gpu {source}", f"gpu {target}", weight="latency_s")
    edges = [drawn.edges[edge] for edge in pairwise(path)]
    assert tuple(e["resource"] for e in edges if e["resource"] is not None) == topology.route(source, target).resources
    if source != target:
        assert sum(e["latency_s"] for e in edges) == pytest.approx(topology.hop_s(source, target))


def test_the_graphs_vertices_are_sorted() -> None:
    vertices = list(graph(Topology(cluster(3, 2))).nodes)
    assert vertices == sorted(vertices)
