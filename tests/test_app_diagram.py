"""The drawing of a cluster: what hangs on what, and how full it is."""

from __future__ import annotations

import re
from itertools import count

import pytest

from app.diagram import MOST_NODES, Tile, diagram, heat, port_loads
from simulator import presets
from simulator.cluster import Cluster


def tiles(cluster: Cluster, used: int) -> list[Tile]:
    return [
        Tile(rank, local, "base" if rank < used else "unused", (f"h{rank}",) if rank < used else ())
        for rank, (_, local, _) in enumerate(cluster.rank_nodes())
    ]


def changed(name: str, **fabric: object) -> Cluster:
    cluster = presets.cluster(name)
    return cluster.model_copy(update={"fabric": cluster.fabric.model_copy(update=fabric)})


def rails(svg: str) -> int:
    """Vertical lines down from a leaf switch."""
    return len(re.findall(r'class="rail" d="M[\d.]+ [\d.]+V', svg))


def test_every_gpu_that_works_is_a_button_and_idle_nodes_are_folded() -> None:
    cluster = presets.cluster("dgx-a100-5")
    svg = diagram(cluster, tiles(cluster, 16), {}, 3)
    assert re.findall(r'data-rank="(\d+)"', svg) == [str(rank) for rank in range(16)]
    assert svg.count("takes no part") == 3
    assert re.findall(r'class="gpu chosen" data-rank="(\d+)"', svg) == ["3"]
    assert svg.count('tabindex="0" role="button" aria-label="GPU ') == 16


@pytest.mark.parametrize(("name", "num_nics"), [("dgx-a100-5", 8), ("dgx-a100-5-nic2", 2), ("dgx-a100-5-nic1", 1)])
def test_each_nic_of_a_node_has_its_rail(name: str, num_nics: int) -> None:
    cluster = presets.cluster(name)
    svg = diagram(cluster, tiles(cluster, 40), {}, 0)
    assert rails(svg) == num_nics
    assert svg.count('class="nic"') == 5 * num_nics
    assert svg.count('class="leaf"') == num_nics


def test_without_rails_a_rack_has_one_leaf_and_racks_meet_at_the_spine() -> None:
    cluster = changed("dgx-a100-4", rails=False, nodes_per_leaf=2)
    svg = diagram(cluster, tiles(cluster, 32), {"leaf 1 up": 0.42}, 0)
    assert rails(svg) == 2
    assert svg.count('class="rack"') == 2
    assert ">spine<" in svg
    assert "leaf switch · uplink 42%" in svg


def test_loads_are_written_at_their_links() -> None:
    cluster = presets.cluster("dgx-a100-2")
    loads = {"node 0 nic 1 out": 0.27, "node 0 nic 1 in": 0.04, "node 1 gpu 0 out": 0.5, "node 1 gpu 0 in": 0.25}
    svg = diagram(cluster, tiles(cluster, 16), loads, 0)
    assert svg.count("NIC ↑27% ↓4%") == 1
    assert svg.count("NIC idle") == 15
    assert svg.count("↑50%") == svg.count("↓25%") == 1


def test_a_single_machine_has_a_bus_with_its_load_and_no_nics() -> None:
    cluster = presets.cluster("local-cpu")
    svg = diagram(cluster, tiles(cluster, 4), {"node 0 bus": 0.61}, 0)
    assert "shared memory · 2 GB/s · 61%" in svg
    assert 'class="nic"' not in svg
    assert 'class="leaf"' not in svg


def test_the_busiest_pair_stands_for_a_gpus_pairwise_links() -> None:
    loads = {"node 0 gpu 1 to 2": 0.3, "node 0 gpu 1 to 3": 0.1, "node 0 gpu 2 to 1": 0.2, "node 10 gpu 1 to 2": 0.9}
    assert port_loads("pairwise", 0, 1, loads) == (0.3, 0.2)


def test_a_large_cluster_is_cut_and_says_so() -> None:
    cluster = presets.cluster("dgx-h100-16")
    large = cluster.model_copy(update={"nodes": (cluster.nodes[0].model_copy(update={"count": MOST_NODES + 5}),)})
    assert "and 5 more nodes" in diagram(large, tiles(large, 8), {}, 0)


def test_the_drawing_escapes_what_it_is_given() -> None:
    cluster = presets.cluster("dgx-a100-2")
    hostile = [Tile(rank, rank % 8, "base", ("<script>alert(1)</script>",)) for rank in range(16)]
    svg = diagram(cluster.model_copy(update={"name": '"><img src=x>'}), hostile, {}, 0)
    assert "<script" not in svg
    assert "<img" not in svg


def test_heat_runs_from_grey_over_amber_to_red() -> None:
    assert heat(0) == "#8d99ae"
    assert heat(0.5) == "#da9828"
    assert heat(1) == heat(7) == "#d1495b"


def test_boxes_of_a_node_do_not_overlap() -> None:
    cluster = presets.cluster("dgx-a100-5")
    svg = diagram(cluster, tiles(cluster, 40), {}, 0)
    boxes = [
        tuple(float(one) for one in found)
        for found in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" rx="7"', svg)
    ]
    assert len(boxes) == 40
    for number, (x, y, width, height) in zip(count(), boxes, strict=False):
        for other_x, other_y, *_ in boxes[number + 1 :]:
            assert other_x >= x + width or other_y >= y + height or other_x + width <= x
