"""Candidates bounded a second: over a million distinct placements of one real question, by as many processes as cores.

Run: python -m benchmarks.bound_speed [--output benchmarks/results/bound_speed.json]

The question: Llama 3.1 70B decoding 64 sequences of 8,192 tokens on 4,096 H100s. "roofline" is the bound that every
candidate of a search gets, "calibrated" the tighter one by predicted kernels. Enumerating them is timed beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
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


def bound(question: Question, rates: Rates, table: Table) -> Array:
    return chunked_bound(question, table, rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write JSON there")
    options = parser.parse_args()
    cluster = presets.cluster("dgx-h100-16")
    cluster = cluster.model_copy(update={"nodes": (cluster.nodes[0].model_copy(update={"count": NODES}),)})
    question = Question(presets.model("llama-3.1-70b"), cluster, "decode", TOKENS, BATCH, cluster.num_ranks)
    profile = load_profile("h100-sxm")
    rates = make_rates(cluster, {profile.gpu.name: profile}, "bf16")
    began_s, cores = time.monotonic(), os.cpu_count() or 1
    table = enumerate_space(question)
    enumerate_s, distinct = time.monotonic() - began_s, len(np.unique(table))
    rows = []
    for name, prices in (("roofline", rates.as_roofline()), ("calibrated", rates)):
        began_s = time.monotonic()
        with process_pool(cores, start="fork") as pool:
            bounds = np.concatenate(list(pool.map(partial(bound, question, prices), np.array_split(table, 8 * cores))))
        wall_s = time.monotonic() - began_s
        assert (bounds > 0).all()
        row = {"bound": name, "candidates": len(table), "distinct": distinct, "wall_s": round(wall_s, 2)}
        rows.append(row | {"candidates_per_s": round(len(table) / wall_s), "enumerate_s": round(enumerate_s, 2)})
        print(rows[-1], flush=True)
    about = {"python": platform.python_version(), "cores": cores, "machine": platform.machine()}
    if options.output is not None:
        write_atomically(options.output, json.dumps({"environment": about, "tag": "measured", "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
