"""Fuzzing every reader with mutated real files: thirty seconds here, ten minutes and more for the report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calibration.importers import nccl_tests
from calibration.importing import imported_profile
from planner.cli import main
from planner.ops_csv import read_operations
from simulator import presets
from simulator.allocation import Allocation
from simulator.errors import SpecError
from simulator.formats.files import load
from simulator.formats.topo import read_matrix
from simulator.formats.trace import from_trace
from simulator.profile import load_profile
from tests.reliability.scale import ROOT, of, record


def test_mutated_real_files_are_read_or_refused_in_one_line_by_every_reader() -> None:
    """Seeded, so that a failure is found again: the command of the assertion message keeps the files."""
    seconds, seed = of(30, 660), of(0, 20261121)
    command = [sys.executable, "-W", "error", "-m", "tests.reliability.fuzz"]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 120, check=False)
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout)
    record(
        "fuzzing",
        seconds=found["seconds"],
        cases=found["cases"],
        readers=len(found["readers"]),
        defects=len(found["defects"]),
        slowest_s=max(one["slowest_s"] for one in found["readers"].values()),
        memory_growth_bytes=found["memory_growth_bytes"],
    )
    assert not found["defects"], f"{found['defects'][:5]}; again with: {' '.join(command)} --keep FOLDER"
    assert found["memory_growth_bytes"] < 200 * 10**6
    for name, counts in found["readers"].items():
        assert counts.get("refused", 0) > 0, f"{name}: no mutation was refused: are its seeds read at all?"
        assert counts.get("accepted", 0) > 0, f"{name}: every mutation was refused: only its first check was tested"


def test_a_message_is_one_printable_line_whatever_was_refused() -> None:
    hostile = "a\nb\r\x1b[31m\u2028\ud800\0" + "x" * 100_000 + " known: y"
    message = str(SpecError(f"file.json: name: unknown {hostile}"))
    assert message.isprintable()
    assert len(message) < 700
    assert message.startswith(r"file.json: name: unknown a\nb\r\x1b[31m\u2028\ud800\x00xx")
    assert message.endswith("xx known: y")
    message.encode()


NAMES = (
    "x" * 300,
    "../" * 2000,
    "a\0b",
    "",
    ".",
    "/",
    "é" * 200 + ".json",
    "x" * 300 + ".csv",
    "a\nb",
    "\ud800",
    "/dev/zero",
)
READERS: dict[str, Callable[[str], object]] = {
    "model": presets.model,
    "cluster": presets.cluster,
    "workload": presets.workload,
    "scenario": presets.scenario,
    "profile": load_profile,
    "trace": lambda name: from_trace(Path(name)),
    "topo": lambda name: read_matrix(Path(name)),
    "operations": lambda name: read_operations(Path(name)),
    "nccl": lambda name: nccl_tests.read_run(Path(name)),
    "vidur": lambda name: imported_profile("vidur", [Path(name)]),
    "allocation": lambda name: load(Path(name), Allocation),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NAMES, ids=[repr(name[:8]) for name in NAMES])
def test_a_hostile_file_name_is_refused_by_every_reader(reader: str, name: str) -> None:
    with pytest.raises(SpecError) as caught:
        READERS[reader](name)
    assert str(caught.value).isprintable()


OPTIONS = (
    *("make fa-pool --ttft-slo -1", "make fa-pool --tpot-slo nan", "make fa-pool --ttft-slo inf", "make --max-gpus 0"),
    *("make --max-gpus 99999999999999999999", "compare fa-pool --per-category 0", "compare fa-pool --seed -1"),
    *(
        "run a.json --decode-tokens -1",
        "run a.json --repeats -1",
        "run a.json --time-limit nan",
        "run a.json --tokens 0",
    ),
    *("simulate a.json --tokens 99999999999999", "calibrate --budget nan", "calibrate --budget -1"),
    *("cluster import topo t.txt --gpu x --nodes -1", "cluster import topo t.txt --gpu x --nic-gbit-s nan"),
)


@pytest.mark.parametrize("command", OPTIONS)
def test_an_option_out_of_range_is_refused_by_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    option = next(word for word in command.split() if word.startswith("--") and word != "--gpu")
    assert f"argument {option}: must be" in capsys.readouterr().err
