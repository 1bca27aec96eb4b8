"""Hugging Face configs: real files import with their known size, or name the feature that is not modelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import presets
from simulator.errors import SpecError
from simulator.formats import hf_config
from simulator.model import Layer
from simulator.rope_scaling import RopeScaling
from tests.shared_data import refusal, shared, shared_files

BILLION = 10**9
PARAMETERS = {  # published totals (model cards); norms, a ten-thousandth, are not counted here
    "meta-llama--Meta-Llama-3.1-8B": 8.030,
    "meta-llama--Meta-Llama-3.1-70B": 70.554,
    "nvidia--Llama-3.1-70B-Instruct-FP8": 70.554,
    "meta-llama--Meta-Llama-3.1-405B": 405.853,
    "mistralai--Mixtral-8x7B-v0.1": 46.703,
    "mistral-nemo-instruct-2407": 12.248,
    "llama-2-7b-hf": 6.738,
    "yi-34b": 34.389,
    "qwen2.5-7b-instruct": 7.616,
    "Qwen--Qwen3-0.6B": 0.596,
    "Qwen--Qwen3-8B": 8.191,
    "Qwen--Qwen3-VL-8B-Instruct": 8.191,  # the text part
    "Qwen--Qwen3-32B": 32.762,
    "Qwen--Qwen3-30B-A3B": 30.532,
    "Qwen--Qwen3-30B-A3B-FP8": 30.532,
    "Qwen--Qwen3-235B-A22B": 235.094,
    "microsoft--Phi-3-mini-4k-instruct": 3.821,
    "MiniMaxAI--MiniMax-M2.5": 228.7,
    # 2 x 151680 x 4096 + 36 x (2 x 4096 x 128 x (32 + 8) + 3 x 4096 x 11008), without its prediction module
    "XiaomiMiMo--MiMo-7B-Base": 7.622,
}
REFUSED = {
    "deepseek-ai--DeepSeek-V3": "multi-head latent attention",
    "zai-org--GLM-5": "DeepSeek sparse attention",
    "google--gemma-2-2b": "attention logit softcapping",
    "openai--gpt-oss-120b": "attention sinks",
    "openai-community--gpt2": "learned position embeddings and LayerNorm",
    "meta-llama--Llama-4-Scout-17B-16E-Instruct": "chunked attention",
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


def imported(**changes: Any) -> Any:
    return hf_config.from_config(LLAMA | changes, source="config.json", name="m")


@pytest.mark.parametrize("name", shared_files("hf-configs", ".json"))
def test_a_real_config_has_its_published_size_or_names_what_is_not_modelled(name: str) -> None:
    path, stem = shared("hf-configs") / name, name.removesuffix("_config.json")
    assert (stem in PARAMETERS) != (stem in REFUSED), f"{stem}: state its size or the reason for refusing it"
    if stem in REFUSED:
        with pytest.raises(SpecError, match=REFUSED[stem]) as caught:
            presets.model(str(path))
        assert str(caught.value).startswith(f"{path}: not modelled: ")
        assert "\n" not in str(caught.value)
    else:
        model = presets.model(str(path))
        assert model.name == stem
        assert model.num_parameters() == pytest.approx(PARAMETERS[stem] * BILLION, rel=0.005)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b"])
def test_the_preset_equals_the_published_config(name: str) -> None:
    files = {
        "llama-3.1-8b": "meta-llama--Meta-Llama-3.1-8B",
        "llama-3.1-70b": "meta-llama--Meta-Llama-3.1-70B",
        "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1",
    }
    published = presets.model(str(shared("hf-configs") / f"{files[name]}_config.json"))
    assert presets.model(name) == published.model_copy(update={"name": name})


def test_llama_3_1_8b_has_8_03_billion_parameters() -> None:
    # 32 x (2 x 4096 x 128 x (32 + 8) + 3 x 4096 x 14336) + 2 x 128256 x 4096 = 8,029,995,008
    assert presets.model("llama-3.1-8b").num_parameters() == 8_029_995_008


def test_head_dim_defaults_to_hidden_over_heads_and_an_explicit_one_wins() -> None:
    assert imported().head_dim == 8
    assert imported(head_dim=16).head_dim == 16


def test_a_missing_head_dim_that_does_not_divide_is_refused() -> None:
    with pytest.raises(SpecError, match="head_dim: missing, and hidden_size 60 / 8 heads is not whole"):
        imported(hidden_size=60)


def test_llama_without_kv_heads_has_one_a_head_and_mistral_must_say() -> None:
    plain = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert hf_config.from_config(plain, source="c", name="m").num_key_value_heads == 8
    with pytest.raises(SpecError, match="c: num_key_value_heads: missing"):
        hf_config.from_config(plain | {"model_type": "mistral"}, source="c", name="m")


def windows(**changes: Any) -> list[int]:
    return [layer.window for layer in imported(**changes).layers]


def test_mistral_slides_in_every_layer() -> None:
    assert windows(model_type="mistral", sliding_window=32) == [32, 32, 32, 32]


def test_use_sliding_window_false_ignores_the_window() -> None:
    assert windows(model_type="qwen2", sliding_window=32, use_sliding_window=False) == [0, 0, 0, 0]
    assert windows(model_type="qwen2", sliding_window=32) == [0, 0, 0, 0]  # the class default is false


def test_qwen_slides_from_max_window_layers_on() -> None:
    found = windows(model_type="qwen2", sliding_window=32, use_sliding_window=True, max_window_layers=3)
    assert found == [0, 0, 0, 32]


def test_layer_types_decide_layer_by_layer() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(model_type="mistral", sliding_window=32, layer_types=kinds) == [32, 0, 32, 0]
    with pytest.raises(SpecError, match=r"layer_types\[1\]: not modelled: 'linear_attention'"):
        windows(layer_types=["full_attention", "linear_attention"] * 2)
    with pytest.raises(SpecError, match="layer_types: 1 entries for num_hidden_layers 4"):
        windows(layer_types=["full_attention"])
    with pytest.raises(SpecError, match="sliding_window: missing"):
        windows(layer_types=kinds)


def routed(**changes: Any) -> list[int]:
    """The numbers of the routed layers."""
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 32} | changes
    return [index for index, layer in enumerate(imported(**moe).layers) if layer.routed]


def test_decoder_sparse_step_and_mlp_only_layers_place_the_experts() -> None:
    assert routed(model_type="qwen3_moe", num_experts=8, decoder_sparse_step=1) == [0, 1, 2, 3]
    assert routed(model_type="qwen3_moe", num_experts=8, decoder_sparse_step=2) == [1, 3]
    assert routed(model_type="qwen3_moe", num_experts=8, mlp_only_layers=[0, 2]) == [1, 3]


def test_first_k_dense_replace_and_moe_layer_freq_place_the_experts() -> None:
    assert routed(model_type="deepseek", n_routed_experts=8, first_k_dense_replace=1) == [1, 2, 3]
    assert routed(model_type="deepseek", n_routed_experts=8, moe_layer_freq=2) == [0, 2]


def test_interleave_moe_layer_step_places_the_experts() -> None:
    assert routed(num_local_experts=8, interleave_moe_layer_step=2) == [1, 3]


def test_shared_experts_count_once_each() -> None:
    deepseek = imported(
        model_type="deepseek", n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=2, moe_intermediate_size=32
    )
    assert deepseek.experts.shared_intermediate_size == 64
    qwen = imported(
        model_type="qwen2_moe",
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
    )
    assert qwen.experts.shared_intermediate_size == 48


def test_mixtral_experts_take_the_dense_width() -> None:
    model = imported(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)
    assert model.experts.intermediate_size == 128
    assert all(layer == Layer(routed=True) for layer in model.layers)


def test_fp8_quantization_gives_fp8_weights_and_four_bit_ones_are_refused() -> None:
    assert imported(quantization_config={"quant_method": "fp8"}).weight_dtype == "fp8"
    with pytest.raises(SpecError, match="not modelled: gptq weights"):
        imported(quantization_config={"quant_method": "gptq"})


def test_biases_and_norms_follow_the_family() -> None:
    assert imported(model_type="qwen2").qkv_bias
    assert not imported().qkv_bias
    assert imported(model_type="qwen3").qk_norm
    with pytest.raises(SpecError, match="a bias on the attention output"):
        imported(attention_bias=True)
    with pytest.raises(SpecError, match="biases in the feed-forward"):
        imported(mlp_bias=True)


def test_a_vision_wrapper_gives_its_text_part() -> None:
    wrapper = {
        "model_type": "qwen3_vl",
        "text_config": LLAMA | {"model_type": "qwen3_vl_text"},
        "tie_word_embeddings": True,
    }
    model = hf_config.from_config(wrapper, source="c", name="m")
    assert model.tie_word_embeddings
    assert model.assumptions == ("the text part of qwen3_vl; the vision tower is left out",)


def test_what_does_not_change_shapes_is_imported_and_said() -> None:
    model = imported(rope_scaling={"rope_type": "yarn", "factor": 8.0}, num_nextn_predict_layers=1)
    assert model.assumptions == (
        "rotary scaling 'yarn' changes angles only and is not applied",
        "multi-token prediction modules are left out",
    )


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="model_type: unknown 'falcon'; known: deepseek, glm4_moe, llama"):
        imported(model_type="falcon")


def test_a_folder_names_its_config(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    path = tmp_path / "my-model" / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert presets.model(str(path)).name == "my-model"


def test_model_optimizer_says_fp8_beside_the_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert presets.model(str(path)).weight_dtype == "fp8"
    beside.write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    with pytest.raises(SpecError, match="quant_algo: not modelled: 'NVFP4'"):
        presets.model(str(path))


OTHER_KEYS = [
    *("head_dim", "sliding_window", "use_sliding_window", "layer_types", "max_window_layers", "text_config"),
    *("num_experts", "num_experts_per_tok", "first_k_dense_replace", "mlp_only_layers", "moe_layer_freq"),
    *("rope_scaling", "rope_theta", "rms_norm_eps", "quantization_config", "tie_word_embeddings", "dtype"),
    *("use_qk_norm", "attention_bias", "kv_lora_rank", "decoder_sparse_step", "n_shared_experts"),
]
JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
)


@given(st.dictionaries(st.sampled_from([*LLAMA, *OTHER_KEYS]), JUNK, max_size=4))
def test_any_junk_in_a_config_imports_or_is_refused(changes: dict[str, Any]) -> None:
    message = refusal(lambda: imported(**changes))
    assert message is None or message.startswith("config.json: ")


def test_llama_3_rotary_scaling_is_imported_whole_or_refused_by_the_missing_number() -> None:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = imported(rope_scaling={"rope_type": "llama3", **numbers})
    assert model.rope_scaling == RopeScaling(kind="llama3", **numbers)
    assert not model.assumptions
    with pytest.raises(SpecError, match="rope_scaling: 'llama3' without high_freq_factor"):
        imported(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0})
    with pytest.raises(SpecError, match="high_freq_factor 1 is not above low_freq_factor 1"):
        imported(rope_scaling={"rope_type": "llama3", **numbers, "high_freq_factor": 1.0})
