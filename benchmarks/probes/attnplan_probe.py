"""attnplan: a static tensor-parallel placement simulated, and the search of ``plan make``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from protocol import Case, answer, sizes_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PACKAGES = ("simulator", "executor", "calibration", "planner", "app")
NOT_FOR_PLANNING = ("torch", "safetensors", "scikit-learn", "streamlit")
"""Required by the project; ``plan make`` imports none of them."""
CLUSTERS = {"a100": "dgx-a100-5", "h100": "dgx-h100-16"}
PROFILES = {"a100": "a100-sxm4-80gb", "h100": "h100-sxm"}


def predict(case: Case) -> dict[str, float]:
    import numpy as np

    from planner.question import Question
    from planner.space import ROW, Scheme, placement_of, row
    from simulator import presets, profile
    from simulator.lowering import lower
    from simulator.simulation.engine import simulate

    model, cluster = presets.model(case["model"]), presets.cluster(CLUSTERS[case["gpu"]])
    kinds = {cluster.gpus[0].name: profile.load_profile(PROFILES[case["gpu"]])}
    found = {}
    for name, phase, batch in (("ttft_s", "prefill", 1), ("tpot_s", "decode", case["batch"])):
        question = Question(model, cluster, phase, case["tokens"], batch, case["tensor"])  # type: ignore[arg-type]
        columns = np.array([row(Scheme.STATIC, tensor=case["tensor"], heads=case["tensor"])], dtype=ROW)
        program = lower(model, question.step, placement_of(question, columns[0]), nodes=question.nodes, dtype="bf16")
        found[name] = simulate(program, cluster, kinds).duration_s
    return found


def search(question: Case) -> dict[str, Any]:
    from planner.make import make_problem
    from planner.problem import load_problem
    from simulator.scenario import Scenario
    from simulator.workload import Bucket, Workload

    scenario = Scenario(
        name="peers", model=question["model"], cluster=CLUSTERS[question["gpu"]], workload="local",
        profile=PROFILES[question["gpu"]], objective="ttft", max_gpus=question["gpus"],
    )  # fmt: skip
    bucket = Bucket(
        name="all", min_tokens=1, tokens=question["tokens"], share=1.0, output_tokens=question["output_tokens"]
    )
    work = Workload(
        name="peers", buckets=(bucket,), prefill_batch=1, decode_batch=question["batch"], source="the peers' question"
    )
    problem = load_problem(scenario)
    found = make_problem(type(problem)(**{**problem.__dict__, "workload": work}))
    return {
        "plans": sum(choice.search.candidates for choice in found.policy),
        "simulated": sum(choice.search.simulated for choice in found.policy),
        "gap": max(choice.search.gap for choice in found.policy),
        "best": "; ".join(f"{choice.phase}: {choice.placement.name}" for choice in found.policy),
        "objective": "shortest TTFT and TPOT",
    }


def about() -> dict[str, Any]:
    """From the checkout: it is run in place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w-]", text)[0] for text in project["dependencies"]]
    own = sum(path.stat().st_size for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix != ".pyc")
    sizes = sizes_of(names)
    planning = sizes_of([name for name in names if name not in NOT_FOR_PLANNING])
    return {
        "version": project["version"],
        "bytes": sum(sizes.values()) + own,
        "packages": len(sizes) + 1,
        "planning_bytes": sum(planning.values()) + own,
    }


answer(about, predict, search)
