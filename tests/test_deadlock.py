"""What cannot end, or cannot run, is an error that names ranks, operations and what they wait for."""

from __future__ import annotations

import pytest

from simulator.errors import ExecutionError, InfeasibleError
from tests.hand_made import collective, compute, program, recv, send
from tests.played import MB, play


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


def test_a_program_larger_than_its_cluster_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="program uses 5 ranks but cluster hand-made has 4"):
        play(program(*[[compute()] for _ in range(5)]))
