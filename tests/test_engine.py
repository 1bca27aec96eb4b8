"""Engine: exact traces, closed forms, deadlocks, determinism and invariants. Times in the tests are picoseconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator.cluster import Cluster, Fabric
from simulator.errors import ExecutionError, InfeasibleError
from simulator.host import Host
from simulator.interference import Interference
from simulator.program import Operation, Program, Recv, Send
from simulator.simulation.engine import World, run
from simulator.simulation.streams import streams_of
from simulator.simulation.timeline import Timeline
from tests.hand_made import cluster, collective, compute, cpu_cluster, durations, program, recv, send

MS = 10**9  # picoseconds
MB = 10**6  # takes 1 ms at 1 GB/s
Spans = list[list[tuple[float, float]]]


def spans(timeline: Timeline) -> Spans:
    """(start, end) in ms of every operation of every rank."""
    return [
        [(int(a) / MS, int(b) / MS) for a, b in zip(starts, ends, strict=True)]
        for starts, ends in zip(timeline.start_ps, timeline.end_ps, strict=True)
    ]


def play(built: Program, machine: Cluster | None = None, compute_s: float = 1e-3) -> Spans:
    return spans(run(built, machine or cluster(), durations(built, compute_s)))


def test_compute_operations_of_a_rank_follow_one_another() -> None:
    assert play(program([compute(), compute(), compute()])) == [[(0, 1), (1, 2), (2, 3)]]


def test_a_message_overlaps_the_senders_next_kernel_and_delays_the_receivers() -> None:
    built = program(
        [compute(writes=["a"]), send(1, "a", 2 * MB), compute()],
        [recv(0, "a", 2 * MB), compute(["a"])],
    )
    assert play(built) == [[(0, 1), (1, 3), (1, 2)], [(1, 3), (3, 4)]]


def test_a_message_waits_for_its_latency_then_its_bytes() -> None:
    built = program([compute(writes=["a"]), send(1, "a", MB)], [recv(0, "a", MB)])
    assert play(built, cluster(latency_s=0.5e-3)) == [[(0, 1), (1, 2.5)], [(1, 2.5)]]


def test_a_message_starts_when_both_ends_are_ready() -> None:
    """The receiver's stream from rank 0 is busy with the first message; the second waits behind it."""
    built = program(
        [compute(writes=["a"]), send(1, "a", MB, tag=0), send(1, "a", MB, tag=1)],
        [recv(0, "x", MB, tag=0), recv(0, "y", MB, tag=1), compute(["x", "y"])],
    )
    assert play(built) == [[(0, 1), (1, 2), (2, 3)], [(1, 2), (2, 3), (3, 4)]]


def test_tags_pair_messages_whatever_the_order_of_streams() -> None:
    built = program(
        [compute(writes=["a"]), send(2, "a", MB, tag=7)],
        [compute(writes=["b"]), compute(writes=["b"]), send(2, "b", MB, tag=7)],
        [recv(1, "y", MB, tag=7), recv(0, "x", MB, tag=7), compute(["x"]), compute(["y"])],
    )
    assert play(built)[2] == [(2, 3), (1, 2), (2, 3), (3, 4)]


def test_two_messages_into_one_port_share_it() -> None:
    built = program(
        [compute(writes=["a"]), send(2, "a", MB)],
        [compute(writes=["a"]), send(2, "a", 2 * MB)],
        [recv(0, "x", MB), recv(1, "y", 2 * MB)],
    )
    assert play(built)[2] == [(1, 3), (1, 4)]  # both at half rate until 1 MB each is through, then 1 MB at full


def test_a_collective_starts_when_its_last_rank_arrives() -> None:
    group = (0, 1)
    built = program(
        [compute(writes=["a"]), collective(group, MB, reads=["a"], writes=["s"]), compute(["s"])],
        [compute(), compute(writes=["a"]), collective(group, MB, reads=["a"], writes=["s"]), compute(["s"])],
    )
    # 2·(2−1)/2 · 1 MB at 1 GB/s = 1 ms from 2 ms on
    assert play(built) == [[(0, 1), (2, 3), (3, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)]]


