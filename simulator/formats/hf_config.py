"""Hugging Face ``config.json`` → Model.

What it imports: the Llama family (Llama, Mistral, Mixtral, Qwen2/3 and their mixtures of experts, Phi-3,
MiMo, MiniMax-M2, DeepSeek-MoE, GLM-4-MoE) and the text part of vision wrappers. What would change shapes or
the attention itself and is not modelled is refused by name (``hf_unmodelled``). What leaves shapes and cost
alone (rotary scaling, sigmoid routing) is imported and listed in ``Model.assumptions``.
Source: the modelling files of transformers 4.44–4.57 for each model_type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import SpecError
from simulator.formats.files import parse, validate
from simulator.formats.hf_unmodelled import unmodelled
from simulator.model import Model

QWEN2_FAMILY = ("qwen2", "qwen2_moe", "qwen2_vl_text", "qwen2_5_vl_text")  # a bias on Q, K and V only
QWEN3_FAMILY = ("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text")  # RMSNorm on each head of Q and K
OPTIONAL_WINDOW = (*QWEN2_FAMILY, *QWEN3_FAMILY, "mimo")  # windowed only where use_sliding_window says so
KV_HEADS_DEFAULT_TO_HEADS = (
    "llama",
    "phi3",
    "deepseek",
)  # elsewhere the class default is a number: be explicit
PLAIN_FAMILY = ("llama", "mistral", "mixtral", "phi3", "mimo", "minimax_m2", "deepseek", "glm4_moe")
KNOWN = (*PLAIN_FAMILY, *QWEN2_FAMILY, *QWEN3_FAMILY)

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
}
REMEDY = (
    "choose a model without it, or describe a near one in attnplan's own format (`plan schema model`, docs/formats.md)"
)


def is_config(value: Any) -> bool:
    """Whether a parsed file is Hugging Face's and not attnplan's own model format."""
    return isinstance(value, Mapping) and ("model_type" in value or "architectures" in value)


def load(path: Path) -> Model:
    """The model a ``config.json`` describes; SpecError names a feature that is not modelled."""
    value = parse(path)
    if not is_config(value):
        raise SpecError(f"{path}: model_type: missing; name a Hugging Face config.json or an attnplan model file")
    stem = path.stem.removesuffix("_config")
    model = from_config(value, source=str(path), name=stem if stem != "config" else path.resolve().parent.name)
    quantized = path.parent / "hf_quant_config.json"
    if quantized.exists() and path.stem == "config":
        return _with_model_optimizer(model, parse(quantized), str(quantized))
    return model


def from_config(value: Mapping[str, Any], *, source: str, name: str) -> Model:
    """The model in a parsed config; a vision wrapper's text part where there is one."""
    config = _Config(_text_part(value, source), source)
    if features := unmodelled(config.values, config.kind):
        raise SpecError(f"{source}: not modelled: {' and '.join(features)}; {REMEDY}")
    if config.kind not in KNOWN:
        raise SpecError(f"{source}: model_type: unknown {config.kind!r}; known: {', '.join(sorted(KNOWN))}; {REMEDY}")
    return validate(_fields(config, name), Model, source=source)


