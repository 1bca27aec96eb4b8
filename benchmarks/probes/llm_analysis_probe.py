"""llm-analysis: FLOPs and bytes over peak rates times one efficiency each; no search, so TP × PP × batch in a loop."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from protocol import Case, answer

GPUS = {"a100": "a100-sxm-80gb", "h100": "h100-sxm-80gb"}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
FLOPS_EFFICIENCY, MEMORY_EFFICIENCY = 0.6, 0.7
"""It has no default for the first; its own documentation shows benchmarks nearer to 0.6 – 0.7 for the second."""
# (layers, heads, KV heads, hidden, two-matrix intermediate of equal weights: 1.5 × for a gated one, vocabulary)
SHAPES = {
    "llama-3.1-8b": (32, 32, 8, 4096, 21504, 128256),
    "llama-3.1-70b": (80, 64, 8, 8192, 43008, 128256),
    "fa-pool": (4, 32, 32, 4096, 16384, 32000),
}
logging.disable(logging.CRITICAL)


def analysis(model: str, gpu: str, tensor: int, pipeline: int) -> Any:
    config, tool = import_module("llm_analysis.config"), import_module("llm_analysis.analysis")
    layers, heads, kv_heads, hidden, intermediate, vocabulary = SHAPES[model]
    shape = config.ModelConfig(
        name=model, num_layers=layers, n_head=heads, hidden_dim=hidden, vocab_size=vocabulary,
        num_key_value_heads=kv_heads, ffn_embed_dim=intermediate, expansion_ratio=intermediate / hidden,
    )  # fmt: skip
    layout = config.ParallelismConfig(tp_size=tensor, pp_size=pipeline, sp_size=tensor, dp_size=1)
    return tool.LLMAnalysis(
        shape, config.get_gpu_config_by_name(GPUS[gpu]), config.get_dtype_config_by_name("w16a16e16"), layout,
        flops_efficiency=FLOPS_EFFICIENCY, hbm_memory_efficiency=MEMORY_EFFICIENCY,
    )  # fmt: skip


def predict(case: Case) -> dict[str, float]:
    tool = analysis(case["model"], case["gpu"], case["tensor"], 1)
    prefill = tool.inference(batch_size_per_gpu=1, seq_len=case["tokens"], num_tokens_to_generate=1)
    decode = tool.inference(batch_size_per_gpu=case["batch"], seq_len=case["tokens"], num_tokens_to_generate=1)
    return {"ttft_s": prefill["prefill_latency"], "tpot_s": decode["decode_latency"]}


def search(question: Case) -> dict[str, Any]:
    best, plans = (float("inf"), ""), 0
    for tensor in (1, 2, 4, 8):
        for pipeline in (1, 2, 4, 8, 16):
            if tensor * pipeline > question["gpus"]:
                continue
            tool = analysis(question["model"], question["gpu"], tensor, pipeline)
            for batch in BATCHES:
                plans += 1
                try:
                    found = tool.inference(
                        batch_size_per_gpu=batch, seq_len=question["tokens"],
                        num_tokens_to_generate=question["output_tokens"],
                    )  # fmt: skip
                except AssertionError:  # does not fit
                    continue
                best = min(best, (found["prefill_latency"], f"TP{tensor} PP{pipeline}"))
    return {"plans": plans, "best": f"prefill: {best[1]}", "objective": "shortest prefill of this script's own loop"}


answer("llm-analysis", predict, search)
