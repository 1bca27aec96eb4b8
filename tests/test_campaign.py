"""The campaign's bookkeeping: a crash loses a cell at most, misses stay, figures are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.campaign.candidates import interleaved
from benchmarks.campaign.cells import DECODE_TOKENS, PREFILL_TOKENS, Cell, all_cells, append, lines
from benchmarks.campaign.figures import Result, cell_figures, kendall, summary
from benchmarks.campaign.models import MODELS
from benchmarks.campaign.places import PLACES
from benchmarks.campaign.race import Race, run_race
from benchmarks.campaign.report import add_misses
from benchmarks.campaign.tables import BEGIN, END, with_part
from executor.pace import usual_paces
from executor.supervisor import Supervisor
from simulator.errors import SpecError
from simulator.placement import AttentionGrid
from tests.schemes import pooled, static, tiny_model


def result(name: str, predicted_s: float, durations_s: tuple[float, ...]) -> Result:
    return Result(
        "a/b/prefill/1", "prefill", 1, "tp-pp", name, predicted_s, 0.9 * predicted_s, 1.1 * predicted_s, durations_s,
        apart=0.1,
    )  # fmt: skip


def test_a_line_cut_short_is_run_again_and_the_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append(path, {"cell": "one", "x": 1})
    with path.open("a") as file:
        file.write('{"cell": "two", "x"')  # killed here
    assert set(lines(path)) == {"one"}
    append(path, {"cell": "three", "x": 3})
    assert set(lines(path)) == {"one", "three"}


def test_misses_are_added_once_and_never_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "invalidation.jsonl"
    append(path, {"cell": "an old miss", "why": "as before"})
    append(tmp_path / "runs.jsonl", {"cell": "a/b/prefill/1", "runs": {"p": {"spans_s": []}, "q": {"spans_s": []}}})
    wild = [result("p", 2.0, (1.0, 1.0, 4.0)), result("q", 3.0, (0.5, 0.5, 9.0))]  # the rounds differ as much
    for _ in range(2):
        add_misses(path, wild, tmp_path)
    add_misses(path, [result("p", 1.0, (1.0, 1.0, 1.0)), result("q", 2.0, (2.0, 2.0, 2.0))], tmp_path)
    assert list(lines(path)) == ["an old miss", "a/b/prefill/1/p", "a/b/prefill/1/q", "a/b/prefill/1"]
    assert len(path.read_text().splitlines()) == 4
    assert lines(path)["a/b/prefill/1"]["regret"] == pytest.approx(1.0)  # p chosen, 1 s; q takes 0.5 s


def test_regret_is_the_chosen_plans_time_over_the_best_ones() -> None:
    found = [result("p", 1.0, (1.2, 1.2, 1.2)), result("q", 2.0, (1.0, 1.0, 1.0)), result("r", 3.0, (4.0, 4.0, 4.0))]
    figure = cell_figures(found)
    assert (figure.chosen, figure.best) == ("p", "q")
    assert figure.regret == pytest.approx(0.2)
    assert figure.regret_low == pytest.approx(0.2)  # the same in every round
    assert figure.tau == pytest.approx(1 / 3)  # two pairs of three ordered alike
    assert not figure.hit
    assert summary(found)["error_worst"] == pytest.approx(1.0)  # 2 s predicted, 1 s measured


def test_predictions_closer_than_plans_differ_are_too_close_to_call() -> None:
    found = [result("p", 1.0, (1.2, 1.2, 1.2)), result("q", 1.05, (1.15, 1.15, 1.15))]  # log 1.05 = 0.05 < 0.1
    figure = cell_figures(found)
    assert figure.too_close
    assert figure.hit  # measured 4 % apart
    assert not cell_figures([found[0], result("q", 1.05, (0.9, 0.9, 0.9))]).hit  # log(1.2 / 0.9) = 0.29


def test_intervals_are_of_single_runs() -> None:
    assert result("p", 1.0, (0.8, 0.95, 1.05, 2.0)).inside == 0.5  # of 0.9 to 1.1


def test_readmes_table_stands_between_its_markers() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_part(text, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(SpecError, match="markers"):
        with_part("no markers", "new")


def test_kendalls_tau_counts_pairs() -> None:
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)


def test_every_cell_has_a_dozen_different_plans_that_can_be_lowered() -> None:
    for cell in all_cells(PLACES, MODELS, ("prefill", "decode")):
        names = [candidate.name for candidate in cell.candidates]
        assert len(set(names)) == len(names) >= 12
    for place in PLACES:
        for phase in ("prefill", "decode"):
            for tokens in (PREFILL_TOKENS if phase == "prefill" else DECODE_TOKENS)[:: 3 if place == "one-host" else 4]:
                race = Cell(place, "routed", phase, tokens).race()
                assert all(race.program(placement).num_operations for placement in race.placements)


def test_ranks_are_dealt_over_hosts_in_turn() -> None:
    assert interleaved((0, 0, 1, 1)) == (0, 2, 1, 3)
    assert interleaved((0, 0, 0, 1)) == (0, 3, 1, 2)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_race_times_every_plan_in_every_round(phase: str) -> None:
    model = tiny_model()
    grid = (
        AttentionGrid(heads=(8,), query_blocks=1, kv_blocks=2)
        if phase == "decode"
        else AttentionGrid(heads=(8,), query_blocks=2)
    )
    race = Race(
        model,
        "decode" if phase == "decode" else "prefill",
        16,
        2,
        (0, 0, 0),
        (static(model, 1), static(model, 2), pooled(model, 1, grid)),
    )
    with Supervisor(3, timeout_s=60) as world:
        runs = run_race(world, race, 3, paces=usual_paces(world, 0.3))
    assert [len(run.durations_s) for run in runs] == [3, 3, 3]
    for run, placement in zip(runs, race.placements, strict=True):
        program = race.program(placement)
        assert [len(spans) for spans in run.spans_s] == [len(operations) for operations in program.ranks]
        assert all(0 < seconds < 10 for seconds in run.durations_s)
