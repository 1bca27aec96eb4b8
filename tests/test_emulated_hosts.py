"""Emulated hosts: real ranks on nodes whose links have the cluster file's rates."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from executor import world_timing
from executor.emulated_hosts import EmulatedHosts, check, namespace_of
from executor.runner import run
from executor.supervisor import Supervisor
from executor.two_levels import levels_of
from planner.all_reduce import with_algorithms
from simulator.costs.collective_cost import Call, collective_cost
from simulator.errors import ExecutionError, SpecError
from simulator.fabric.topology import Topology
from simulator.lowering import lower
from simulator.placement import AttentionGrid
from simulator.presets import cluster as preset
from simulator.profile import Profile
from simulator.program import Collective, Linear
from simulator.units import MiB
from simulator.workload import prefill_step
from tests.emulated import emulated, needs_namespaces
from tests.executor_world import assert_like_reference, generation_of, run_on
from tests.schemes import context_parallel, pooled, static, tiny_model

NIC = 40e6  # bytes/s: so slow that the links, not a busy machine's cores, decide
CLUSTER = emulated(10 * NIC, NIC)


@pytest.fixture(scope="module")
def world() -> Iterator[Supervisor]:
    with EmulatedHosts(CLUSTER) as hosts, Supervisor(4, timeout_s=60.0, seats=hosts.seats) as supervisor:
        yield supervisor


@needs_namespaces
@pytest.mark.parametrize("index", range(3))
def test_placements_across_emulated_hosts_equal_the_reference(world: Supervisor, index: int) -> None:
    model = tiny_model()
    pool = pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2))
    generation = generation_of(model, (static(model, 4), context_parallel(model, 2, 2), pool)[index])
    assert_like_reference(generation, run_on(world, generation))


@needs_namespaces
def test_a_message_between_hosts_takes_the_links_time_and_one_inside_a_host_a_tenth(world: Supervisor) -> None:
    (inside,) = world_timing.time_messages(world, (4 * MiB,), round_trips=3)
    (between,) = world_timing.time_messages(world, (4 * MiB,), round_trips=3, pair=(0, 2))
    assert between.seconds >= 0.9 * 4 * MiB / NIC  # 105 ms; a burst of 130 kB may pass at once
    assert between.seconds >= 3 * inside.seconds  # 10 if the machine is quiet


@needs_namespaces
def test_hierarchical_all_reduce_beats_the_flat_ring_over_a_tenfold_gap_as_predicted(world: Supervisor) -> None:
    topology, size = Topology(CLUSTER), 2 * MiB
    predicted = {
        algorithm: collective_cost(Call("all_reduce", algorithm, (0, 1, 2, 3), size), topology).seconds
        for algorithm in ("ring", "hierarchical")
    }
    measured = {
        algorithm: world_timing.time_collective(world, "all_reduce", 4, (size,), algorithm)[0].seconds
        for algorithm in ("ring", "hierarchical")
    }
    # ring: 2·3/4·2 MiB / 40 MB/s = 79 ms; hierarchical: 2·1/2·2 MiB / 40 MB/s = 52 ms, and a tenth inside the hosts
    assert predicted["hierarchical"] < predicted["ring"]
    assert measured["hierarchical"] < measured["ring"]


@needs_namespaces
def test_a_slow_host_keeps_its_cores_longer_by_the_clusters_factor() -> None:
    model = tiny_model()
    generation = replace(generation_of(model, static(model, 2, 2), num_decoded=0), keep_logits=False, repeats=5)
    measured = run(generation, place="emulated", hosts=emulated(1e9, 1e9, slowdowns=(1.0, 3.0)))
    assert measured.tag == "emulated"
    fast, slow = (
        sum(
            min(end - start for step in measured.steps for start, end in [step.ranks[rank].spans[index]])
            for index, operation in enumerate(generation.programs[0].ranks[rank])
            if isinstance(operation, Linear) and operation.weights[0].name.startswith("layers.")
        )
        for rank in (0, 2)  # the same layer's work: first stage on the fast host, second on the slow one
    )
    assert slow >= 2 * fast  # 3 if the machine is quiet


@needs_namespaces
def test_nothing_remains_when_the_program_is_killed(tmp_path: Path) -> None:
    code = (
        "import time; from executor.emulated_hosts import EmulatedHosts, namespace_of; "
        "from tests.emulated import emulated; hosts = EmulatedHosts(emulated(1e9, 1e8)); "
        "print(*[namespace_of(h.pid) for h in hosts._holders], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        names = child.stdout.readline().split()
        assert len(names) == 3  # two nodes and a switch
        assert set(names) <= living()
        child.send_signal(signal.SIGKILL)
    until_s = time.monotonic() + 5.0
    while living() & set(names) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not living() & set(names)


def living() -> set[str]:
    """Network namespaces that a process is in: the kernel keeps no other."""
    return {namespace_of(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}


def test_two_hosts_of_two_ranks_have_two_levels_and_other_groups_none() -> None:
    nodes = (0, 0, 1, 1)
    levels = levels_of((0, 1, 2, 3), nodes)
    assert levels is not None
    assert levels.inside == ((0, 1), (2, 3))
    assert levels.across == ((0, 2), (1, 3))
    assert levels_of((0, 1), nodes) is None  # one node
    assert levels_of((0, 2), nodes) is None  # one rank a node
    assert levels_of((0, 1, 2), nodes) is None  # nodes of two and one
    assert levels_of((0, 1, 2, 3), ()) is None


def test_between_cpu_hosts_a_program_says_how_it_reduces_and_inside_one_it_does_not() -> None:
    """4 ranks, S bytes: the ring sends 3/2·S over a NIC, two levels S and as much inside; worth it over a gap only."""
    model = tiny_model()
    found = {}
    for name, cluster in (("gap", emulated(1e9, 1e8)), ("equal", emulated(1e9, 1e9)), ("one", preset("local-cpu"))):
        nodes = tuple(node for node, _, _ in cluster.rank_nodes())
        program = lower(model, prefill_step(2, 512), static(model, 4), nodes=nodes, dtype="fp32")
        profile = Profile(name="none", gpu=cluster.gpus[0], kernels=())
        stated = with_algorithms(program, cluster, {profile.gpu.name: profile})
        reduces = [op for op in stated.ranks[0] if isinstance(op, Collective) and op.kind == "all_reduce"]
        found[name] = {op.algorithm for op in reduces}
        assert stated.num_operations == program.num_operations
    assert found == {"gap": {"hierarchical"}, "equal": {"ring"}, "one": {"auto"}}


def test_without_root_emulated_hosts_say_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ExecutionError, match=r"^emulated hosts: only root may .*; run as root, or use --on cpu$"):
        EmulatedHosts(CLUSTER)


@needs_namespaces
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cores": None}, r"nodes\[0\].cores: missing"),
        ({"cores": 1000}, r"nodes\[\].cores: 2000 in all; this machine has"),
        ({"link": CLUSTER.nodes[0].link.model_copy(update={"kind": "switch"})}, r"link.kind: 'switch'"),
        ({"nics": CLUSTER.nodes[0].nics and CLUSTER.nodes[0].nics.model_copy(update={"count": 2})}, "nics.count: 2"),
    ],
)
def test_what_cannot_be_emulated_is_refused_by_place_and_value(change: dict[str, object], message: str) -> None:
    nodes = tuple(node.model_copy(update=change) for node in CLUSTER.nodes)
    with pytest.raises(SpecError, match=message):
        check(CLUSTER.model_copy(update={"nodes": nodes}))


@needs_namespaces
def test_gpus_are_not_emulated() -> None:
    with pytest.raises(SpecError, match="is no CPU"):
        check(preset("a100-4x4"))
