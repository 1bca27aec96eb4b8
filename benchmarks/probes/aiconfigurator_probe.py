"""aiconfigurator: measured operator tables summed over a model; vLLM's tables, static batches, one worker."""

from __future__ import annotations

import logging
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from protocol import Case, answer

MODELS = {
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
    "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1_config.json",
}
"""By name; a file of its own where its names would be looked up on the network."""
SYSTEMS = {"a100": "a100_sxm", "h100": "h100_sxm"}
PLAN = ("tp", "pp", "dp", "bs", "ctx_tokens", "parallel", "workers")
NO_LIMIT_MS = 1e6
logging.disable(logging.CRITICAL)


def model_of(name: str) -> str:
    """A name, or a folder with the config.json that it ships."""
    if name not in MODELS:
        raise ValueError("it does not know this model")
    if not MODELS[name].endswith(".json"):
        return MODELS[name]
    folder = Path(tempfile.mkdtemp())
    shipped = Path(str(import_module("aiconfigurator_core").__file__)).parent / "model_configs" / MODELS[name]
    shutil.copy(shipped, folder / "config.json")
    return str(folder)


def predict(case: Case) -> dict[str, float]:
    estimate = import_module("aiconfigurator.cli.api").cli_estimate
    model = model_of(case["model"])
    fixed: dict[str, Any] = {"backend_name": "vllm", "isl": case["tokens"], "osl": 2, "tp_size": case["tensor"]}
    if case["model"] == "mixtral-8x7b":
        fixed |= {"moe_tp_size": case["tensor"], "moe_ep_size": 1}
    prefill = estimate(model, SYSTEMS[case["gpu"]], mode="static_ctx", batch_size=1, **fixed)
    decode = estimate(model, SYSTEMS[case["gpu"]], mode="static_gen", batch_size=case["batch"], **fixed)
    return {"ttft_s": prefill.ttft / 1e3, "tpot_s": decode.tpot / 1e3}


def search(question: Case) -> dict[str, Any]:
    """The public sweep, aggregated and disaggregated, with latency limits that exclude nothing."""
    task, frames = import_module("aiconfigurator.sdk.task_v2").Task, []
    whole = task.run

    def run(self: Any, **options: Any) -> Any:
        frames.append(whole(self, **options))
        return frames[-1]

    task.run = run
    found = import_module("aiconfigurator.cli.api").cli_default(
        model_of(question["model"]),
        question["gpus"],
        SYSTEMS[question["gpu"]],
        backend="vllm",
        isl=question["tokens"],
        osl=question["output_tokens"],
        ttft=NO_LIMIT_MS,
        tpot=NO_LIMIT_MS,
    )
    plans = 0
    for frame in frames:
        columns = [name for name in frame.columns if name.rpartition(")")[2] in PLAN]
        plans += len(frame[columns].drop_duplicates())
    best = found.best_configs[found.chosen_exp].iloc[0]
    names = [name for name in ("parallel", "(p)parallel", "(p)workers", "(d)parallel", "(d)workers") if name in best]
    words = ", ".join(f"{name} {best[name]}" for name in names)
    return {"plans": plans, "best": f"{found.chosen_exp}: {words}", "objective": "most tokens/s a GPU"}


answer("aiconfigurator", predict, search)
