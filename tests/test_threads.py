"""Collectives of CPU ranks keep their threads busy: alone they take their seconds, beside kernels they share cores."""

from __future__ import annotations

import pytest

from executor.world_timing import CollectiveTime, collective_threads
from simulator.host import Host
from simulator.kernel import GroupCollective
from simulator.profile import CollectiveCurve
from simulator.program import Operation
from simulator.simulation.engine import simulate
from tests.hand_made import CPU, collective, program
from tests.test_pinned_ranks import pinned
from tests.test_pricing import MB, add, profile

CURVE = CollectiveCurve(
    kind="all_reduce", gpus=2, bytes=(1e6, 2e6), seconds=(5e-3, 6e-3), tag="measured", source="by hand"
)
HOST = Host(core_capacity=2.0, transfer_issue_s=1e-3, receive_s=1e-3)


def seconds(host: Host, *others: list[Operation], cores: int = 2, algorithm: str = "auto") -> float:
    """Ranks 0 and 1 reduce 1 MB over a bus of 4 GB/s; the others are pinned to the cores after them, in turn."""
    one = [collective((0, 1), MB, algorithm=algorithm)]
    profiles = {"cpu": profile(gpu=CPU, collectives=(CURVE,), host=host)}
    return simulate(program(one, one, *others), pinned(2 + len(others), cores, link=4e9), profiles).duration_s


def test_alone_a_measured_one_takes_its_measured_time_and_another_its_threads_time_too() -> None:
    assert seconds(HOST) == pytest.approx(5e-3)
    # two ranks swap: 2 · 1 MB at 4 GB/s = 0.5 ms, and one message of 1 + 1 ms
    assert seconds(HOST, algorithm="ring") == pytest.approx(2.5e-3)


def test_what_a_members_thread_takes_is_as_measured_in_collectives_where_it_was() -> None:
    measured = HOST.model_copy(
        update={"collective_message_s": 3e-3, "collective_s_per_byte": 1e-9, "core_capacity": 1.0}
    )
    # on one core: each of the two threads takes 3 ms for its message and 1 ms for 1 MB
    assert seconds(measured, cores=1, algorithm="ring") == pytest.approx(8e-3)


def test_threads_times_of_collectives_are_found_again() -> None:
    """100 µs a message, 1 ns a byte: of four members 3 messages whole, 6 by parts; of two 1."""
    times = [
        CollectiveTime(GroupCollective("all_reduce", num_bytes, members), 1.0, messages * 1e-4 + sent * 1e-9)
        for num_bytes, members, messages, sent in (
            (2**12, 4, 3, 3 * 2**12),
            (2**20, 4, 6, 1.5 * 2**20),
            (2**20, 2, 1, 2**20),
        )
    ]
    assert collective_threads(times) == (pytest.approx(1e-4), pytest.approx(1e-9))


def test_members_of_one_core_take_turns() -> None:
    one_core = HOST.model_copy(update={"core_capacity": 1.0})
    assert seconds(one_core, cores=1, algorithm="ring") == pytest.approx(4e-3)  # 2 ms of each one's thread
    assert seconds(one_core, cores=1) == pytest.approx(5e-3)  # measured on these cores


def test_a_kernel_on_a_members_core_shares_it_with_the_members_thread() -> None:
    # rank 2's kernel takes 1 ms + 6 MB at 1 GB/s = 7 ms of core 0, rank 0's thread 2 ms
    assert seconds(HOST, [add(1_000_000)], algorithm="ring") == pytest.approx(9e-3)
