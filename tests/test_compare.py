"""Compare: step surfaces against the simulations they stand for, and every scheme at one load by one protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.compare import Compared, Options, compare
from planner.problem import Problem, load_problem
from planner.rivals import baselines, rule_placement
from planner.step_times import LEAST_TOKENS, Surface, knots, simulate_surface, step_seconds
from planner.systems import CHOSEN, COPIES, RULE, build
from simulator import presets
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.scenario import Scenario
from simulator.workload import Phase

WORKLOAD = """
name: two
buckets:
  - {name: short, min_tokens: 256, max_tokens: 2048, tokens: 1024, share: 0.5, output_tokens: 8}
  - {name: long, min_tokens: 2048, max_tokens: 8192, tokens: 4096, share: 0.5, output_tokens: 8}
prefill_batch: 1
decode_batch: 8
"""
OPTIONS = Options(per_category=25, num_trials=3, workers=1)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    path = tmp_path_factory.mktemp("compare") / "two.yaml"
    path.write_text(WORKLOAD)
    base = presets.scenario("fa-pool").model_dump()
    return load_problem(Scenario.model_validate(base | {"max_gpus": 16, "workload": str(path)}))


@pytest.fixture(scope="module")
def found(problem: Problem) -> Compared:
    return compare(problem, OPTIONS)


def test_knots_hold_both_ends_and_stay_within_the_ratio() -> None:
    assert knots(512, 4096, 2.0, 9) == (512, 1024, 2048, 4096)
    assert knots(512, 4096, 2.0, 2) == (512, 4096)
    assert knots(7, 7, 2.0, 9) == (7,)


def test_a_decode_surface_is_exact_where_time_is_affine() -> None:
    # seconds = 1 + batch·tokens/1000: bilinear, so every point between the knots comes out
    seconds = tuple(tuple(1 + b * n / 1000 for n in (100, 1000)) for b in (1, 8))
    surface = Surface((1, 8), (100, 1000), seconds, log=False)
    assert surface.at(4, 500) == pytest.approx(1 + 4 * 500 / 1000)
    assert surface.at(8, 2000) == pytest.approx(1 + 8 * 2000 / 1000)


def test_a_prefill_surface_is_exact_where_time_is_a_power() -> None:
    surface = Surface((1,), (1024, 2048), ((1.0, 4.0),), log=True)
    assert surface.at(1, 1448) == pytest.approx((1448 / 1024) ** 2)
    assert surface.at(1, 1) == pytest.approx((LEAST_TOKENS / 1024) ** 2)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_surfaces_are_within_seven_percent_of_simulation_between_their_knots(problem: Problem, phase: Phase) -> None:
    """Most of it where a length is no multiple of 16, as the knots are: its matrix products take up to 6 % longer."""
    bucket = problem.workload.buckets[1]
    question = problem.question(phase, bucket)
    for placement in (baselines(question)[0], rule_placement(question)):
        assert isinstance(placement, Placement)
        surface = simulate_surface(problem, question, placement, cache=None, lengths=(2048, 8192))
        for batch, tokens in ((1, 2900), (question.batch, 5800), (max(1, question.batch // 2), 7000)):
            simulated = step_seconds(problem, replace(question, batch=batch, tokens=tokens), placement, None)
            assert surface.at(batch, tokens) == pytest.approx(simulated, rel=0.07)


def test_every_scheme_is_there_and_says_why_if_it_cannot_run(found: Compared) -> None:
    rows = {row.name: row for row in found.rows}
    assert {CHOSEN, RULE, COPIES, "tp8-pp1", "tp8-pp2", "tp16-pp2", "tp8-pp4"} <= set(rows)
    assert {"best context parallel", "best pool"} <= set(rows)
    assert "needs 32 GPUs" in (rows["tp16-pp2"].infeasible or "")
    assert found.baseline == "tp8-pp2"


def test_speed_ups_over_the_baseline_are_one_for_itself_and_stand_beside_its_gpus(found: Compared) -> None:
    rows = {row.name: row for row in found.rows}
    assert [one.ratio.value for one in rows["tp8-pp2"].ttft] == [1.0, 1.0]
    assert [one.request_p_value for one in rows["tp8-pp2"].ttft] == [1.0, 1.0]
    assert rows["tp8-pp1"].gpu_ratio == pytest.approx(8 / 16)
    assert rows["tp8-pp2"].gpu_ratio == 1.0


def test_all_schemes_serve_the_same_load_and_none_is_overrun(found: Compared) -> None:
    for row in found.rows:
        if row.numbers is not None and row.capacity_per_s is not None:
            assert row.capacity_per_s > found.requests_per_s
            assert row.numbers.base_utilisation.mean <= 1.0 + 1e-9
            assert row.numbers.ttft_s.low <= row.numbers.ttft_s.mean <= row.numbers.ttft_s.high


def test_the_chosen_policy_has_the_fastest_planned_steps(found: Compared) -> None:
    steps = {row.name: row.system.steps for row in found.rows if row.system is not None}
    for name, others in steps.items():
        for ours, other in zip(steps[CHOSEN], others, strict=True):
            if name in ("tp8-pp1", RULE, "best pool", "best context parallel"):
                assert ours.seconds <= other.seconds * 1.001, (name, ours, other)


def test_the_same_seed_gives_the_same_numbers_in_one_process_or_two(
    problem: Problem, found: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.compare.names", lambda problem: (RULE, "tp8-pp2"))
    options = replace(OPTIONS, requests_per_s=found.requests_per_s)
    before = {row.name: row for row in found.rows}
    for row in compare(problem, options).rows + compare(problem, replace(options, workers=2)).rows:
        assert row.numbers == before[row.name].numbers
        assert row.ttft == before[row.name].ttft


def test_a_scheme_that_lacks_memory_names_the_rank(problem: Problem) -> None:
    small = problem.model.model_copy(update={"num_attention_heads": 4})
    assert isinstance(build(replace(problem, model=small), (), "tp8-pp1"), str)


def test_a_workload_that_nothing_can_serve_is_infeasible(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.compare.names", lambda problem: ("tp16-pp2", "tp8-pp4"))
    with pytest.raises(InfeasibleError, match=r"no scheme can serve.*needs 32 GPUs"):
        compare(problem, OPTIONS)
