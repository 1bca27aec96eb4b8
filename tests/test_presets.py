"""Presets: the names that stay, what they say, and a path wherever a name goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simulator import presets, schemas
from simulator.errors import SpecError
from simulator.formats.files import to_json, write_atomically

NAMES = {
    "models": "fa-pool ma-separation two-level tiny-dense tiny-moe llama-3.1-8b llama-3.1-70b mixtral-8x7b",
    "clusters": "dgx-a100-5 dgx-a100-5-nic1 dgx-a100-5-nic2 dgx-a100-5-nic4 dgx-a100-2 dgx-a100-4 a100-4x4 "
    "dgx-h100-16 dgx-h200-2 local-cpu",
    "workloads": "fa-pool ma-separation two-level local azure-conv mooncake",
    "scenarios": "fa-pool ma-separation two-level local",
}
KINDS: tuple[presets.Kind, ...] = ("models", "clusters", "workloads", "scenarios")
READERS = {"models": presets.model, "clusters": presets.cluster, "workloads": presets.workload}
READERS |= {"scenarios": presets.scenario}  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_stay(kind: presets.Kind) -> None:
    assert set(NAMES[kind].split()) <= set(presets.names(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_preset_loads_and_is_called_what_its_file_is(kind: presets.Kind) -> None:
    for name in presets.names(kind):
        assert READERS[kind](name).name == name


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_works_wherever_a_name_does(kind: presets.Kind, tmp_path: Path) -> None:
    for name in presets.names(kind):
        path = tmp_path / f"{name}.json"
        write_atomically(path, to_json(READERS[kind](name)))
        assert READERS[kind](str(path)) == READERS[kind](name)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_lists_the_known_ones(kind: presets.Kind) -> None:
    with pytest.raises(SpecError) as caught:
        READERS[kind]("no-such-preset")
    known = ", ".join(presets.names(kind))
    assert str(caught.value) == f"{kind[:-1]}: unknown 'no-such-preset'; known: {known}; or give a path"


def test_a_file_without_a_suffix_is_a_path_when_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text(to_json(presets.cluster("local-cpu")))
    assert presets.cluster("mine").name == "local-cpu"


def test_every_scenario_names_presets_that_exist() -> None:
    for name in presets.names("scenarios"):
        scenario = presets.scenario(name)
        cluster = presets.cluster(scenario.cluster)
        presets.model(scenario.model)
        presets.workload(scenario.workload)
        assert (scenario.max_gpus or 0) <= cluster.num_ranks


def test_relative_paths_in_a_scenario_start_at_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel: sub/m.json\ncluster: local-cpu\nworkload: w.yaml\nprofile: /abs/p.json\n")
    scenario = presets.scenario(str(path))
    assert scenario.model == str(tmp_path / "sub" / "m.json")
    assert (scenario.cluster, scenario.workload) == ("local-cpu", str(tmp_path / "w.yaml"))
    assert scenario.profile == "/abs/p.json"


def test_the_documents_cluster_has_8_base_and_32_pool_gpus() -> None:
    cluster = presets.cluster("dgx-a100-5")
    assert cluster.num_ranks == 8 + 32
    assert [presets.cluster(f"dgx-a100-5{n}").nodes[0].nics.count for n in ("", "-nic4", "-nic2", "-nic1")] == [  # type: ignore[union-attr]
        8,
        4,
        2,
        1,
    ]


def test_a_gpu_has_the_same_facts_in_every_cluster() -> None:
    facts = presets.gpus()
    for name in presets.names("clusters"):
        for gpu in presets.cluster(name).gpus:
            assert gpu == facts[gpu.name]


def test_datasheet_facts() -> None:
    a100, h200 = presets.gpus()["A100-SXM4-80GB"], presets.gpus()["H200-SXM"]
    assert (a100.compute_flop_per_s, a100.memory_bandwidth_bytes_per_s) == (312e12, 2.039e12)
    assert (a100.memory_bytes, a100.num_sms) == (80 * 2**30, 108)
    assert (h200.compute_flop_per_s, h200.memory_bandwidth_bytes_per_s, h200.memory_bytes) == (989.4e12, 4.8e12, 141e9)


def test_the_documents_categories_share_alike_and_are_planned_at_twice_their_lower_edge() -> None:
    buckets = presets.workload("fa-pool").buckets
    edges = [(bucket.min_tokens, bucket.max_tokens) for bucket in buckets]
    assert edges == [(512, 2048), (2048, 8192), (8192, 32768), (32768, None)]
    assert all(bucket.share == 0.25 and bucket.tokens == 2 * bucket.min_tokens for bucket in buckets)


def test_every_schema_describes_its_record() -> None:
    for name in ("model", "cluster", "workload", "scenario"):
        schema = schemas.schema(name)
        assert schema["additionalProperties"] is False
        assert set(schema["properties"]) == set(schemas.record(name).model_fields)
    with pytest.raises(SpecError, match="schema: unknown 'x'; known: model, cluster"):
        schemas.schema("x")


def test_loading_a_scenario_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from simulator import presets, schemas\nfrom simulator.formats import trace, topo\n"
        "presets.model(presets.scenario('fa-pool').model)\n"
        "heavy = {'torch', 'sklearn', 'pandas', 'scipy', 'networkx', 'streamlit'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True, timeout=30)
