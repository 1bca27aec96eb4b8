"""Engine: exact traces and closed forms. Times in the tests are picoseconds."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster import Cluster, Fabric
from simulator.program import Operation
from simulator.simulation.engine import run
from tests.hand_made import cluster, collective, compute, durations, program, recv, send
from tests.played import MB, MS, play


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


def test_the_next_use_of_a_tag_by_one_end_meets_the_next_use_by_the_others() -> None:
    built = program(
        [compute(writes=["a"]), send(1, "a", MB), send(1, "a", 2 * MB), collective((0, 1), MB), collective((0, 1), MB)],
        [recv(0, "x", MB), recv(0, "y", 2 * MB), collective((0, 1), MB), collective((0, 1), MB)],
    )
    # alone from 0 to 1 ms: the kernel's rank reduces; then the second all-reduce and the first message share the ports
    assert play(built) == [[(0, 1), (1, 3), (3, 5), (0, 1), (1, 3)], [(1, 3), (3, 5), (0, 1), (1, 3)]]


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


def test_different_gpus_nics_and_a_straggler_run_together() -> None:
    """A step's end is the slow node's compute plus the message over the narrower NIC."""
    fast = cluster(1, 1, nics=1, nic=4e9, nic_latency_s=0).nodes[0]
    slow = cluster(1, 1, nics=1, nic=1e9, nic_latency_s=0, slowdown=3.0).nodes[0]
    machine = Cluster(name="mixed", gpus=cluster().gpus, nodes=(fast, slow), fabric=Fabric(latency_s=0))
    built = program([recv(1, "x", MB), compute(["x"])], [compute(writes=["a"]), send(0, "a", MB)])
    assert play(built, machine) == [[(3, 4), (4, 5)], [(0, 3), (3, 4)]]
