"""Workload, cluster and scenario files: contradictions are refused with the place and what would be right."""

from __future__ import annotations

import pytest

from simulator import presets
from simulator.cluster import Cluster
from simulator.errors import SpecError
from simulator.formats.files import validate
from simulator.scenario import Scenario
from simulator.workload import Workload


def bucket(low: int, high: int | None, tokens: int, share: float = 0.5, name: str = "") -> dict[str, object]:
    return {"name": name or f"from {low}", "min_tokens": low, "max_tokens": high, "tokens": tokens, "share": share}


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ([bucket(0, 8, 4), bucket(6, None, 9)], "w: top level: buckets[1] begins before buckets[0] ends"),
        ([bucket(0, None, 4), bucket(6, None, 9)], "w: top level: buckets[1] begins before buckets[0] ends"),
        ([bucket(0, 8, 4, name="a"), bucket(8, None, 9, name="a")], "w: top level: two buckets have one name"),
        ([bucket(0, 8, 8), bucket(8, None, 9)], "w: buckets[0]: tokens 8 lies outside [0, 8)"),
        ([bucket(0, 8, 4), bucket(8, None, 9, share=0.6)], "w: top level: bucket shares sum to 1.1, not 1"),
        ([], "w: buckets: "),
    ],
)
def test_buckets_are_ordered_apart_and_whole(buckets: list[dict[str, object]], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate({"name": "w", "buckets": buckets}, Workload, source="w")
    assert str(caught.value).startswith(message)


def cluster(**changes: object) -> Cluster:
    value = presets.cluster("dgx-a100-2").model_dump(mode="json")
    return validate(value | changes, Cluster, source="c")


def test_a_node_of_an_unknown_gpu_lists_the_known_ones() -> None:
    node = presets.cluster("dgx-a100-2").nodes[0].model_dump(mode="json")
    with pytest.raises(SpecError) as caught:
        cluster(nodes=[node | {"gpu": "H10"}])
    assert str(caught.value) == "c: top level: nodes[0].gpu: unknown 'H10'; known: A100-SXM4-80GB"


def test_several_nodes_need_nics() -> None:
    node = presets.cluster("dgx-a100-2").nodes[0].model_dump(mode="json")
    with pytest.raises(SpecError, match="several nodes need nics in every node"):
        cluster(nodes=[node | {"nics": None}])
    assert cluster(nodes=[node | {"nics": None, "count": 1}]).num_ranks == 8


def test_an_absurd_number_of_ranks_is_refused() -> None:
    node = presets.cluster("dgx-a100-2").nodes[0].model_dump(mode="json")
    with pytest.raises(SpecError, match="8000000000 ranks; at most 100000"):
        cluster(nodes=[node | {"count": 10**9}])


def test_ranks_are_numbered_node_by_node() -> None:
    rows = presets.cluster("a100-4x4").rank_nodes()
    assert [(number, local) for number, local, _ in rows[:5]] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "speed"}, "s: objective: Input should be 'ttft', 'tpot', 'tps', 'tps_per_gpu', 'cost' or "),
        ({"base_gpus": 9}, "s: top level: base_gpus 9 exceeds max_gpus 4"),
        ({"modell": "x"}, "s: modell: unknown key; known: schema_version, name, model"),
        ({"name": "../s"}, "s: name: not a name (one line, no slash, no leading dot), got '../s'"),
    ],
)
def test_a_scenario_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    value = presets.scenario("local").model_dump(mode="json") | changes
    with pytest.raises(SpecError) as caught:
        validate(value, Scenario, source="s")
    assert str(caught.value).startswith(message)
