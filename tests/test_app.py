"""The explorer's logic, without a browser: pages in process, values from the address, files, the command line."""

from __future__ import annotations

import os
import random
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit")

import streamlit as st
from streamlit.testing.v1 import AppTest

from app import grid, planning, validate, whatif
from app.nearby import nearby
from app.question import canonical_command, preset_words, problem_of
from planner.cli import main as plan
from planner.commands.app import ADDRESS, command
from planner.exploring.surface import Surface, surface, thresholds
from planner.exploring.whatif import BATCHES, LENGTHS, RATES, SCHEMES, Slice, Where, make_slice
from planner.problem import load_problem
from simulator import presets
from simulator.errors import SpecError
from tests.reliability.scale import of

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = "--model fa-pool --cluster dgx-a100-2 --workload local --profile a100-sxm4-80gb"
TEXTS = (
    "<script>alert(1)</script>", "' OR 1=1 --", "../../../etc/passwd", "%00", "\u202e\u0000x", "🤖" * 50, "NaN", "-1",
    "1e999", "None", "[]", "{{7*7}}", "a" * 5000, "fa-pool\nfa-pool", "`rm -rf`", "**bold**", "$(id)", "0x10", "٣", " ",
)  # fmt: skip
"""Values that no input accepts."""


def whatif_page() -> None:
    from app import whatif

    whatif.show()


def plan_page() -> None:
    from app import pages, plan

    pages.guarded(plan.show)


def compare_page() -> None:
    from app import compare, pages

    pages.guarded(compare.show)


def timeline_page() -> None:
    from app import pages, timeline

    pages.guarded(timeline.show)


def topology_page() -> None:
    from app import pages, topology

    pages.guarded(topology.show)


