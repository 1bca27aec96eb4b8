"""What transfers cost the thread that computes: on CPU ranks it delays the next kernel, on GPUs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.costs.issue import with_issue
from simulator.host import Host
from simulator.lowering import lower
from simulator.placement import AttentionGrid
from simulator.presets import cluster
from simulator.profile import Profile
from simulator.program import Add, Collective, Operation, Recv, Send, Slice
from simulator.workload import prefill_step
from tests.hand_made import compute, cpu_cluster, program, recv, send
from tests.schemes import pooled, tiny_model

GRID = AttentionGrid(heads=(8,), query_blocks=2)


def profile(host: Host | None) -> Profile:
    return Profile(name="a test", gpu=cluster("local-cpu").gpus[0], kernels=(), host=host)


def test_a_send_delays_what_it_sends_its_bytes_what_follows_and_a_value_its_first_reader() -> None:
    first: list[Operation] = [compute(writes=["x"]), send(1, "x", 1000), compute(), send(1, "x", 1000, tag=1)]
    second: list[Operation] = [
        recv(0, "y", 1000),
        compute(),
        compute(reads=["y"]),
        recv(0, "z", 1000, tag=1),
        send(2, "z", 1000),
    ]
    third: list[Operation] = [recv(1, "w", 1000), compute(), compute(reads=["w"])]
    built = program(first, second, third)
    host = Host(transfer_issue_s=1.0, send_issue_s_per_byte=2e-3, receive_s=5.0, receive_s_per_byte=1e-2)
    alone = [np.array([0.1 * isinstance(op, Add) for op in ops]) for ops in built.ranks]
    cluster_of_cpus = cpu_cluster(3, 3)
    issued = with_issue(built, cluster_of_cpus, {"cpu": profile(host)}, alone)
    assert issued[0].tolist() == pytest.approx([1.1, 0, 3.1, 0])  # 1 s a send before it; 2 ms/B · 1 kB after the first
    assert issued[1].tolist() == pytest.approx([0, 0.1, 15.1, 0, 0])  # 5 s and 10 ms/B · 1 kB; nothing after the last
    assert issued[2].tolist() == pytest.approx([0, 0.1, 15.1])


def test_ranks_that_take_turns_on_a_core_take_longer_and_others_do_not() -> None:
    built = program([compute()], [compute()], [compute()])
    alone = [np.ones(1)] * 3
    for pinned, shared in ((True, [0, 2]), (False, [0, 1, 2])):
        node = cpu_cluster(3, 2).nodes[0].model_copy(update={"pinned": pinned})
        two_cores = cpu_cluster(3, 2).model_copy(update={"nodes": (node,)})
        issued = with_issue(built, two_cores, {"cpu": profile(Host(turn_share=0.25))}, alone)
        assert [rank for rank, seconds in enumerate(issued) if seconds[0] == 1.25] == shared


def test_operations_without_kernels_delay_the_next_one_too() -> None:
    program = lower(tiny_model(), prefill_step(1, 16), pooled(tiny_model(), 2, GRID), nodes=(0,) * 4, dtype="fp32")
    alone = [np.array([float(not isinstance(op, Slice)) for op in operations]) for operations in program.ranks]
    issued = with_issue(program, cluster("local-cpu"), {"cpu-core": profile(Host(view_s=1e-3))}, alone)
    counted = 0
    for operations, before, after in zip(program.ranks, alone, issued, strict=True):
        computing = [i for i, op in enumerate(operations) if not isinstance(op, Slice | Send | Recv | Collective)]
        views = sum(isinstance(operation, Slice) for operation in operations[: max(computing, default=0)])
        assert after[computing].sum() - before[computing].sum() == pytest.approx(views * 1e-3)
        counted += views
    assert counted > 0


def test_without_a_measured_issue_nothing_changes() -> None:
    program = lower(tiny_model(), prefill_step(1, 16), pooled(tiny_model(), 2, GRID), nodes=(0, 0, 0, 0), dtype="fp32")
    alone = [np.ones(len(operations)) for operations in program.ranks]
    for host in (None, Host()):
        issued = with_issue(program, cluster("local-cpu"), {"cpu-core": profile(host)}, alone)
        assert all(after is before for before, after in zip(alone, issued, strict=True))


def test_a_slow_node_is_slow_at_kernels_and_not_at_transfers() -> None:
    built = program([compute(writes=["x"]), send(1, "x", 1000), compute()], [recv(0, "x", 1000)])
    host = Host(transfer_issue_s=1.0, send_issue_s_per_byte=2e-3)
    alone = [np.array([0.1, 0, 0.1]), np.zeros(1)]
    node = cpu_cluster(2, 2).nodes[0].model_copy(update={"slowdown": 2.0})
    slow = cpu_cluster(2, 2).model_copy(update={"nodes": (node,)})
    issued = with_issue(built, slow, {"cpu": profile(host)}, alone)
    assert issued[0].tolist() == pytest.approx([0.6, 0, 1.1])  # twice that: 2·0.1 + 1 s, 2·0.1 + 2 ms/B · 1 kB
