"""Planning: a page's plan is ``plan make``'s, run as a process of its own: it can be stopped, and the JSON is that of
the command, byte for byte."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from app.nearby import stamp
from app.question import canonical_command
from app.stopping import may_go_on, stoppable
from simulator.allocation import Allocation
from simulator.errors import SpecError
from simulator.formats.files import load

KEPT: OrderedDict[tuple[object, ...], str] = OrderedDict()
"""JSON by command and age of its files, for the life of the process; the oldest go first."""
MOST_KEPT = 64
POLL_S = 0.1
ROOT = Path(__file__).resolve().parent.parent
Tick = Callable[[float], None]


def run_plan(command: str, tick: Tick) -> str:
    """The JSON that ``command`` writes. ``tick`` (seconds so far) may raise to stop it. SpecError with its message."""
    words = shlex.split(command)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "allocation.json"
        line = [sys.executable, "-m", "planner.cli", *words[1:], "-o", str(target)]
        found = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "env": {**os.environ, "PYTHONPATH": found}}
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, **quiet) as child:  # type: ignore[call-overload]
            try:
                begun = time.monotonic()
                while child.poll() is None:
                    tick(time.monotonic() - begun)
                    time.sleep(POLL_S)
            except BaseException:
                child.kill()
                raise
            said = child.stderr.read()
        if child.returncode:
            raise SpecError(_last_line(said))
        return target.read_text(encoding="utf-8")


def _last_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("plan: ")]
    return lines[-1].removeprefix("plan: ") if lines else "planning failed; run the command to see why"


def allocation_json(words: tuple[str, ...]) -> str | None:
    """The plan's JSON: kept, or made now behind a progress line; None while stopped by the user."""
    command = canonical_command(words)
    key = command, stamp(words)
    if key in KEPT:
        KEPT.move_to_end(key)
        return KEPT[key]
    stopped = f"stopped.{command}"
    if not may_go_on(stopped, words="Planning was stopped.", button="Plan again", key=f"again.{command}"):
        return None
    with stoppable(stopped, "Planning …") as bar:
        text = run_plan(command, lambda seconds: _tick(bar, seconds))
    KEPT[key] = text
    while len(KEPT) > MOST_KEPT:
        KEPT.popitem(last=False)
    return text


def _tick(bar: st.delta_generator.DeltaGenerator, seconds: float) -> None:
    """Creeps towards the end: how many simulations a proof needs is not known beforehand."""
    bar.progress(1 - 1 / (1 + seconds / 6), f"Planning: enumerate, bound, simulate what may win … {seconds:.0f} s")


@st.cache_resource(max_entries=64, show_spinner=False)
def parsed(text: str) -> Allocation:
    """The plan as a record."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "allocation.json"
        path.write_text(text, encoding="utf-8")
        return load(path, Allocation)
