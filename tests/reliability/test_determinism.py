"""The same inputs give the same bytes: plan, trace and results, in separate processes, under any PYTHONHASHSEED."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from simulator.formats.files import to_json
from tests.reliability.scale import FULL, ROOT, of, record
from tests.test_verify import problem

QUESTION = "--model model.json --cluster cluster.json --workload workload.json --profile a100-sxm4-80gb --max-gpus 2"
COMMANDS = (
    f"make {QUESTION} -o allocation.json --json",
    "simulate allocation.json --trace trace.json --json",
)
FULL_COMMANDS = (
    "simulate allocation.json --phase decode --json",
    "explain allocation.json",
    f"compare {QUESTION} --per-category 50 --seed 3 --json",
)
HASH_SEEDS = ("0", "1", "4711", "99", "random")


def answers(folder: Path, hash_seed: str, cores: str) -> dict[str, str]:
    """Digest of every command's stdout and of every file the commands wrote, from one process a command."""
    folder.mkdir()
    one = problem()
    for name, value in (("model", one.model), ("cluster", one.cluster), ("workload", one.workload)):
        (folder / f"{name}.json").write_text(to_json(value))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": cores}
    found = {}
    for command in (*COMMANDS, *(FULL_COMMANDS if FULL else ())):
        arguments = [sys.executable, "-m", "planner.cli", *command.split()]
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, timeout=600, check=True)
        found[command] = hashlib.sha256(done.stdout).hexdigest()
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    return found | files


def test_plan_trace_and_results_are_byte_identical_in_separate_processes(tmp_path: Path) -> None:
    """Two processes here, five for the report: each with another hash seed, the last with two BLAS threads."""
    seeds = HASH_SEEDS[: of(2, len(HASH_SEEDS))]
    runs = [answers(tmp_path / seed, seed, "2" if seed == seeds[-1] else "1") for seed in seeds]
    for name in runs[0]:
        assert len({run[name] for run in runs}) == 1, f"{name} differs between hash seeds {seeds}"
    record("determinism", processes=len(seeds) * len(COMMANDS + (FULL_COMMANDS if FULL else ())), outputs=len(runs[0]))
