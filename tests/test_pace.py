"""Pace: what was measured while the machine was not as usual is measured again, as long as patience lasts."""

from __future__ import annotations

from executor.emulated_hosts import Seat, seats_here
from executor.generate import agreed
from executor.pace import PATIENCE_S, TRIES, Pace, at_usual_pace, usual_paces, watchers
from executor.supervisor import Supervisor
from executor.worker import Worker


def runs_until_kept(pace: Pace) -> int:
    runs = 0

    def action() -> int:
        nonlocal runs
        runs += 1
        return runs

    assert pace.kept(action) == runs  # the last one
    return runs


def test_where_no_pace_is_known_everything_counts_and_nothing_is_looked_at() -> None:
    pace = Pace(0.0)
    assert runs_until_kept(pace) == 1
    assert pace.patience_s > PATIENCE_S - 0.1


def test_at_the_usual_pace_a_run_counts() -> None:
    usual_s = min(Pace(1.0).look() for _ in range(5))
    pace = Pace(usual_s, patience_s=5.0)
    while not pace.is_usual():  # a neighbour's moment
        pass
    assert runs_until_kept(pace) <= TRIES
    assert pace.patience_s > 0


def test_a_machine_that_never_is_as_usual_is_waited_for_no_longer_than_patience_lasts() -> None:
    pace = Pace(1e-9, patience_s=0.3)
    assert runs_until_kept(pace) == 1  # waited until patience was at its end, then took what there was
    assert pace.patience_s <= 0


def test_what_was_done_as_the_pace_changed_does_not_count() -> None:
    pace = Pace(1e-9, patience_s=60.0)
    assert not pace.holds()
    assert pace.again == 1


def agree(worker: Worker, against: tuple[int, ...]) -> bool:
    """Job: every rank but some is for it."""
    return agreed(worker, worker.world.rank not in against)


def test_a_world_measures_again_what_a_core_found_at_another_pace() -> None:
    found = []

    def measure() -> int:
        found.append(len(found))
        return len(found)

    with Supervisor(3, timeout_s=60, seats=seats_here(3)) as world:
        assert at_usual_pace(world, (0.0, 0.0, 0.0), measure) == 1
        paces = usual_paces(world, 0.3)
        assert [rank for rank, usual_s in enumerate(paces) if usual_s > 0] == list(watchers(world.seats))
        assert at_usual_pace(world, paces, measure) == len(found) <= 1 + TRIES
        assert world.run(agree, ()) == [True] * 3
        for rank in range(3):
            assert world.run(agree, (rank,)) == [False] * 3


def test_one_rank_of_each_core_watches_it() -> None:
    on = [Seat(0, cores=(core,)) for core in (0, 1)]
    assert watchers([on[0], on[1], on[0], on[1]]) == (0, 1)
    assert watchers([on[0], on[0], on[0], on[1]]) == (0, 3)
    assert watchers([Seat(0, cores=(0, 1))] * 4) == watchers([Seat(0)] * 2) == (0,)
