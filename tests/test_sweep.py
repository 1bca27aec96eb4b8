"""Sweeps: every cell of a grid once, on processes or on Ray, the same rows; a stopped sweep goes on."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from planner.cli import main
from planner.exploring.sweep import finished, grid, sweep
from simulator.errors import SpecError
from simulator.scenario import Scenario

BASE = {"name": "s", "model": "fa-pool", "cluster": "dgx-a100-5", "workload": "two-level", "profile": "a100-sxm4-80gb"}
VARIED = {"objective": ["ttft", "cost"], "max_gpus": [8, 41]}


def cases() -> dict[str, Scenario]:
    return grid(BASE, VARIED)


def test_a_grid_is_every_combination_by_name() -> None:
    names = ["objective=ttft max_gpus=8", "objective=ttft max_gpus=41", "objective=cost max_gpus=8"]
    assert list(cases()) == [*names, "objective=cost max_gpus=41"]
    with pytest.raises(SpecError, match="objective=speed"):
        grid(BASE, {"objective": ["speed"]})


def test_a_sweep_plans_refuses_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = sweep(cases(), path, limit=1, processes=2)
    assert [row["key"] for row in rows] == list(cases())
    assert ["refused" in row for row in rows] == [False, True, False, True]  # 41 of 40 GPUs
    assert rows[1]["exit_code"] == 2
    assert rows[0]["policy"][0]["gpus"] <= 8
    kept = path.read_text().splitlines()
    mark = json.loads(kept[0]) | {"mark": "not made again"}
    path.write_text(json.dumps(mark) + "\n")
    again = sweep(cases(), path, limit=1, processes=1)
    assert again[0] == mark
    assert again[1:] == rows[1:]


def test_a_file_that_is_no_sweep_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("dear diary\n")
    with pytest.raises(SpecError, match="line 1 is no row of a sweep"):
        finished(path)
    assert path.read_text() == "dear diary\n"


@pytest.mark.parametrize("vary", ["speed=1,2", "cluster", "max-gpus=few"])
def test_a_field_that_cannot_vary_is_one_line(vary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "fa-pool", "--vary", vary, "-o", str(tmp_path / "s.jsonl")]) == 2
    assert "--vary" in capsys.readouterr().err
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"attnplan\[ray\]"):
        sweep(cases(), tmp_path / "rows.jsonl", limit=1, ray_address="local")


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_ray_makes_the_rows_that_processes_make(tmp_path: Path) -> None:
    here = sweep(cases(), tmp_path / "here.jsonl", limit=1, processes=1)
    assert sweep(cases(), tmp_path / "ray.jsonl", limit=1, ray_address="local") == here
