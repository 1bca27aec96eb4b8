"""The reliability table: ``python -m tests.reliability.report [--only ROW …]`` runs the rows' tests and writes it.

Every row runs its tests in a process of its own with ``ATTNPLAN_RELIABILITY=full`` (fuzzing alone takes eleven
minutes; all rows half an hour on two quiet cores), keeps what they counted in ``benchmarks/results/reliability.json``
and writes ``docs/reliability.md`` from that file. ``--only`` renews some rows and leaves the others as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executor.environment import cpu_name, usable_cores
from simulator.formats.files import write_atomically
from tests.reliability.rows import ROWS, Row
from tests.reliability.scale import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
HEAD = """# Reliability

Made by `python -m tests.reliability.report`, which runs every row's tests at their full counts, from
`benchmarks/results/reliability.json`; `make test` runs the same tests at smaller ones. Machine: {machine}.

| | what holds | tests | figure |
|---|---|---|---|
"""
EXCEPTIONS = """
## Exceptions, which are not defects

* Monotonicity: a learned GEMM time may dip where the measured kernel's tiles fill better; links are shared max-min
  fairly, so that a slower link can end a step of contending messages earlier by a little (counted above); a plan under
  a limit on simulations may be worse with more GPUs, an exact one not.
* Conservation: projections of a KV head that several ranks hold, and the router, are computed by each of them; a
  two-level grid that gathers Q and K computes the scores once a slice.
* Unpickling: worker processes forked by the planner get their results by Python's own pipes, and the ranks of one
  torchrun job gather their spans as objects. Both read only what this program wrote, and are listed with that reason in
  `tests/reliability/test_no_pickle.py`; a module not listed there fails. Supervisor and ranks speak JSON
  (`executor/wire.py`), files are JSON, YAML, CSV and safetensors.
* A killed writer leaves a hidden temporary file, which the next write of the same file sweeps after ten minutes.
* Rank failure: the limits (5 s; a timeout of 2 s + 5 s) are of a machine that is not busy: a rank
  that gets no core for two seconds is taken for hung.

## A new user's way

Tried with the README and docs alone, from `git clone` on a machine with Python 3.11, two cores, other work on both:
`make demo` (install and demo) 4 min 19 s, a cluster file of one's own (2 × 8 H100) and a trace of one's own another
minute, then `plan make` of Mixtral 8x7B 29 s, Qwen2.5-7B 25 s, Llama 3.1 70B 51 s, each from its Hugging Face
`config.json`: the first plan after 5 min 55 s, all three after 7 min 11 s. What made the user stumble and was mended:
`plan` not on the path, a trace where a workload was asked for, no whole cluster file in the docs, names of placements
nowhere explained, a profile of another GPU taken in silence, a model repository's name taken for a path, GPUs without
a profile and dtypes without rows refused without a remedy.
"""


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--only", nargs="*", default=[], help=f"rows: {', '.join(row.name for row in ROWS)}")
    options.add_argument("--page-only", action="store_true", help="write the page from the results there are")
    arguments = options.parse_args()
    chosen = [] if arguments.page_only else [row for row in ROWS if row.name in (arguments.only or [row.name])]
    for row in chosen:
        print(f"{row.name} …", flush=True)
        found = measured(row)
        write_atomically(RESULTS, json.dumps(kept() | {row.name: found}, indent=1) + "\n")
        print(f"  {cell(row, found)}", flush=True)
    results = kept()
    write_atomically(PAGE, page(results))
    return 1 if any(one["failed"] for one in results.values()) else 0


def kept() -> dict[str, Any]:
    """The results there are, read again each time: rows may be run side by side."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return found


def measured(row: Row) -> dict[str, Any]:
    """Counts and figures of a row's tests, run now in full."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attnplan-reliability-") as folder:
        figures = Path(folder) / "figures.jsonl"
        environment = {**os.environ, "ATTNPLAN_RELIABILITY": "full", "ATTNPLAN_FIGURES": str(figures)}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-show-statistics", "-rfE"]
        done = subprocess.run(
            [*command, *row.tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        found = [json.loads(line) for line in figures.read_text().splitlines()] if figures.exists() else []
    counts = {
        word: sum(int(n) for n in re.findall(rf"(\d+) {word}", done.stdout.splitlines()[-1]))
        for word in ("passed", "failed", "skipped", "error")
    }
    return {
        "passed": counts["passed"],
        "failed": counts["failed"] + counts["error"] + (done.returncode not in (0, 1)),
        "skipped": counts["skipped"],
        "examples": sum(int(n) for n in re.findall(r"(\d+) passing", done.stdout)),
        "seconds": round(time.monotonic() - began_s, 1),
        "machine": f"{cpu_name()}, {usable_cores()} cores",
        "figures": [{key: value for key, value in one.items() if key != "row"} for one in found],
        "complaints": [line[:300] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))][:5],
    }


def cell(row: Row, found: dict[str, Any]) -> str:
    """What the table shows of a row's result."""
    if found["failed"]:
        return f"**{found['failed']} failed**: {'; '.join(found['complaints'])}"
    text = row.figure(found["figures"])
    counts = f"{found['passed']} tests"
    counts += f", {found['examples']:,} random examples" if found["examples"] else ""
    counts += f", {found['skipped']} skipped" if found["skipped"] else ""
    return f"{text}; {counts}" if text else counts


def page(results: dict[str, Any]) -> str:
    machines = sorted({one["machine"] for one in results.values()})
    lines = []
    for number, row in enumerate(ROWS, 1):
        shown = cell(row, results[row.name]) if row.name in results else "not run"
        lines.append(f"| {number} {row.name} | {row.holds} | {tests_of(row.tests)} | {shown} |\n")
    return HEAD.format(machine="; ".join(machines) or "none") + "".join(lines) + EXCEPTIONS


def tests_of(tests: Sequence[str]) -> str:
    """Files, each once: the names of single tests are in ``tests/reliability/rows.py``."""
    files = dict.fromkeys(test.split("::")[0].removeprefix("tests/").removesuffix(".py") for test in tests)
    return ", ".join(f"`{name}`" for name in files)


if __name__ == "__main__":
    sys.exit(main())
