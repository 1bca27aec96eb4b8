"""GenZ: a roofline for each operator and closed forms for collectives; efficiency 1 unless told otherwise."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from protocol import Case, answer

SYSTEMS = {"a100": "A100_80GB_GPU", "h100": "H100_GPU"}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
warnings.simplefilter("ignore")


def model_of(name: str) -> Any:
    """Its own record of the model, by the record (its name for 70B gives Llama 2), or the documents' model."""
    meta = import_module("GenZ.Models.Model_sets.meta")
    if name == "llama-3.1-8b":
        return meta.llama3_8b_config
    if name == "llama-3.1-70b":
        return meta.llama3_70b_config
    if name == "mixtral-8x7b":
        return import_module("GenZ").get_configs("mixtral_8x7b")
    return import_module("GenZ").ModelConfig(
        model="fa-pool", hidden_size=4096, num_attention_heads=32, num_key_value_heads=32, num_ffi=1,
        intermediate_size=16384, num_decoder_layers=4, vocab_size=32000, max_model_len=131072, hidden_act="gelu",
    )  # fmt: skip


def predict(case: Case) -> dict[str, float]:
    genz = import_module("GenZ")
    fixed = {
        "model": model_of(case["model"]), "system_name": SYSTEMS[case["gpu"]], "bits": "bf16",
        "tensor_parallel": case["tensor"], "input_tokens": case["tokens"],
        "parallelism_heirarchy": f"TP{{{case['tensor']}}}_EP{{1}}_PP{{1}}",
    }  # fmt: skip
    prefill = genz.prefill_moddeling(batch_size=1, **fixed)
    decode = genz.decode_moddeling(batch_size=case["batch"], output_tokens=1, Bb=1, **fixed)
    return {"ttft_s": float(prefill["Latency"]) / 1e3, "tpot_s": float(decode["Latency"]) / 1e3}


def search(question: Case) -> dict[str, Any]:
    """Its Pareto search over TP × PP and batches, for both phases; every plan is evaluated once a phase."""
    genz = import_module("GenZ")
    model = model_of(question["model"])
    layouts = genz.get_various_parallization(model=model, total_nodes=question["gpus"])
    plans = sum(int(pipeline) <= batch for batch in BATCHES for _, pipeline in layouts)
    best = {}
    for stage in ("prefill", "decode"):
        best[stage] = genz.get_pareto_optimal_performance(
            stage=stage, model=model, total_nodes=question["gpus"], batch_list=list(BATCHES),
            input_tokens=question["tokens"], output_tokens=question["output_tokens"],
            system_name=SYSTEMS[question["gpu"]], bits="bf16",
        ).sort_values("Latency(ms)").iloc[0]  # fmt: skip
    words = "; ".join(f"{stage}: TP{row['TP']:.0f} PP{row['PP']:.0f}" for stage, row in best.items())
    return {"plans": plans, "best": words, "objective": "lowest latency on its front of latency and tokens/s"}


answer("genz-llm", predict, search)
