"""A run is given up exactly when it ends after its deadline, and then early."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.simulation.engine import run, run_until
from simulator.simulation.lateness import latest_starts
from simulator.units import PICOSECONDS_PER_S
from tests.any_scheme import Case, cases
from tests.test_invariants import machine, seconds


@settings(max_examples=200, deadline=None)
@given(cases(), st.floats(0.05, 0.999))
def test_a_run_ends_by_its_deadline_or_is_given_up_whatever_the_scheme(case: Case, share: float) -> None:
    built = case.program()
    durations, whole = seconds(built), run(built, machine(), seconds(built))
    in_time = run_until(built, machine(), durations, whole.duration_s)
    assert in_time is not None
    assert all(np.array_equal(a, b) for a, b in zip(in_time.end_ps, whole.end_ps, strict=True))
    assert run_until(built, machine(), durations, whole.duration_s * share) is None
    assert run_until(built, machine(), durations, (whole.makespan_ps - 1) / PICOSECONDS_PER_S) is None


def test_a_task_may_begin_as_late_as_the_longest_chain_after_it_allows() -> None:
    # 0 (3 ps) → 1 (2 ps) → 3 (5 ps), 0 → 2 (a message, 0 ps) → 3: from 0 it takes 3 + 2 + 5 = 10 ps of 20
    assert latest_starts([0, 1, 1, 2], [[1, 2], [3], [3], []], [3, 2, 0, 5], 20) == [10, 13, 15, 15]
    # the same numbered from the end: in whatever order they are issued
    assert latest_starts([2, 1, 1, 0], [[], [0], [0], [1, 2]], [5, 0, 2, 3], 20) == [15, 15, 13, 10]