def made_up(where: Where, batch: int) -> Slice:
    """Times that no simulation gave: linear in length and batch; every scheme; the largest batch does not fit."""
    shape = len(where.lengths), len(where.pools), len(SCHEMES)
    tokens = np.array(where.lengths, dtype=float)[:, None, None, None] * batch * 1e-6
    gpus = (np.array(where.pools) + where.base_gpus)[None, :, None, None]
    scheme = (1 + np.arange(len(SCHEMES)))[None, None, :, None]
    network = 1 / np.array(RATES)[None, None, None, :] * 1e-4
    free = np.full(shape, 1e9 if batch < BATCHES[-1] else -1e9)
    return Slice(batch, tokens / gpus * scheme + network, free)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The What-if page on made-up times."""
    monkeypatch.setattr(whatif, "slices", lambda where, key, batch: {one: made_up(where, one) for one in BATCHES})
    st.cache_resource.clear()


def run(page: Callable[[], None], **query: str | list[str]) -> AppTest:
    test = AppTest.from_function(page, default_timeout=180)
    for key, value in query.items():
        test.query_params[key] = value
    return test.run()


def notices(test: AppTest) -> str:
    return " ".join(str(one.value) for one in test.warning)


@pytest.mark.parametrize("value", TEXTS)
@pytest.mark.parametrize("key", ["scenario", "nics"])
def test_a_value_in_the_address_that_is_not_known_is_named_and_never_a_traceback(
    quick: None, key: str, value: str
) -> None:
    test = run(whatif_page, **{key: value})
    assert not test.exception
    assert f"{key.replace('_', chr(92) + '_')}=" in notices(test)


@pytest.mark.parametrize("value", ["seven", "-3", "0", "nan", "1e400", "99999999999", "٣.٥", "1; rm"])
def test_a_number_that_does_not_parse_stays_in_its_box_with_a_notice(value: str) -> None:
    test = run(plan_page, max_gpus=value)
    assert not test.exception
    assert "max\\_gpus=" in notices(test)
    assert next(box for box in test.text_input if box.key == "max_gpus").value == value


def test_repeated_parameters_are_refused_with_a_notice(quick: None) -> None:
    test = run(whatif_page, phase=["prefill", "decode"])
    assert not test.exception
    assert "phase=" in notices(test)


def test_a_notice_goes_once_the_user_chooses(quick: None) -> None:
    test = run(whatif_page, phase="training")
    assert "phase=" in notices(test)
    next(box for box in test.selectbox if box.key == "phase").select("decode")
    assert "phase=" not in notices(test.run())


def test_every_input_of_the_whatif_page_is_read_from_the_address(quick: None) -> None:
    given = {"nics": "2", "nic_gb_s": "50.0", "batch": "16", "tokens": "4096", "pool": "8", "phase": "decode"}
    test = run(whatif_page, **given)
    assert not notices(test)
    read = {one.key: str(one.value) for one in (*test.select_slider, *test.selectbox)}
    assert {key: read[key] for key in given} == given


@pytest.mark.parametrize(
    "text", ["fa-pool --objectve tpot", "fa-pool --max-gpus", "'", "nowhere", "fa-pool --model /x"]
)
def test_a_plan_to_compare_that_cannot_be_read_is_a_notice(text: str) -> None:
    test = run(compare_page, a=text, b="", c="")
    assert not test.exception
    assert "plan A" in notices(test)


@pytest.mark.parametrize("page", [timeline_page, topology_page])
def test_step_pages_draw_every_scheme_of_a_small_step(page: Callable[[], None]) -> None:
    test = run(page, pool="8", tokens="1024")
    assert not test.exception
    box = next(one for one in test.selectbox if one.key == "scheme")
    for scheme in box.options:
        test = next(one for one in test.selectbox if one.key == "scheme").select(scheme).run()
        assert not test.exception


def test_a_step_page_takes_another_model_and_cluster() -> None:
    test = run(topology_page, model="mixtral-8x7b", cluster="dgx-a100-2", tokens="1024", scheme="MA Separation")
    assert not test.exception
    assert not notices(test)
    assert "GPU 0" in " ".join(str(one.value) for one in test.markdown)


def test_ranks_in_the_address_that_take_no_part_are_named_and_the_others_kept() -> None:
    test = run(timeline_page, pool="8", tokens="1024", ranks=["3", "99"])
    assert not test.exception
    assert "ranks='99'" in notices(test).replace("\\", "")
    assert test.multiselect[0].value == [3]


def inputs(count: int) -> list[str]:
    """Random options of small questions."""
    generator = random.Random(7)
    found = []
    for _ in range(count):
        words = [SMALL, "--max-gpus", str(generator.choice((1, 2)))]
        words += ["--objective", generator.choice(("ttft", "tpot", "tps", "tps_per_gpu", "cost"))]
        words += generator.choice(([], ["--base-gpus", "1"]))
        words += generator.choice(([], ["--ttft-slo", str(generator.randint(1, 9))]))
        found.append(" ".join(words))
    return found


@pytest.mark.parametrize("text", inputs(of(5, 20)))
def test_the_command_on_the_page_writes_the_pages_json_byte_for_byte(text: str, tmp_path: Path) -> None:
    words = preset_words(text)
    line = canonical_command(words)
    shown = planning.run_plan(line, lambda seconds: None)
    target = tmp_path / "allocation.json"
    assert plan([*shlex.split(line)[1:], "-o", str(target), "--json"]) == 0
    assert target.read_text(encoding="utf-8") == shown
    assert planning.parsed(shown).command == line


def test_files_of_the_folder_are_offered_by_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name, kind in (("tiny-dense", "models"), ("dgx-a100-2", "clusters"), ("local", "workloads")):
        text = (presets.FOLDER / kind / f"{name}.yaml").read_text(encoding="utf-8")
        (tmp_path / f"my-{kind}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "out" / "notes.json").write_text('{"steps of mine": 1}', encoding="utf-8")
    assert list(nearby("model")) == ["my-models.yaml"]
    assert list(nearby("cluster")) == ["my-clusters.yaml"]
    assert list(nearby("workload")) == ["my-workloads.yaml"]
    assert not nearby("measurement")
    words = preset_words("fa-pool --cluster my-clusters.yaml --model my-models.yaml --max-gpus 2 --base-gpus 1")
    assert problem_of(words).cluster.num_ranks == 16
    with pytest.raises(SpecError, match="not known"):
        preset_words("fa-pool --cluster ../my-clusters.yaml")


def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    text = (presets.FOLDER / "clusters" / "dgx-a100-2.yaml").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    words = ("fa-pool", "--cluster", "mine.yaml", "--max-gpus", "8", "--base-gpus", "8")
    assert problem_of(words).cluster.num_ranks == 16
    path.write_text(text.replace("count: 2", "count: 3"), encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert problem_of(words).cluster.num_ranks == 24


def test_a_scenario_without_its_profile_says_how_to_make_one() -> None:
    with pytest.raises(SpecError, match="plan calibrate"):
        canonical_command(("local",))


def test_planning_stops_when_its_page_does() -> None:
    class StoppedError(Exception):
        pass

    def stop(seconds: float) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        planning.run_plan(canonical_command(("fa-pool",)), stop)


def test_what_plan_make_refuses_is_told_in_its_words() -> None:
    with pytest.raises(SpecError, match="max_gpus 41 exceeds the 40"):
        planning.run_plan(canonical_command(("fa-pool", "--max-gpus", "41")), lambda seconds: None)


UPLOADS = (
    "", "{", "[]", "null", '{"schema_version": 2}', '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '{"policy": []}',
    r'"\ud800"', "\x00\x00\x00", '{"steps": ' + "9" * 5000 + "}",
)  # fmt: skip


@pytest.mark.parametrize("text", UPLOADS)
def test_a_hostile_upload_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SpecError) as refused:
        validate.validated(("plan.json", text), ("run.json", text))
    assert "\n" not in str(refused.value)
    assert "/tmp" not in str(refused.value)


def test_the_server_listens_here_only_takes_small_files_and_phones_nobody() -> None:
    line = command(8501)
    for option in (
        f"--server.address={ADDRESS}", "--server.maxUploadSize=5", "--browser.gatherUsageStats=false",
        "--client.showErrorDetails=none", "--server.enableXsrfProtection=true",
    ):  # fmt: skip
        assert option in line
    assert ADDRESS == "127.0.0.1"


@pytest.fixture(scope="module")
def where() -> Where:
    return Where(load_problem(presets.scenario("fa-pool")), "decode", 8)


def test_a_surface_is_exact_where_it_was_simulated_and_between_in_between(where: Where) -> None:
    slices = {batch: made_up(where, batch) for batch in BATCHES}
    for index, rate in enumerate(RATES):
        assert np.allclose(surface(slices, 4, rate).seconds, slices[4].seconds[..., index])
    # linear in the batch: 8 lies a third of the way from 4 to 16
    expected = slices[4].seconds[..., 2] * 2 / 3 + slices[16].seconds[..., 2] / 3
    assert np.allclose(surface(slices, 8, 1.0).seconds, expected)


def test_what_does_not_fit_never_wins(where: Where) -> None:
    found = surface({64: made_up(where, 64)}, 64, 1.0)
    assert (found.winners == -1).all()


def test_a_threshold_lies_where_the_pool_meets_the_base_and_inside_its_band(where: Where) -> None:
    lengths = np.array(LENGTHS, dtype=float)
    seconds = np.full((len(LENGTHS), len(where.pools), len(SCHEMES)), np.nan)
    seconds[:, 0, SCHEMES.index("base alone")] = lengths
    # pooled = 8192 + n/2 meets base = n at n = 16384
    seconds[:, 1:, SCHEMES.index("FA Pool")] = (8192 + lengths / 2)[:, None]
    found = thresholds(Surface(seconds, ~np.isnan(seconds)), LENGTHS, where.pools)
    assert len(found) == len(where.pools) - 1
    for crossing in found:
        assert crossing.tokens == pytest.approx(16384, rel=1e-6)
        assert crossing.low is not None
        assert crossing.high is not None
        assert crossing.low < 16384 < crossing.high


def test_a_pool_that_never_wins_has_no_threshold(where: Where) -> None:
    seconds = np.full((len(LENGTHS), len(where.pools), len(SCHEMES)), np.nan)
    seconds[:, 0, 0], seconds[:, 1:, SCHEMES.index("FA Pool")] = 1.0, 2.0
    found = thresholds(Surface(seconds, ~np.isnan(seconds)), LENGTHS, where.pools)
    assert all(crossing.tokens is None for crossing in found)


def test_a_grid_that_was_stopped_goes_on_where_it_was(where: Where) -> None:
    class StoppedError(Exception):
        pass

    small = replace(where, lengths=LENGTHS[:2], problem=load_problem(presets.scenario("two-level")), base_gpus=4)
    have: dict[int, Slice] = {}
    rows: grid.Rows = {}

    def stop(done: int, total: int) -> None:
        if done == len(small.pools) + 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        grid.complete(small, have, rows, 1, stop)
    assert list(rows) == [(1, LENGTHS[0])]
    seen: list[tuple[int, int]] = []
    grid.complete(small, have, rows, 1, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * len(small.pools), 2 * len(small.pools))
    assert not rows
    whole = make_slice(small, 1)
    assert np.array_equal(have[1].seconds, whole.seconds, equal_nan=True)
    assert np.array_equal(have[1].free_bytes, whole.free_bytes, equal_nan=True)


def test_shipped_grids_agree_with_a_fresh_simulation(where: Where) -> None:
    kept: dict[int, Any] = grid.shipped(where)
    if not kept:
        pytest.skip("the shipped grid was made from other inputs; python -m app.grid makes it again")
    from planner.exploring.whatif import programs, timelines

    for scheme, program in programs(where, LENGTHS[4], 16, where.pools[1]):
        fresh = [one.duration_s for one in timelines(where.problem, program, RATES)]
        stored = kept[16].seconds[4, 1, SCHEMES.index(scheme)]
        assert stored == pytest.approx(fresh, rel=1e-2)
