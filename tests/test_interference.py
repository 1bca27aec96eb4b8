"""What a transfer takes from the kernels beside it, where a profile measured it."""

from __future__ import annotations

import pytest

from simulator.interference import Interference
from simulator.profile import load_profile, preset_names
from simulator.simulation.engine import World, run
from tests.hand_made import cluster, collective, compute, durations, program, recv, send
from tests.played import MB, MS
from tests.random_programs import random_program


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


def test_no_shipped_profile_has_a_share_that_nobody_measured() -> None:
    for name in preset_names():
        assert load_profile(name).interference is None
