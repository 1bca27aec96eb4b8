"""Launch files as text: golden, accepted by bash, and shaped as Slurm and JobSet want them; the pre-flight check."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from planner.execution import inputs
from planner.handover.engine_flags import commands, engine_lines
from planner.handover.kubernetes import jobset
from planner.handover.launch import Launch, make_launch, nccl_environment, slurm_script, torchrun_script
from planner.handover.preflight import check, check_devices, same_type
from planner.handover.preflight import main as preflight
from planner.make import make
from planner.problem import load_problem
from planner.rivals import baselines, rule_placement
from simulator import presets
from simulator.allocation import Allocation
from simulator.errors import SpecError
from simulator.formats.files import to_json
from simulator.placement import Placement
from simulator.scenario import Scenario

WORKLOAD = """
name: one
buckets: [{name: all, min_tokens: 1, tokens: 4096, share: 1.0, output_tokens: 16}]
prefill_batch: 1
decode_batch: 8
"""
GOLDEN = (
    """#!/usr/bin/env bash
# attnplan: fa-pool, fa-pool on dgx-a100-2
# 16 ranks on 2 nodes
# allocation sha256 DIGEST
# Nodes in this order (their number is part of the plan):
#   node 0: ranks 0–7 on 8 × A100-SXM4-80GB: attention and feed-forward
#   node 1: ranks 8–15 on 8 × A100-SXM4-80GB: attention
# The same layout elsewhere:
#   prefill of all: no equivalent in vLLM or SGLang: attention runs on GPUs without the feed-forward
#   decode of all: vllm serve MODEL --tensor-parallel-size 8 | """
    + """\
python -m sglang.launch_server --model-path MODEL --tp-size 8
#   the plan switches layouts; an engine keeps the one it was started with: one instance a layout
# Run this script on every node at the same time.
set -euo pipefail
PLANNED='my plan.json'
export ALLOCATION="${ALLOCATION:-$PLANNED}"  # must be readable on every node
export OUTPUT="${OUTPUT:-measurement.json}"
: "${NODE_RANK:?number of this node, 0 to 1, in the order above}"
: "${MASTER_ADDR:?host name of node 0}"
MASTER_PORT="${MASTER_PORT:-29500}"
GPUS=(8 8)
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"  # errors only
export NCCL_IB_HCA="${NCCL_IB_HCA:-mlx5_0,mlx5_1,mlx5_2,mlx5_3,mlx5_4,mlx5_5,mlx5_6,mlx5_7}"  # placeholder: this \
site's names of the 8 NICs a node the plan counts on
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-eth0}"  # placeholder: this site's interface for start-up messages
export NCCL_CROSS_NIC="${NCCL_CROSS_NIC:-0}"  # rails: NIC i of every node is on leaf i, so rings stay on one rail
python -m planner.handover.preflight "$ALLOCATION" --digest DIGEST --nodes 2 --world 16 --node "$NODE_RANK"
exec torchrun --nnodes=2 --node-rank="$NODE_RANK" --nproc-per-node="${GPUS[$NODE_RANK]}" \
--master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" -m planner.cli run "$ALLOCATION" --on cuda -o "$OUTPUT"
"""
)


@pytest.fixture(scope="module")
def allocation(tmp_path_factory: pytest.TempPathFactory) -> Allocation:
    """The documents' rule in prefill (8 + 8 GPUs), TP 8 in decode, on two nodes."""
    path = tmp_path_factory.mktemp("launch") / "one.yaml"
    path.write_text(WORKLOAD)
    base = presets.scenario("fa-pool").model_dump()
    changes = {"cluster": "dgx-a100-2", "max_gpus": 16, "workload": str(path)}
    scenario = Scenario.model_validate(base | changes)
    problem, made = load_problem(scenario), make(scenario)
    bucket = problem.workload.buckets[0]
    prefill = rule_placement(problem.question("prefill", bucket))
    decode = baselines(problem.question("decode", bucket))[0]
    assert isinstance(prefill, Placement)
    assert isinstance(decode, Placement)
    placed = {"prefill": prefill, "decode": decode}
    policy = tuple(choice.model_copy(update={"placement": placed[choice.phase]}) for choice in made.policy)
    return made.model_copy(update={"policy": policy})


@pytest.fixture(scope="module")
def launch(allocation: Allocation) -> Launch:
    return make_launch(allocation, inputs(allocation))


def bash_accepts(script: str) -> None:
    found = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_torchrun_script_is_the_golden_text(launch: Launch) -> None:
    script = torchrun_script(launch, "my plan.json")
    assert script.replace(launch.digest, "DIGEST") == GOLDEN
    bash_accepts(script)


