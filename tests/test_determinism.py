"""Whatever the hash seed: the same programs, times, traces and served requests, byte for byte."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from planner.documents.placements import context_parallel, fa_pool, ma_separation, static, two_level
from simulator import presets
from simulator.lowering import lower
from simulator.placement import Placement
from simulator.profile import load_profile
from simulator.serving.batch import Batching
from simulator.serving.pool_policy import DOCUMENTS_RULE, PoolRules
from simulator.serving.queue import serve
from simulator.serving.sampling import sample_trials
from simulator.simulation.chrome_trace import chrome_trace
from simulator.simulation.engine import simulate
from simulator.workload import Phase, prefill_step

SCRIPT = "from tests.test_determinism import digest; print(digest())"


def placements() -> list[tuple[str, str, Placement]]:
    """(model, cluster, placement)."""
    dense, routed, sliced = (presets.model(name) for name in ("fa-pool", "ma-separation", "two-level"))
    return [
        ("fa-pool", "dgx-a100-5", static(dense, 8, 2, micro_batches=2)),
        ("fa-pool", "dgx-a100-5", fa_pool(dense, 8, micro_batches=2)),
        ("fa-pool", "dgx-a100-5", context_parallel(dense)),
        ("ma-separation", "a100-4x4", ma_separation(routed)),
        ("ma-separation", "a100-4x4", ma_separation(routed, exit="all_to_all")),
        ("two-level", "a100-4x4", two_level(sliced)),
    ]


def steps(phase: Phase, batch: int, tokens: int, pool_gpus: int) -> float:
    return batch * tokens * (1e-5 if phase == "prefill" else 1e-7) / (1 + pool_gpus / 8)


def digest() -> str:
    """Of every program and its trace, and of three groups that share a pool under the documents' rule."""
    found, profile = hashlib.sha256(), load_profile("a100-sxm4-80gb")
    for name, cluster_name, placement in placements():
        machine = presets.cluster(cluster_name)
        nodes = tuple(node for node, _, _ in machine.rank_nodes())
        built = lower(presets.model(name), prefill_step(4, 1024), placement, nodes=nodes)
        timeline = simulate(built, machine, {profile.gpu.name: profile}, record_load=True)
        found.update(repr(built.ranks).encode())
        found.update(chrome_trace(timeline, machine).encode())
    (sample,) = sample_trials(presets.workload("fa-pool"), np.random.default_rng(3), per_category=25, num_trials=1)
    rules = PoolRules(num_groups=3, pool_gpus=32, prefill=DOCUMENTS_RULE, hold_s=0.5, activation_s=0.01)
    served = serve(sample.requests, steps, Batching(base_gpus=8, prefill_batch=4), rules)
    for array in (served.prefill_ps, served.first_token_ps, served.finish_ps, served.group):
        found.update(array.tobytes())
    found.update(repr(served.changes).encode())
    return found.hexdigest()


def test_every_result_is_byte_identical_under_any_hash_seed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == digest()  # pytest's own seed is random or another
