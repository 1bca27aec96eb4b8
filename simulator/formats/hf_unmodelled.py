"""The features of Hugging Face configs that attnplan does not model, by name.

A feature is here if it changes shapes, what attends to what, or what is computed around the attention;
importing such a model as if it were plain would be a guess.

Source: the modelling files of transformers 4.44–4.57.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNMODELLED_TYPES = {
    "gpt2": "learned position embeddings and LayerNorm",
    "gpt_oss": "attention sinks",
    "gemma": "norms with a unit offset and scaled embeddings",
    "gemma2": "norms after each block and scaled embeddings",
    "gemma3_text": "norms after each block and scaled embeddings",
    "llama4_text": "layers without rotary positions",
    "mamba": "Mamba state-space layers",
    "mamba2": "Mamba state-space layers",
    "jamba": "Mamba state-space layers",
    "rwkv": "linear attention",
    "qwen3_next": "linear attention (gated delta net)",
}
UNMODELLED_KEYS = {
    "kv_lora_rank": "multi-head latent attention",
    "index_topk": "DeepSeek sparse attention",
    "attn_logit_softcapping": "attention logit softcapping",
    "attention_chunk_size": "chunked attention",
    "linear_num_key_heads": "linear attention",
    "full_attention_interval": "linear attention",
    "mamba_d_state": "Mamba state-space layers",
    "ssm_state_size": "Mamba state-space layers",
    "cross_attention_layers": "cross-attention layers",
    "is_encoder_decoder": "an encoder beside the decoder",
    "num_kv_shared_layers": "layers that share one KV cache",
    "alibi": "ALiBi positions",
    "parallel_attn": "attention and feed-forward in parallel",
    "use_parallel_residual": "attention and feed-forward in parallel",
    "mlp_bias": "biases in the feed-forward",
}
NO_OUTPUT_BIAS = ("llama", "mistral", "qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text")
"""Where ``attention_bias`` would put a bias on the output projection too, which Model lacks."""


def unmodelled(values: Mapping[str, Any], kind: str) -> list[str]:
    """Every feature of a config of model_type ``kind`` that is not modelled, with the key that says so."""
    found = [f"{name} ({key} {_shown(values[key])})" for key, name in UNMODELLED_KEYS.items() if values.get(key)]
    if kind in UNMODELLED_TYPES:
        found.append(f"{UNMODELLED_TYPES[kind]} (model_type {kind})")
    if values.get("attention_bias") and kind in NO_OUTPUT_BIAS:
        found.append("a bias on the attention output (attention_bias true)")
    quantization = values.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if quantization and method != "fp8":
        found.append(f"{_shown(method)} weights (quantization_config)")
    return found


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
