"""Pricing and ``simulate``: a hand-made profile of round numbers, so every duration is arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from simulator.costs.cost import Prediction, predict
from simulator.costs.pricing import as_measured, measured_collectives, price
from simulator.errors import ProfileError
from simulator.host import Host
from simulator.kernel import ComputeKernel
from simulator.profile import CollectiveCurve, MemoryCost, Profile, SendRecv
from simulator.program import Add, Collective
from simulator.simulation.engine import simulate
from tests.hand_made import CPU, GPU, cluster, collective, compute, cpu_cluster, program, recv, send

MB = 10**6
ADD = MemoryCost(kind="add", launch_s=1e-3, bytes_per_s=1e9, log_error=0.1, tag="measured", source="by hand")


def profile(**about: object) -> Profile:
    """Adds cost 1 ms + bytes at 1 GB/s."""
    return Profile(name="hand-made", gpu=GPU, kernels=(), memory=(ADD,)).model_copy(update=about)


def add(num_tokens: int) -> Add:
    """3 tensors of num_tokens × 1 bf16: 6·num_tokens bytes."""
    return replace(compute(), num_tokens=num_tokens)


def test_an_operation_costs_the_sum_of_its_kernels() -> None:
    prices = price(program([add(1_000_000)], []), cluster(), {"gpu": profile()})
    assert prices.durations_s[0].tolist() == pytest.approx([1e-3 + 6e6 / 1e9])
    assert prices.moved_bytes[0].tolist() == [6e6]
    assert [len(row) for row in prices.durations_s] == [1, 0]


def test_transfers_have_no_price_of_their_own() -> None:
    prices = price(program([send(1, "a", MB)], [recv(0, "a", MB)]), cluster(), {"gpu": profile()})
    assert [row.tolist() for row in prices.durations_s] == [[0.0], [0.0]]


def test_a_kernel_shorter_than_the_hosts_issue_time_counts_as_launch() -> None:
    prices = price(program([add(0), add(1_000_000)]), cluster(), {"gpu": profile(host_launch_s=3e-3)})
    # the first: no bytes, no kernel; the second: 7 ms on the device, more than 3 ms to issue
    assert prices.durations_s[0].tolist() == pytest.approx([0.0, 7e-3])
    prices = price(program([add(100_000)]), cluster(), {"gpu": profile(host_launch_s=3e-3)})
    assert prices.durations_s[0].tolist() == pytest.approx([3e-3])  # 1.6 ms on the device
    assert prices.launch_s == (pytest.approx(1.4e-3),)


def test_quantiles_order_the_step() -> None:
    built = program([add(1_000_000)])
    steps = [simulate(built, cluster(), {"gpu": profile()}, quantile=q).duration_s for q in ("p05", "median", "p95")]
    assert steps[0] < steps[1] < steps[2]
    assert steps[1] == pytest.approx(7e-3)


def test_every_distinct_kernel_is_predicted_once() -> None:
    asked: list[int] = []

    def predicted(kernels: Sequence[ComputeKernel], of: Profile) -> Prediction:
        asked.append(len(kernels))
        return predict(kernels, of)

    built = program(*[[add(5), add(7), add(5)]] * 4)
    found = price(built, cluster(), {"gpu": profile()}, predicted=predicted)
    assert asked == [2]
    assert [row.tolist() for row in found.durations_s] == [
        row.tolist() for row in price(built, cluster(), {"gpu": profile()}).durations_s
    ]


def test_a_device_without_a_profile_is_named() -> None:
    with pytest.raises(ProfileError, match="no profile for 'gpu'; profiles: other"):
        simulate(program([add(1)]), cluster(), {"other": profile()})


def test_a_kernel_without_measurements_is_named() -> None:
    with pytest.raises(ProfileError, match="no memory kernel 'add'"):
        simulate(program([add(1)]), cluster(), {"gpu": profile(memory=())})


def test_measured_send_receive_replaces_the_stated_link() -> None:
    measured = SendRecv(latency_s=2e-3, bandwidth_bytes_per_s=4e9, tag="measured", source="by hand")
    built = program([send(1, "a", 4 * MB)], [recv(0, "a", 4 * MB)])
    assert simulate(built, cluster(), {"gpu": profile()}).duration_s == pytest.approx(4e-3)
    assert simulate(built, cluster(), {"gpu": profile(send_recv=measured)}).duration_s == pytest.approx(3e-3)
    pairwise = as_measured(cluster(4, kind="pairwise"), {"gpu": profile(send_recv=measured)})
    assert pairwise.nodes[0].link.bandwidth_bytes_per_s == 12e9  # 3 pair links of 4 GB/s a port


def both(one: Collective) -> list[list[Collective]]:
    return [[one], [one]]


def test_a_measured_curve_times_a_collective_inside_a_node() -> None:
    curve = CollectiveCurve(
        kind="all_reduce", gpus=2, bytes=(1e6, 2e6), seconds=(5e-3, 6e-3), tag="measured", source="by hand"
    )
    profiles = {"gpu": profile(collectives=(curve,))}
    auto = program(*both(collective((0, 1), MB, algorithm="auto")))
    assert simulate(auto, cluster(), profiles).duration_s == pytest.approx(5e-3)
    ring = program(*both(collective((0, 1), MB, algorithm="ring")))
    assert simulate(ring, cluster(), profiles).duration_s == pytest.approx(1e-3)  # 2·1/2·1 MB at 1 GB/s
    assert measured_collectives(profiles)("gpu", "all_to_all", MB, 2) is None


def test_a_measured_collective_alone_takes_its_measured_time_on_cpu_ranks_too() -> None:
    curve = CollectiveCurve(
        kind="all_reduce", gpus=2, bytes=(1e6, 2e6), seconds=(5e-3, 6e-3), tag="measured", source="by hand"
    )
    host = Host(core_capacity=1.0, transfer_core_s_per_byte=1e-6)
    profiles = {"cpu": profile(gpu=CPU, collectives=(curve,), host=host)}
    built = program(*both(collective((0, 1), MB, algorithm="auto")))
    assert simulate(built, cpu_cluster(2, 2), profiles).duration_s == pytest.approx(5e-3)


def test_ranks_of_a_cpu_node_share_its_measured_capacity() -> None:
    profiles = {"cpu": profile(gpu=CPU, host=Host(core_capacity=1.0))}
    built = program([add(1_000_000)], [add(1_000_000)])
    assert simulate(built, cpu_cluster(2, 2), profiles).duration_s == pytest.approx(14e-3)
