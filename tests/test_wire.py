"""Wire: what the supervisor and its workers tell each other comes out as it went in, and a frame can run nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.generate import generate
from executor.progress import State
from executor.wire import WireError, decode, encode
from executor.worker import Failure
from simulator.placement import AttentionGrid
from tests.executor_world import generation_of
from tests.schemes import pooled, tiny_model

SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUE = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(SCALAR, inner, max_size=4)
        | st.builds(Failure, st.text(max_size=4), st.text(max_size=4), st.booleans())
    ),
    max_leaves=20,
)


def shape_of(value: Any) -> Any:
    """The value with the type of every part, so that 1, 1.0 and True differ."""
    match value:
        case list() | tuple():
            return type(value), [shape_of(one) for one in value]
        case dict():
            return dict, [(shape_of(key), shape_of(one)) for key, one in value.items()]
        case Failure():
            return Failure, [shape_of(getattr(value, field.name)) for field in dataclasses.fields(value)]
        case float():
            return float, value, math.copysign(1.0, value)
    return type(value), value


@given(VALUE)
def test_a_value_comes_back_with_the_same_types(value: object) -> None:
    assert shape_of(decode(encode(value))) == shape_of(value)


def test_a_generation_comes_back_equal_and_repeated_operations_travel_once() -> None:
    model = tiny_model(layers=4)
    generation = generation_of(model, pooled(model, 2, AttentionGrid(heads=(8,))), world=3)
    again = dataclasses.replace(generation, programs=generation.programs * 10)
    assert decode(encode(again)) == again
    assert len(encode(again)) < 1.1 * len(encode(generation))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_a_tensor_keeps_its_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (torch.arange(6, dtype=torch.float32)[: math.prod(shape)].reshape(shape) / 3).to(dtype)
    found = decode(encode([value]))[0]
    assert found.dtype == dtype
    assert found.shape == value.shape
    assert torch.equal(found, value)


def test_functions_states_and_paths_come_back() -> None:
    sent = (generate, State.WAITING, Path("a/b"))
    assert decode(encode(sent)) == sent


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, json.dumps, lambda: None, b"bytes", json.JSONDecoder()])
def test_what_does_not_travel_is_refused_by_name(value: object) -> None:
    with pytest.raises(WireError, match="does not travel"):
        encode([value])


@pytest.mark.parametrize(
    "node",
    [
        ["function", "os:system"],
        ["function", "builtins:eval"],
        ["dataclass", "subprocess:Popen", "true"],
        ["function", "executor.worker:os"],
        ["function", "executor.worker:Failure"],
        ["dataclass", "executor.wire:encode", 1],
        ["record", "executor.worker:Failure", "{}"],
        ["enum", "executor.worker:Failure", 1],
        ["dataclass", "executor.worker:Failure", 1],
        ["pickle", "x"],
        ["tuple", "", [7]],
    ],
)
def test_a_frame_that_names_anything_else_is_refused(node: list[object]) -> None:
    with pytest.raises(WireError):
        decode(json.dumps({"table": [node], "value": [0]}).encode())