def _text_part(value: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    text = value.get("text_config")
    if text is None:
        return value
    if not isinstance(text, Mapping):
        raise SpecError(f"{source}: text_config: not a mapping")
    inherited = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config")
    outer = {key: value[key] for key in inherited if key in value}
    return {**outer, **text, "text_part_of": value.get("model_type")}


@dataclass(frozen=True, slots=True)
class _Config:
    """A config with typed access; every refusal names the key."""

    values: Mapping[str, Any]
    source: str

    @property
    def kind(self) -> str:
        kind = self.values.get("model_type")
        if not isinstance(kind, str):
            raise SpecError(f"{self.source}: model_type: missing; add it")
        return kind

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            shown = "missing; add it" if value is None else f"not a whole number, got {str(value)[:60]!r}"
            raise SpecError(f"{self.source}: {key}: {shown}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise SpecError(f"{self.source}: {key}: neither true nor false, got {str(value)[:60]!r}")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise SpecError(f"{self.source}: {key}: not a mapping, got {str(value)[:60]!r}")
        return value

    def items(self, key: str) -> list[Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            raise SpecError(f"{self.source}: {key}: not a list, got {str(value)[:60]!r}")
        return value or []


def _fields(config: _Config, name: str) -> dict[str, Any]:
    """The fields of Model."""
    heads = config.whole("num_attention_heads")
    experts = _experts(config)
    dense = config.whole("intermediate_size")
    theta = config.values.get("rope_theta", config.mapping("rope_parameters").get("rope_theta", 10000.0))
    return {
        "name": name,
        "hidden_size": config.whole("hidden_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.whole(
            "num_key_value_heads", heads if config.kind in KV_HEADS_DEFAULT_TO_HEADS else None
        ),
        "head_dim": _head_dim(config, heads),
        "intermediate_size": dense,
        "layers": _layers(config, routed=experts is not None),
        "experts": experts,
        "vocab_size": config.whole("vocab_size"),
        "max_position_embeddings": config.whole("max_position_embeddings", 2048),
        "hidden_act": _named(config, "hidden_act", ACTIVATIONS, "silu"),
        "gated": True,
        "qkv_bias": config.kind in QWEN2_FAMILY or config.flag("attention_bias"),
        "qk_norm": config.kind in QWEN3_FAMILY or config.flag("use_qk_norm"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(config),
        "rms_norm_eps": config.values.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": config.flag("tie_word_embeddings"),
        "weight_dtype": _weight_dtype(config),
        "assumptions": _assumptions(config),
        "source": f"Hugging Face config.json of model_type {config.kind}",
    }


SCALINGS = ("linear", "llama3")


def _rope_kind(config: _Config) -> tuple[str, dict[str, Any]]:
    """(kind, its numbers) of rotary scaling, under the names that files have used for them."""
    scaling = {**config.mapping("rope_scaling"), **config.mapping("rope_parameters")}
    return str(scaling.get("rope_type", scaling.get("type", "default")))[:60], scaling


def _rope_scaling(config: _Config) -> dict[str, Any] | None:
    """Fields of RopeScaling, where the kind is modelled."""
    kind, scaling = _rope_kind(config)
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind not in SCALINGS:
        return None
    used = names[:1] if kind == "linear" else names
    missing = [name for name in used if name not in scaling]
    if missing:
        raise SpecError(f"{config.source}: rope_scaling: {kind!r} without {missing[0]}; add it")
    return {"kind": kind, **{name: scaling[name] for name in used}}


def _head_dim(config: _Config, heads: int) -> int:
    if config.values.get("head_dim") is not None:
        return config.whole("head_dim")
    hidden = config.whole("hidden_size")
    if not heads or hidden % heads:
        raise SpecError(f"{config.source}: head_dim: missing, and hidden_size {hidden} / {heads} heads is not whole")
    return hidden // heads


def _named(config: _Config, key: str, known: Mapping[str, str], default: str) -> str:
    value = config.values.get(key) or default
    if not isinstance(value, str) or value not in known:
        raise SpecError(f"{config.source}: {key}: not modelled: {str(value)[:60]!r}; known: {', '.join(known)}")
    return known[value]


def _weight_dtype(config: _Config) -> str:
    if config.mapping("quantization_config").get("quant_method") == "fp8":
        return "fp8"
    key = "torch_dtype" if config.values.get("torch_dtype") is not None else "dtype"
    return _named(config, key, DTYPES, "bfloat16")


def _experts(config: _Config) -> dict[str, Any] | None:
    """Each family's names for the same four numbers."""
    keys = ("num_local_experts", "num_experts", "n_routed_experts")
    key = next((key for key in keys if config.values.get(key)), None)
    if key is None:
        return None
    width = config.whole("moe_intermediate_size", config.whole("intermediate_size"))
    shared = config.whole("shared_expert_intermediate_size", 0) or config.whole("shared_intermediate_size", 0)
    return {
        "num_experts": config.whole(key),
        "top_k": config.whole("num_experts_per_tok"),
        "intermediate_size": width,
        "shared_intermediate_size": shared or config.whole("n_shared_experts", 0) * width,
    }


def _layers(config: _Config, *, routed: bool) -> list[dict[str, Any]]:
    """Every layer's attention window and feed-forward kind."""
    count = config.whole("num_hidden_layers")
    if not 1 <= count <= 10_000:
        raise SpecError(f"{config.source}: num_hidden_layers: {count} is not between 1 and 10000")
    windows = _windows(config, count)
    return [{"window": windows[i], "routed": routed and _is_routed(config, i)} for i in range(count)]


def _is_routed(config: _Config, index: int) -> bool:
    """DeepSeek: dense first k, then every freq-th. Qwen: every step-th but the listed."""
    for key in ("decoder_sparse_step", "interleave_moe_layer_step"):
        if (index + 1) % max(config.whole(key, 1), 1):
            return False
    if index in config.items("mlp_only_layers") or index < config.whole("first_k_dense_replace", 0):
        return False
    return index % max(config.whole("moe_layer_freq", 1), 1) == 0


def _windows(config: _Config, count: int) -> list[int]:
    """0 (full) or sliding_window, layer by layer."""
    window = config.whole("sliding_window", 0)
    if not config.flag("use_sliding_window", default=config.kind not in OPTIONAL_WINDOW):
        window = 0
    kinds = config.items("layer_types")
    if kinds:
        return _windows_by_kind(config, kinds, count, window)
    first = config.whole("max_window_layers", 0) if config.kind in OPTIONAL_WINDOW else 0
    return [window if index >= first else 0 for index in range(count)]


def _windows_by_kind(config: _Config, kinds: list[Any], count: int, window: int) -> list[int]:
    if len(kinds) != count:
        raise SpecError(f"{config.source}: layer_types: {len(kinds)} entries for num_hidden_layers {count}")
    sizes = {"full_attention": 0, "sliding_attention": window}
    for index, kind in enumerate(kinds):
        if not isinstance(kind, str) or kind not in sizes:
            raise SpecError(f"{config.source}: layer_types[{index}]: not modelled: {str(kind)[:60]!r}; {REMEDY}")
        if kind == "sliding_attention" and not window:
            raise SpecError(f"{config.source}: sliding_window: missing, though layer_types[{index}] slides; add it")
    return [sizes[kind] for kind in kinds]


def _assumptions(config: _Config) -> list[str]:
    """What the file says, leaves shapes and cost alone, and is not modelled."""
    values = config.values
    kind, _ = _rope_kind(config)
    partial = values.get("rotary_dim") or values.get("partial_rotary_factor")
    extra = values.get("num_nextn_predict_layers") or values.get("use_mtp")
    quantized = values.get("quantization_config")
    no_dtype = values.get("torch_dtype") is None and values.get("dtype") is None and not quantized
    notes = (
        (
            values.get("text_part_of"),
            f"the text part of {values.get('text_part_of')}; the vision tower is left out",
        ),
        (
            kind not in ("default", *SCALINGS),
            f"rotary scaling {kind!r} changes angles only and is not applied",
        ),
        (partial, f"rotary positions on part of each head ({partial}) are modelled on all of it"),
        (extra, "multi-token prediction modules are left out"),
        (values.get("scoring_func") == "sigmoid", "sigmoid expert scores are modelled as a softmax"),
        (
            values.get("qk_norm_type") == "per_layer",
            "the norm over all of Q and of K is modelled head by head",
        ),
        (
            values.get("hidden_act") in ("gelu_new", "gelu_pytorch_tanh"),
            "tanh GELU is modelled as exact GELU",
        ),
        (quantized, "embeddings and gates, which stay bf16 in the file, are counted as fp8"),
        (no_dtype, "bf16 weights; the file names no torch_dtype"),
    )
    return [text for holds, text in notes if holds]


def _with_model_optimizer(model: Model, value: Any, source: str) -> Model:
    """NVIDIA Model Optimizer keeps the weights' format in a file beside ``config.json``."""
    quantization = value.get("quantization") if isinstance(value, Mapping) else None
    algorithm = quantization.get("quant_algo") if isinstance(quantization, Mapping) else None
    if algorithm != "FP8":
        raise SpecError(f"{source}: quantization.quant_algo: not modelled: {str(algorithm)[:60]!r}; known: FP8")
    return model.model_copy(update={"weight_dtype": "fp8"})
