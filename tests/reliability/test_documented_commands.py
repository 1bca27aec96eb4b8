"""No documented command can rot: every line of a ``console`` block and every ``python`` block of the docs is run, and
every command or option named in the text exists.

A command runs here unless it is listed: in SLOW (minutes, or many processes: run for the report) or in ELSEWHERE
(cannot run on any machine; the reason says what it needs). Blocks of a page share a folder with the files that the text
talks of; a ``yaml`` block that begins with a file's name is written to it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.cli import main as plan
from simulator.formats.files import to_json
from simulator.profile import load_profile
from tests.reliability.parsers import CONFIG, OPERATIONS, TOPO, TRACE, tensors
from tests.reliability.scale import FULL, ROOT, record

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LIMIT_S = 120.0
SLOW_LIMIT_S = 900.0
ELSEWHERE = {
    "make test": "it is what runs this",
    "make demo": "installs an environment of its own; its commands are run one by one below",
    "nvidia-smi topo -m > topo.txt": "needs NVIDIA's driver; the folder holds such a print-out",
    "plan calibrate --device cuda --budget 600 -o profile.json": "needs a CUDA GPU",
    "plan run local.json --on cuda --backend triton --graphs": "needs a CUDA GPU",
    "source .venv/bin/activate": "the commands are run by the environment that runs this",
    "plan app": "serves until it is stopped; tests/test_app_browser starts it and opens every page",
}
SLOW = (
    "plan make fa-pool",
    "plan make local ",
    "plan calibrate import aiconfigurator",
    "plan run ",
    "plan validate ",
    "plan paper",
    "plan compare",
    "plan sweep",
    "plan calibrate",
    "plan serve",
    "python -m benchmarks.",
    "python -m tests.reliability.report",
    "make validate",
)
PREPARED = {
    "README.md": (
        "mkdir -p out",
        "plan calibrate --device cpu --budget 12 -o out/local-profile.json",
        "plan make local --profile out/local-profile.json -o out/local-allocation.json",
        "plan run out/local-allocation.json --tokens 128 --decode-tokens 2 --repeats 1 -o out/measurement.json",
    ),
}


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Lines that begin with ``$``, without their comments, continued lines joined."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    return [re.sub(r"\s+#\s.*$", "", line[2:]).strip() for line in text.splitlines() if line.startswith("$ ")]


def in_the_text(page: Path) -> list[str]:
    """Commands and options between backticks, and lines of indented blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"`((?:plan |python -m |make |--)[^`\n]*)`", text)
    return found + re.findall(r"^    ((?:plan|python -m|make) [^#\n]*)", text, re.MULTILINE)


def is_slow(command: str) -> bool:
    return command.startswith(SLOW)


def cases(*, slow: bool) -> list[object]:
    """One case a page: its commands build on one another."""
    found = []
    for page in PAGES:
        chosen = [one for one in commands(page) if one not in ELSEWHERE and (slow or not is_slow(one))]
        if chosen or list(blocks(page, "python")):
            found.append(pytest.param(page, chosen, id=page.name))
    return found


def run(command: str, folder: Path, limit_s: float) -> None:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    began_s = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.fail(f"{command}: more than {limit_s:.0f} s; a slow command belongs into SLOW, with the report")
    assert done.returncode == 0, f"$ {command}\n{done.stderr[-1500:]}"
    record("documented commands", command=command, seconds=round(time.monotonic() - began_s, 1))


def written_out(page: Path, folder: Path) -> None:
    """The files that a page spells out."""
    for block in blocks(page, "yaml"):
        if named := re.match(r"# ([\w-]+\.yaml)$", block, re.MULTILINE):
            (folder / named[1]).write_text(block, encoding="utf-8")


def prepare(folder: Path) -> None:
    """The files that the pages talk of, and ``plan`` and ``python`` as an installed environment has them."""
    (folder / "bin").mkdir()
    for name, what in (("plan", "-m planner.cli "), ("python", "")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {what}"$@"\n')
        script.chmod(0o755)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "config.json").write_text(CONFIG)
    (folder / "config.json").write_text(CONFIG)
    (folder / "my-model").mkdir()
    (folder / "my-model" / "config.json").write_text(json.dumps(json.loads(CONFIG) | {"torch_dtype": "float32"}))
    (folder / "my-model" / "model.safetensors").write_bytes(tensors())
    (folder / "topo.txt").write_text(TOPO)
    later = (f"2023-11-16 18:16:{second:02}.0000000,{100 + second},9\n" for second in range(30))
    (folder / "trace.csv").write_text(TRACE + "".join(later))
    (folder / "operations.csv").write_text(OPERATIONS)
    (folder / "profile.json").write_text(to_json(load_profile("a100-sxm4-80gb")))
    for name in ("simulator", "benchmarks", "docs"):
        (folder / name).symlink_to(ROOT / name)


@pytest.mark.parametrize(("page", "chosen"), cases(slow=FULL))
def test_the_commands_and_programs_of_a_page_run(page: Path, chosen: list[str], tmp_path: Path) -> None:
    prepare(tmp_path)
    written_out(page, tmp_path)
    if FULL or page.name != "README.md":
        for command in PREPARED.get(page.name, ()):
            run(command, tmp_path, SLOW_LIMIT_S)
    for command in chosen:
        run(command, tmp_path, SLOW_LIMIT_S if FULL else LIMIT_S)
    for program in blocks(page, "python"):
        (tmp_path / "program.py").write_text(program)
        run("python program.py", tmp_path, LIMIT_S)


def test_commands_modules_and_options_named_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    def help_of(*words: str) -> str:
        with pytest.raises(SystemExit):
            plan([*words, "--help"])
        return capsys.readouterr().out

    listed = re.findall(r"^    (\w+)(?: |$)", help_of(), re.MULTILINE)
    helps = {name: help_of(name) for name in listed}
    helps["calibrate"] += "".join(help_of("calibrate", action) for action in ("import", "update", "holdout"))
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [(page.name, command) for page in PAGES for command in in_the_text(page)]
    assert len(named) >= 60
    for page, command in named:
        words = command.split()
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[0] == "plan":
            assert words[1] in helps, f"{page}: `{command}`: no such command"
            assert options <= set(re.findall(r"--[\w-]+", helps[words[1]])), f"{page}: `{command}`: no such option"
        elif words[0] == "make":
            assert words[1] in targets, f"{page}: `{command}`: no such target"
        elif words[0] == "python":
            assert importlib.util.find_spec(words[2]), f"{page}: `{command}`: no such module"
        else:
            assert options <= set(re.findall(r"--[\w-]+", "".join(helps.values()))), (
                f"{page}: `{command}`: of no command"
            )


def test_commands_are_found_and_none_is_listed_in_vain() -> None:
    found = [command for page in PAGES for command in commands(page)]
    assert len(found) >= 15
    assert not [one for one in ELSEWHERE if one not in found], "listed, but no page has it any more"
    assert any(not is_slow(one) and one not in ELSEWHERE for one in found)
