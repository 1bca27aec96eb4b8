"""python -m benchmarks.cpu_holdout [SECONDS]

Calibrates this machine's CPU as ``plan calibrate --device cpu`` does, then times the executor's operations at shapes
drawn at random between the calibrated ones, in a world started anew, and says how wrong the profile was. Rows and
medians by class go to benchmarks/results/cpu_holdout.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from calibration.sweep import CPU_HEADS, CPU_MAX_FLOP, CPU_RANKS, MEMORY_KINDS, calibrate_cpu, cpu_kernels, cpu_profile
from executor.supervisor import Supervisor
from executor.timing import time_kernels
from simulator.costs.columns import class_of
from simulator.costs.cost import predict
from simulator.formats.files import write_atomically
from simulator.kernel import AttentionDecode, AttentionPrefill, ComputeKernel, Gemm, Memory, Moe, flops

RESULT = Path(__file__).parent / "results" / "cpu_holdout.json"
BUDGET_S, HELD_OUT, SEED = 60.0, 100, 20
DTYPE = "fp32"


def held_out(rng: np.random.Generator) -> Iterator[ComputeKernel]:
    """Shapes between the calibrated ones, class after class, without end."""

    def between(low: float, high: float) -> int:
        return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))

    while True:
        heads, kv_heads, head_dim = CPU_HEADS[int(rng.integers(len(CPU_HEADS)))]
        queries = between(32, 1024)
        yield Gemm(between(1, 2048), between(64, 2048), between(128, 1024), DTYPE)
        yield AttentionPrefill(
            between(1, 2), queries, queries * between(1, 4), heads, kv_heads, head_dim, True, 0, DTYPE
        )
        yield AttentionDecode(between(1, 8), between(64, 4096), heads, kv_heads, head_dim, 0, DTYPE)
        yield Moe(between(2, 512), 256, 256 * int(rng.integers(1, 3)), 2, 8, 1, 2 ** int(rng.integers(0, 3)),
                  "balanced", True, DTYPE)  # fmt: skip
        yield Memory(MEMORY_KINDS[int(rng.integers(len(MEMORY_KINDS)))], between(2**12, 2**23))


def main(budget_s: float = BUDGET_S) -> None:
    profile = cpu_profile(calibrate_cpu(budget_s))
    timed, seen = [], set(cpu_kernels(DTYPE))
    for kernel in held_out(np.random.default_rng(SEED)):
        if kernel not in seen and flops(kernel) <= CPU_MAX_FLOP:
            seen.add(kernel)
            timed.append(kernel)
        if len(timed) == HELD_OUT:
            break
    with Supervisor(CPU_RANKS, timeout_s=120.0) as world:
        seconds = np.array(world.run(time_kernels, tuple(timed), DTYPE, 3600.0)[0])
    prediction = predict(timed, profile)
    errors = 100.0 * np.abs(prediction.seconds / seconds - 1.0)
    covered = (prediction.p05_s <= seconds) & (seconds <= prediction.p95_s)
    classes = np.array([class_of(kernel) for kernel in timed])
    found = {
        name: {
            "rows": int(mask.sum()),
            "median_percent": round(float(np.median(errors[mask])), 1),
            "p90_percent": round(float(np.quantile(errors[mask], 0.9)), 1),
            "covered_percent": round(100.0 * float(covered[mask].mean()), 1),
        }
        for name, mask in {
            "all": np.ones(len(timed), dtype=bool),
            **{n: classes == n for n in dict.fromkeys(classes)},
        }.items()
    }
    rows = [
        {"kernel": type(kernel).__name__, **asdict(kernel), "measured_s": measured, "predicted_s": predicted}
        for kernel, measured, predicted in zip(timed, seconds.tolist(), prediction.seconds.tolist(), strict=True)
    ]
    write_atomically(
        RESULT,
        json.dumps({"device": profile.gpu.source, "budget_s": budget_s, "errors": found, "rows": rows}, indent=1),
    )
    for name, numbers in found.items():
        print(f"{name:18}", *(f"{key} {value}" for key, value in numbers.items()))


if __name__ == "__main__":
    main(*(float(value) for value in sys.argv[1:2]))
