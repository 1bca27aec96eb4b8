"""Model: parameter counts by hand, and what contradicts itself is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator import presets
from simulator.formats.files import load, to_json, write_atomically
from simulator.model import Experts, Layer, Model


def model_of(**changes: object) -> Model:
    fields: dict[str, object] = {
        "name": "m",
        "hidden_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 3,
        "intermediate_size": 16,
        "layers": (Layer(),),
        "vocab_size": 10,
    }
    return Model.model_validate(fields | changes)


def test_the_documents_dense_model_has_805_million_parameters_and_not_13_billion() -> None:
    # 4 layers x (4 x 4096^2 attention + 2 x 4096 x 16384 feed-forward) = 4 x 201,326,592
    assert presets.model("fa-pool").layer_parameters() == 805_306_368


def test_the_documents_model_keeps_64_kib_of_kv_cache_a_token() -> None:
    # K and V x 32 heads x 128 x 2 bytes x 4 layers
    assert presets.model("fa-pool").kv_bytes_per_token() == 2 * 32 * 128 * 2 * 4 == 64 * 2**10


def test_attention_parameters_count_grouped_heads_and_a_free_head_dim() -> None:
    # Q 8x12, O 12x8, K 8x6, V 8x6
    assert model_of().attention_parameters() == 96 + 96 + 48 + 48


def test_a_gate_adds_a_third_feed_forward_matrix() -> None:
    assert model_of(gated=True).feed_forward_parameters(Layer()) == 3 * 8 * 16
    assert model_of(gated=False).feed_forward_parameters(Layer()) == 2 * 8 * 16


def test_a_routed_layer_counts_every_expert_the_shared_one_and_the_router() -> None:
    experts = Experts(num_experts=4, top_k=2, intermediate_size=5, shared_intermediate_size=7)
    model = model_of(experts=experts, layers=(Layer(), Layer(routed=True)))
    # 3 matrices x 8 x (4 x 5 + 7) + router 8 x 4
    assert model.feed_forward_parameters(model.layers[1]) == 3 * 8 * 27 + 32


def test_tied_embeddings_count_once() -> None:
    assert model_of().embedding_parameters() == 2 * 80
    assert model_of(tie_word_embeddings=True).embedding_parameters() == 80


def test_fp8_weights_keep_a_two_byte_cache() -> None:
    assert model_of(weight_dtype="fp8").kv_bytes_per_token() == 2 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"layers": (Layer(routed=True),)}, "a layer is routed but experts is missing"),
        ({"layers": ()}, "at least 1 item"),
        ({"experts": {"num_experts": 2, "top_k": 3, "intermediate_size": 1}}, "top_k 3 exceeds num_experts 2"),
        ({"hidden_size": 0}, "greater than or equal to 1"),
        ({"name": "../up"}, "pattern"),
        ({"name": ".hidden"}, "pattern"),
        ({"rope_theta": float("inf")}, "finite"),
    ],
)
def test_a_contradiction_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model_of(**changes)


def test_a_model_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        model_of().hidden_size = 9  # type: ignore[misc]


LAYERS = st.lists(st.builds(Layer, window=st.sampled_from([0, 128]), routed=st.booleans()), min_size=1, max_size=6)


@given(LAYERS, st.integers(1, 64), st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_any_model_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, layers: list[Layer], hidden: int, groups: int, kv_heads: int, gated: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "model.json"
    model = model_of(
        layers=tuple(layers),
        hidden_size=hidden,
        num_attention_heads=groups * kv_heads,
        num_key_value_heads=kv_heads,
        gated=gated,
        experts=Experts(num_experts=4, top_k=2, intermediate_size=16),
    )
    write_atomically(path, to_json(model))
    assert load(path, Model) == model


def test_every_preset_model_survives_its_file(tmp_path: Path) -> None:
    for name in presets.names("models"):
        path = tmp_path / f"{name}.json"
        write_atomically(path, to_json(presets.model(name)))
        assert presets.model(str(path)) == presets.model(name)