def test_a_collective_and_a_message_share_their_links() -> None:
    built = program(
        [compute(writes=["a"]), collective((0, 1), MB, reads=["a"]), send(1, "a", MB)],
        [compute(writes=["a"]), collective((0, 1), MB, reads=["a"]), recv(0, "x", MB)],
    )
    assert play(built)[0] == [(0, 1), (1, 3), (1, 3)]


def test_groups_with_the_same_tag_do_not_mix() -> None:
    built = program(*[[collective(group, MB, tag=5)] for group in ((0, 1), (0, 1), (2, 3), (2, 3))])
    assert play(built) == [[(0, 1)]] * 4


def test_a_collective_of_one_rank_takes_no_time() -> None:
    assert play(program([collective((0,), MB), compute()])) == [[(0, 0), (0, 1)]]


def test_a_message_to_oneself_takes_no_time() -> None:
    assert play(program([compute(writes=["a"]), send(0, "a", MB), recv(0, "b", MB)]))[0][1:] == [(1, 1), (1, 1)]


def test_an_empty_message_takes_its_latency() -> None:
    built = program([send(1, "a", 0)], [recv(0, "a", 0)])
    assert play(built, cluster(latency_s=1e-3)) == [[(0, 1)], [(0, 1)]]


def test_the_last_writer_in_issue_order_counts() -> None:
    built = program(
        [compute(writes=["a"]), compute(writes=["a"]), send(1, "a", MB), compute(writes=["a"])], [recv(0, "x", MB)]
    )
    assert play(built)[1] == [(2, 3)]