def test_a_path_cannot_break_out_of_its_quotes(launch: Launch) -> None:
    script = torchrun_script(launch, "a'; touch /tmp/x; '$(id).json")
    bash_accepts(script)
    line = next(line for line in script.splitlines() if line.startswith("PLANNED="))
    shown = subprocess.run(["bash", "-c", f'{line}; printf %s "$PLANNED"'], text=True, capture_output=True, check=True)
    assert shown.stdout == "a'; touch /tmp/x; '$(id).json"


def test_the_slurm_script_asks_for_the_plans_nodes_and_checks_before_it_runs(launch: Launch) -> None:
    script = slurm_script(launch, "plan.json")
    bash_accepts(script)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.+)$", script, re.MULTILINE))
    assert options["nodes"] == options["ntasks"] == "2"
    assert options["gpus-per-node"] == "8"
    lines = script.splitlines()
    assert all(line.startswith("#") for line in lines[: max(i for i, x in enumerate(lines) if "#SBATCH" in x)])
    runs = [line for line in lines if line.startswith("srun")]
    assert "preflight" in runs[0]
    assert "torchrun" in runs[1]
    for inner in re.findall(r"bash -c '(.*)'$", script, re.MULTILINE):
        bash_accepts(inner)


def test_the_jobset_has_one_pod_a_node_and_all_its_gpus(launch: Launch) -> None:
    manifest = yaml.safe_load(jobset(launch, 1000))
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert all(isinstance(value, str) for value in variables.values())
    name = manifest["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert variables["MASTER_ADDR"] == f"{name}-{job['name']}-0-0.{manifest['spec']['network']['subdomain']}"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    bash_accepts(container["command"][2])
    with pytest.raises(SpecError, match="ConfigMap"):
        jobset(launch, 2_000_000)


def test_nccl_settings_follow_from_the_cluster(launch: Launch, allocation: Allocation) -> None:
    found = {name: value for name, value, _ in nccl_environment(launch)}
    assert len(found["NCCL_IB_HCA"].split(",")) == 8
    assert found["NCCL_CROSS_NIC"] == "0"
    fabric = launch.cluster.fabric.model_copy(update={"rails": False})
    flat = Launch(allocation, launch.cluster.model_copy(update={"fabric": fabric}), launch.hosts, False)
    assert "NCCL_CROSS_NIC" not in {name for name, _, _ in nccl_environment(flat)}
    alone = Launch(allocation, launch.cluster, launch.hosts[:1], False)
    assert {name for name, _, _ in nccl_environment(alone)} == {"NCCL_DEBUG", "NCCL_IB_DISABLE"}
    assert "--standalone" in torchrun_script(alone, "plan.json")


def test_engines_get_flags_only_for_layouts_they_have(allocation: Allocation) -> None:
    pooled, static = (choice.placement for choice in allocation.policy)
    assert commands(pooled, "prefill")[0].startswith("no equivalent")
    assert "--tensor-parallel-size 8" in commands(static, "decode")[0]
    routed = commands(static, "decode", routed=True)
    assert routed[0].endswith("--enable-expert-parallel")
    assert routed[1].endswith("--ep-size 8")
    assert len(engine_lines(allocation)) == 3


def test_the_preflight_check_names_what_differs(allocation: Allocation, launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(to_json(allocation))
    check(path, expected=launch.digest, num_nodes=2, world_size=16, number=1)
    for wrong, message in (
        ({"expected": "0" * 64}, "sha256"),
        ({"num_nodes": 3}, "3 nodes"),
        ({"world_size": 8}, "8 ranks"),
        ({"number": 2}, "0 to 1"),
    ):
        right = {"expected": launch.digest, "num_nodes": 2, "world_size": 16, "number": 0}
        with pytest.raises(SpecError, match=message):
            check(path, **(right | wrong))  # type: ignore[arg-type]
    assert preflight([str(path), "--digest", "x", "--nodes", "2", "--world", "16", "--node", "0"]) == 2


def test_the_preflight_check_knows_the_gpus(launch: Launch) -> None:
    node, gpu = launch.hosts[0].node, launch.cluster.gpus[0]
    right = ("NVIDIA A100-SXM4-80GB", 85_000_000_000)
    check_devices(node, gpu, [right] * 8)
    with pytest.raises(SpecError, match="shows 7 GPUs"):
        check_devices(node, gpu, [right] * 7)
    with pytest.raises(SpecError, match="40 GB"):
        check_devices(node, gpu, [("NVIDIA A100-SXM4-40GB", 40_000_000_000)] * 8)
    assert same_type("H100-SXM", "NVIDIA H100 80GB HBM3")
    assert not same_type("H100-SXM", "NVIDIA H200")


def test_cpu_worlds_are_not_launched(allocation: Allocation) -> None:
    found = inputs(allocation)
    cpus = type(found)(found.model, presets.cluster("local-cpu"), found.workload, found.profiles)
    with pytest.raises(SpecError, match="plan run"):
        make_launch(allocation, cpus)
