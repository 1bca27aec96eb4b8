"""Host calibration: who sits beside whom, and what that costs in steps on real processes."""

from __future__ import annotations

import pytest

from calibration.shared_cores import neighbours, shared_cores
from calibration.teachers import one_rank_steps
from executor.emulated_hosts import Seat, seats_here
from executor.step_timing import Timing
from executor.supervisor import Supervisor


class Seats:
    """Of a world, where its ranks sit."""

    def __init__(self, *seats: Seat) -> None:
        self.seats = seats


@pytest.mark.parametrize(
    ("seats", "beside", "in_turns"),
    [
        ([Seat(0, cores=(0,)), Seat(0, cores=(1,)), Seat(0, cores=(0,)), Seat(0, cores=(1,))], (0, 1), (0, 2)),
        ([Seat(0, cores=(0,)), Seat(0, cores=(0,)), Seat(1, cores=(1,)), Seat(1, cores=(1,))], (0,), (0, 1)),
        ([Seat(0, cores=(0, 1))] * 4, (0, 1), (0,)),  # each where the kernel puts it
        ([Seat(0)] * 4, (0, 1), (0,)),  # where nobody can be told a core
    ],
)
def test_ranks_sit_beside_each_other_or_share_a_core(
    seats: list[Seat], beside: tuple[int, ...], in_turns: tuple[int, ...]
) -> None:
    assert neighbours(Seats(*seats), 2) == (beside, in_turns)  # type: ignore[arg-type]


def test_two_ranks_of_one_core_do_one_cores_work() -> None:
    core = seats_here(1)[0]
    with Supervisor(2, timeout_s=60, seats=(core, core)) as world:
        capacity, turn_share = shared_cores(world, 2, one_rank_steps()[:1], Timing(0.2))
    assert capacity == 1.0
    assert 0.0 <= turn_share < 1.0
