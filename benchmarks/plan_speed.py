"""Cold ``plan make``: wall and CPU seconds, peak memory, candidates, simulations and gaps of every question.

Run: python -m benchmarks.plan_speed [--only NAME ...] [--output benchmarks/results/plan_speed.json]

Every question is a process of its own, imports included (of modules that a run before has compiled): the documents'
two scenarios, and Llama 3.1 70B on 1,024 and 4,096 H100s (DGX nodes; one length bucket of 8,192 tokens, prefill batch
8, decode batch 64). CPU seconds are all processes', the peak the largest process's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from simulator import presets
from simulator.formats.files import to_json, write_atomically

WORKLOAD = {
    "name": "one-bucket",
    "buckets": [{"name": "all", "min_tokens": 1, "tokens": 8192, "share": 1.0, "output_tokens": 128}],
    "prefill_batch": 8,
    "decode_batch": 64,
}
NODE_GPUS = 8
Row = dict[str, float | int | str]


def questions(folder: Path) -> dict[str, list[str]]:
    """Arguments of ``plan make`` by name; files they need are written to ``folder``."""
    workload = folder / "workload.yaml"
    workload.write_text(yaml.safe_dump(WORKLOAD))
    found = {"fa-pool": ["fa-pool"], "ma-separation": ["ma-separation"]}
    for gpus in (1024, 4096):
        cluster = presets.cluster("dgx-h100-16")
        node = cluster.nodes[0].model_copy(update={"count": gpus // NODE_GPUS})
        file = folder / f"h100-{gpus}.json"
        file.write_text(to_json(cluster.model_copy(update={"name": f"h100-{gpus}", "nodes": (node,)})))
        parts = {"model": "llama-3.1-70b", "cluster": str(file), "workload": str(workload), "profile": "h100-sxm"}
        found[f"70B on {gpus} GPUs"] = [word for name, value in parts.items() for word in (f"--{name}", value)]
    return found


def measure(name: str, arguments: list[str], folder: Path, environment: dict[str, str]) -> Row:
    """One ``plan make`` in a fresh process."""
    output = folder / "allocation.json"
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "planner.cli", "make", *arguments, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    wall_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    row: Row = {
        "question": name,
        "exit": done.returncode,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_memory_mib": after.ru_maxrss // 1024,
    }
    if done.returncode:
        return row | {"error": done.stderr.strip()[-300:]}
    searches = [choice["search"] for choice in json.loads(output.read_text())["policy"]]
    candidates = sum(search["candidates"] for search in searches)
    return row | {
        "candidates": candidates,
        "candidates_per_s": round(candidates / wall_s),
        "simulated": sum(search["simulated"] for search in searches),
        "largest_gap": max(search["gap"] for search in searches),
    }


def compiled(folder: Path) -> dict[str, str]:
    """An environment in which Python finds every module compiled: a run before has left them in ``folder``."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    measure("once before", ["fa-pool"], folder, environment)
    return environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of questions, e.g. fa-pool")
    parser.add_argument("--output", type=Path, help="write JSON there")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = compiled(Path(folder))
        for name, arguments in questions(Path(folder)).items():
            if options.only is None or name in options.only:
                rows.append(measure(name, arguments, Path(folder), environment))
                print(rows[-1])
    about = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine()}
    if options.output is not None:
        write_atomically(options.output, json.dumps({"environment": about, "tag": "measured", "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
