"""Candidates bounded a second: over a million distinct placements of one real question, by as many processes as cores.

Run: python -m benchmarks.bound_speed [--output benchmarks/results/bound_speed.json]

The question: Llama 3.1 70B decoding 64 sequences of 8,192 tokens on 4,096 H100s. "roofline" is the bound that every
candidate of a search gets, "calibrated" the tighter one by predicted kernels, "thin" the first one at this scale (it
looks at one query block of a pool). Enumerating them is timed beside. ``cpu_s`` is all processes'.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from planner.bounds.bound import chunked_bound
from planner.bounds.rates import Array, Rates, make_rates
from planner.processes import process_pool
from planner.space import Question, Table, enumerate_space
from simulator import presets
from simulator.formats.files import write_atomically
from simulator.profile import load_profile

NODES, TOKENS, BATCH = 512, 8192, 64
TASKS = 8  # a core
WORK: list[Work] = []  # set before the processes fork


@dataclass(frozen=True)
class Work:
    """What every process has by fork. The last share, two-level grids of hundreds of sizes, takes longest: first."""

    question: Question
    table: Table
    tasks: int
    rates: dict[str, Rates]

    def bound(self, name: str, task: int) -> Array:
        return chunked_bound(self.question, np.array_split(self.table, self.tasks)[-1 - task], self.rates[name])


def question_of(nodes: int) -> tuple[Question, Rates]:
    cluster = presets.cluster("dgx-h100-16")
    cluster = cluster.model_copy(update={"nodes": (cluster.nodes[0].model_copy(update={"count": nodes}),)})
    profile = load_profile("h100-sxm")
    rates = make_rates(cluster, {profile.gpu.name: profile}, "bf16")
    return Question(presets.model("llama-3.1-70b"), cluster, "decode", TOKENS, BATCH, cluster.num_ranks), rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write JSON there")
    options = parser.parse_args()
    question, rates = question_of(NODES)
    began_s, cores = time.monotonic(), os.cpu_count() or 1
    table = enumerate_space(question)
    enumerate_s, distinct = time.monotonic() - began_s, len(np.unique(table))
    prices = {"thin": rates.as_thin(), "roofline": rates.as_roofline(), "calibrated": rates}
    WORK.append(Work(question, table, TASKS * cores, prices))
    rows = [{"enumerated": len(table), "distinct": distinct, "wall_s": round(enumerate_s, 2)}]
    print(rows[0], flush=True)
    for name in prices:
        rows.append({"bound": name, **measure(name, cores)})
        print(rows[-1], flush=True)
    about = {"python": platform.python_version(), "cores": cores, "machine": platform.machine()}
    if options.output is not None:
        write_atomically(options.output, json.dumps({"environment": about, "tag": "measured", "rows": rows}, indent=2))


def measure(name: str, cores: int) -> dict[str, float]:
    """Wall and CPU seconds of all candidates' bounds, forks included."""
    work = WORK[0]
    began_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with process_pool(cores, start="fork") as pool:
        bounds = np.concatenate(list(pool.map(partial(share, name), range(work.tasks))))
    wall_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(bounds) == len(work.table)
    assert (bounds > 0).all()
    return {
        "candidates": len(bounds),
        "wall_s": round(wall_s, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "candidates_per_s": round(len(bounds) / wall_s),
        "peak_memory_mib_a_process": after.ru_maxrss // 1024,
    }


def share(name: str, task: int) -> Array:
    return WORK[0].bound(name, task)


if __name__ == "__main__":
    main()