def test_two_micro_batches_ping_pong_between_base_and_pool() -> None:
    """Base computes 1 ms a micro-batch and layer, the pool 1 ms; transfers 1 ms each way, L layers, two micro-batches.

    Each micro-batch's cycle is base 1 + out 1 + pool 1 + back 1 = 4 ms; two fit without conflict, the second 1 ms
    behind the first. So L layers end at 4·L + 1 ms; with one micro-batch of twice the work it would be 8·L.
    """
    layers = 5
    base: list[Operation] = []
    pool: list[Operation] = []
    for layer in range(layers):
        for m in range(2):
            base += [compute([f"b{layer}.{m}"], [f"a{layer}.{m}"]), send(1, f"a{layer}.{m}", MB, tag=10 * layer + m)]
            base += [recv(1, f"b{layer + 1}.{m}", MB, tag=10 * layer + m)]
            pool += [recv(0, f"q{layer}.{m}", MB, tag=10 * layer + m), compute([f"q{layer}.{m}"], [f"o{layer}.{m}"])]
            pool += [send(0, f"o{layer}.{m}", MB, tag=10 * layer + m)]
    built = program(base, pool)
    assert run(built, cluster(), durations(built, 1e-3)).makespan_ps == (4 * layers + 1) * MS


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 4), (2, 3), (4, 8)])
def test_a_filled_pipeline_takes_stages_plus_micro_batches_minus_one(stages: int, micro_batches: int) -> None:
    """(m + s − 1)·1 ms of compute and s − 1 hops of 0.25 ms that overlap all but the first passage."""
    lists: list[list[Operation]] = [[] for _ in range(stages)]
    for m in range(micro_batches):
        for stage in range(stages):
            if stage:
                lists[stage].append(recv(stage - 1, f"x{m}", MB // 4, tag=m))
            lists[stage].append(compute([f"x{m}"] if stage else [], [f"y{m}"]))
            if stage < stages - 1:
                lists[stage].append(send(stage + 1, f"y{m}", MB // 4, tag=m))
    built = program(*lists)
    expected = (micro_batches + stages - 1) * MS + (stages - 1) * MS // 4
    assert run(built, cluster(), durations(built, 1e-3)).makespan_ps == expected


def test_one_shared_link_serves_n_messages_in_the_time_of_their_sum() -> None:
    senders = 7
    lists: list[list[Operation]] = [[compute(writes=["a"]), send(senders, "a", 3 * MB)] for _ in range(senders)]
    lists.append([recv(source, f"x{source}", 3 * MB) for source in range(senders)])
    assert play(program(*lists), cluster(8))[-1] == [(1, 1 + 3 * senders)] * senders


def test_a_queue_of_equal_jobs_waits_as_m_d_1() -> None:
    """Poisson arrivals at rate λ = 0.4/D, service D: mean wait ρD/(2(1−ρ)) = D/3 (Pollaczek–Khinchine).

    Rank 0 computes the gaps between arrivals and sends each job's token; rank 1 computes D for every token.
    """
    jobs, load = 60_000, 0.4
    gaps_s = np.random.default_rng(0).exponential(1e-3 / load, jobs)
    first: list[Operation] = []
    second: list[Operation] = []
    for job in range(jobs):
        first += [compute(writes=[f"a{job}"]), send(1, f"a{job}", 0, tag=job)]
        second += [recv(0, f"x{job}", 0, tag=job), compute([f"x{job}"])]
    seconds = [np.zeros(2 * jobs), np.full(2 * jobs, 1e-3)]
    seconds[0][::2] = gaps_s
    timeline = run(program(first, second), cluster(2), seconds)
    arrivals_ps = np.rint(gaps_s * 1e12).cumsum()
    waits_s = (timeline.start_ps[1][1::2] - arrivals_ps) / 1e12
    assert waits_s.mean() == pytest.approx(load / (2 * (1 - load)) * 1e-3, rel=0.02)
    wait_s = 0.0
    for job in range(1, jobs):  # Lindley: the same sample path, exactly
        wait_s = max(wait_s + 1e-3 - gaps_s[job], 0.0)
        assert waits_s[job] == pytest.approx(wait_s, abs=1e-7)


def test_a_straggler_computes_slower() -> None:
    built = program([compute(), compute()])
    assert play(built, cluster(slowdown=1.5)) == [[(0, 1.5), (1.5, 3)]]


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


def test_a_program_larger_than_its_cluster_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="program uses 5 ranks but cluster hand-made has 4"):
        play(program(*[[compute()] for _ in range(5)]))


def test_a_receive_without_a_send_is_a_deadlock_that_names_it() -> None:
    built = program([compute(), recv(1, "x", MB, tag=3), compute(["x"])], [compute()])
    with pytest.raises(ExecutionError) as error:
        play(built)
    message = str(error.value)
    assert message.startswith("deadlock: 1 of 2 ranks never finish: rank 0 waits in operation 1 Recv (layer 0")
    assert "for rank 1 to send tag 3" in message
    assert "rank 0 waits in operation 2 Add (layer 0, micro-batch 0) for operation 1 Recv" in message


def test_ranks_that_wait_for_each_other_are_a_deadlock() -> None:
    built = program(
        [recv(1, "x", MB), compute(["x"], ["y"]), send(1, "y", MB)],
        [recv(0, "x", MB), compute(["x"], ["y"]), send(0, "y", MB)],
    )
    with pytest.raises(ExecutionError, match="deadlock: 2 of 2 ranks"):
        play(built)


def test_collectives_entered_in_different_orders_are_a_deadlock() -> None:
    a, b = collective((0, 1), MB, tag=1), collective((0, 1), MB, tag=2)
    with pytest.raises(ExecutionError, match="for all of its 2 ranks to enter tag 1"):
        play(program([a, b], [b, a]))


def test_ends_that_disagree_on_size_are_refused() -> None:
    with pytest.raises(ExecutionError, match="their kinds and sizes must agree"):
        play(program([send(1, "a", 5)], [recv(0, "a", 6)]))


SHAPES = st.lists(
    st.tuples(
        st.sampled_from(["compute", "message", "collective"]), st.integers(0, 3), st.integers(1, 3), st.integers(0, 9)
    ),
    min_size=1,
    max_size=14,
)
"""(what, rank, distance to the peer, size): steps of a random program; a step reads what its ranks wrote last."""


def random_program(shape: list[tuple[str, int, int, int]], order: tuple[int, ...] = (0, 1, 2, 3)) -> Program:
    """Four ranks; rank r of the shape is ``order[r]`` of the program."""
    lists: list[list[Operation]] = [[], [], [], []]
    last = [[f"v{rank}"] for rank in range(4)]
    for step, (what, rank, distance, size) in enumerate(shape):
        here, there = order[rank], order[(rank + distance) % 4]
        if what == "compute":
            lists[here].append(compute(last[here] if size % 2 else [], [f"s{step}"]))
            last[here] = [f"s{step}"]
        elif what == "message":
            lists[here].append(send(there, last[here][0], size * MB, tag=step))
            lists[there].append(recv(here, f"s{step}", size * MB, tag=step))
            last[there] = [f"s{step}"]
        else:
            group = (here, there)
            for one in group:
                lists[one].append(collective(group, size * MB, reads=last[one], writes=[f"s{step}"], tag=step))
                last[one] = [f"s{step}"]
    return program(*lists)


@settings(max_examples=500, deadline=None)
@given(SHAPES, st.permutations(range(4)))
def test_relabelling_the_ranks_of_a_symmetric_node_changes_nothing(
    shape: list[tuple[str, int, int, int]], order: list[int]
) -> None:
    plain = random_program(shape)
    other = random_program(shape, tuple(order))
    assume(all(len(ops) for ops in plain.ranks))
    times, moved = play(plain), play(other)
    assert [moved[order[rank]] for rank in range(4)] == [
        [(pytest.approx(a, abs=1e-8), pytest.approx(b, abs=1e-8)) for a, b in rank] for rank in times
    ]


@settings(max_examples=500, deadline=None)
@given(SHAPES)
def test_no_step_beats_its_compute_its_bytes_or_its_dependencies(shape: list[tuple[str, int, int, int]]) -> None:
    built = random_program(shape)
    machine = cluster(latency_s=1e-6)
    timeline = run(built, machine, durations(built, 1e-3))
    for rank, operations in enumerate(built.ranks):
        kernels = sum(type(o).__name__ == "Add" for o in operations)
        sent = sum(o.num_bytes for o in operations if isinstance(o, Send))
        received = sum(o.num_bytes for o in operations if isinstance(o, Recv))
        assert timeline.makespan_ps >= kernels * MS
        assert timeline.makespan_ps >= max(sent, received) * 1000 - len(operations)  # 1 GB/s: 1000 ps a byte
        starts, ends = timeline.start_ps[rank], timeline.end_ps[rank]
        writer: dict[str, int] = {}
        for index, operation in enumerate(operations):
            assert ends[index] >= starts[index] >= 0
            assert all(starts[index] >= ends[writer[name]] for name in operation.reads if name in writer)
            if isinstance(operation, Send | Recv):
                assert ends[index] - starts[index] >= 10**6  # the latency
            writer |= dict.fromkeys(operation.writes, index)


@settings(max_examples=500, deadline=None)
@given(SHAPES)
def test_bytes_on_the_links_are_the_messages_bytes(shape: list[tuple[str, int, int, int]]) -> None:
    """Sent = received = planned: each port carries its messages and a ring all-reduce of two moves S each way."""
    built = random_program(shape)
    timeline = run(built, cluster(), durations(built, 1e-3))
    carried = dict(zip((r.name for r in timeline.resources), timeline.resource_units, strict=True))
    for rank, operations in enumerate(built.ranks):
        both = sum(o.num_bytes for o in operations if type(o).__name__ == "Collective")
        sent = sum(o.num_bytes for o in operations if isinstance(o, Send))
        received = sum(o.num_bytes for o in operations if isinstance(o, Recv))
        assert carried[f"node 0 gpu {rank} out"] == pytest.approx(sent + both)
        assert carried[f"node 0 gpu {rank} in"] == pytest.approx(received + both)


@settings(max_examples=500, deadline=None)
@given(SHAPES)
def test_coalesced_tasks_run_as_the_single_operations_would(shape: list[tuple[str, int, int, int]]) -> None:
    """CPU nodes run operation by operation; with a core a rank, no transfer cost and the same link it is the same."""
    built = random_program(shape)
    gpus = play(built, cluster(4, kind="pcie"))
    cores = play(built, cpu_cluster(4, 4))
    for one, other in zip(gpus, cores, strict=True):
        assert one == [(pytest.approx(a, abs=1e-8), pytest.approx(b, abs=1e-8)) for a, b in other]


def test_compute_between_transfers_is_one_task() -> None:
    operations = [compute(writes=["a"]), compute(["a"], ["b"]), send(1, "b", 1), compute(), compute()]
    streams = streams_of(operations)
    assert [(task.first, task.last) for task in streams.tasks] == [(0, 1), (2, 2), (3, 4)]
    assert streams.task_of == [0, 0, 1, 2, 2]


SCRIPT = """
from simulator.simulation.chrome_trace import chrome_trace
from simulator.simulation.engine import World, run
from tests.hand_made import cluster, durations
from tests.test_engine import random_program
import hashlib
shape = [("message", i % 4, 1 + i % 3, 1 + i % 7) if i % 3 else ("collective", i % 4, 1 + i % 2, 3) for i in range(60)]
built = random_program(shape)
timeline = run(built, cluster(2, 2, latency_s=1e-6), durations(built, 1e-3), World(record_load=True))
print(hashlib.sha256(chrome_trace(timeline, cluster(2, 2)).encode()).hexdigest())
"""


def test_traces_are_byte_identical_under_any_hash_seed() -> None:
    digests = set()
    for seed in ("0", "1", "4711"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        digests.add(done.stdout)
    assert len(digests) == 1


def test_different_gpus_nics_and_a_straggler_run_together() -> None:
    """A step's end is the slow node's compute plus the message over the narrower NIC."""
    fast = cluster(1, 1, nics=1, nic=4e9, nic_latency_s=0).nodes[0]
    slow = cluster(1, 1, nics=1, nic=1e9, nic_latency_s=0, slowdown=3.0).nodes[0]
    machine = Cluster(name="mixed", gpus=cluster().gpus, nodes=(fast, slow), fabric=Fabric(latency_s=0))
    built = program([recv(1, "x", MB), compute(["x"])], [compute(writes=["a"]), send(0, "a", MB)])
    assert play(built, machine) == [[(3, 4), (4, 5)], [(0, 3), (3, 4)]]


def test_a_kernel_beside_a_collective_loses_the_share_that_was_measured() -> None:
    """3 MB all-reduced by two take 3 ms and a quarter of each device: 4 ms of compute have done 3 · 3/4 by then and end
    at 3 + (4 − 2.25) = 4.75 ms. A rank beside no transfer keeps its rate; the collective keeps its own."""
    both = [collective((0, 1), 3 * MB), compute()]
    built = program(both, both, [compute()])
    world = World(interference={"gpu": Interference(collective_share=0.25)})
    timeline = run(built, cluster(), durations(built, 4e-3), world)
    ends = [[round(float(end) / MS, 6) for end in row] for row in timeline.end_ps]
    assert ends[:3] == [[3, 4.75], [3, 4.75], [4]]
    assert run(built, cluster(), durations(built, 4e-3)).makespan_ps == 4 * MS  # absent by default


def test_messages_take_their_share_in_proportion_to_their_rate_at_both_ends() -> None:
    """Two messages of 2 MB into one port, at half the rate each: for 4 ms its rank loses 2 · 0.05, each sender 0.05."""
    lists = [[compute(writes=["a"]), send(2, "a", 2 * MB), compute(["a"])] for _ in range(2)]
    built = program(*lists, [recv(0, "x", 2 * MB), recv(1, "y", 2 * MB), compute()])
    seconds = [[0.0, 0.0, 6e-3], [0.0, 0.0, 6e-3], [0.0, 0.0, 6e-3]]
    world = World(interference={"gpu": Interference(message_share=0.1)})
    timeline = run(built, cluster(), seconds, world)
    # 4 ms at 0.95 leave 2.2 ms; at 0.9 (two halves of a share of 0.1) they leave 2.4 ms
    assert [round(float(row[-1]) / MS, 6) for row in timeline.end_ps[:3]] == [6.2, 6.2, 6.4]


def test_interference_of_nothing_changes_nothing() -> None:
    shape = [("message", i % 4, 1 + i % 3, 1 + i % 7) if i % 3 else ("compute", i % 4, 1, i) for i in range(40)]
    built = random_program(shape)
    plain = run(built, cluster(), durations(built, 1e-3))
    other = run(built, cluster(), durations(built, 1e-3), World(interference={"gpu": Interference()}))
    for one, two in zip(plain.end_ps, other.end_ps, strict=True):
        assert two == pytest.approx(one, abs=len(shape))  # a picosecond of rounding an event


def test_the_engine_plays_well_over_fifty_thousand_operations_a_second() -> None:
    """benchmarks/results/engine_speed.json has 270,000 and more; this guards against a slip, on a busy machine too."""
    from benchmarks import engine_speed

    built = engine_speed.program(1)
    row = engine_speed.measure("one replica", built, engine_speed.cluster(len(built.ranks)))
    assert float(row["operations_per_s"]) > 50_000
