"""Profile files: what they refuse, and how fast they load."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.errors import ProfileError, SpecError
from simulator.formats.files import parse, to_json, validate
from simulator.profile import PRESETS, Profile, load_profile, preset_names
from simulator.residual import decode_floats, encode_floats

LOAD_LIMIT_S = 0.05


def a100() -> dict[str, Any]:
    value = parse(PRESETS / "a100-sxm4-80gb.json")
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("name", ["a100-sxm4-80gb", "h100-sxm", "h200-sxm"])
def test_shipped_profiles_load_within_50_ms_and_are_under_a_megabyte(name: str) -> None:
    load_profile(name)
    durations = []
    for _ in range(5):
        start = time.process_time()
        load_profile(name)
        durations.append(time.process_time() - start)
    assert min(durations) < LOAD_LIMIT_S
    assert (PRESETS / f"{name}.json").stat().st_size < 2**20


def test_shipped_profiles_say_where_they_come_from_and_how_to_rebuild_them() -> None:
    for name in preset_names():
        profile = load_profile(name)
        assert profile.provenance[0].licence == "Apache-2.0"
        assert profile.provenance[0].rebuilt_with.endswith(name)
        assert all(model.provenance.num_rows > 1000 for model in profile.kernels)
        assert {curve.kind for curve in profile.collectives} == {
            "all_reduce",
            "all_gather",
            "reduce_scatter",
            "all_to_all",
        }


def test_a_profile_survives_writing_and_reading(tmp_path: Path) -> None:
    profile = load_profile("a100-sxm4-80gb")
    path = tmp_path / "copy.json"
    path.write_text(to_json(profile), encoding="utf-8")
    assert load_profile(path) == profile


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"unknown 'h10'; known: a100-sxm4-80gb, h100-sxm, h200-sxm"):
        load_profile("h10")


def test_truncated_weights_are_refused_with_their_place() -> None:
    value = a100()
    layer = value["kernels"][0]["residual"]["networks"][0][0]
    layer["weights_base64"] = encode_floats(decode_floats(layer["weights_base64"])[:-1])
    with pytest.raises(SpecError, match=r"p\.json: kernels\[0\]\.residual.*weights_base64 does not hold"):
        validate(value, Profile, source="p.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("gpu", "num_sms"), 0, "greater than 0"),
        (("schema_version",), 2, "this attnplan reads version 1, got 2; make the file anew"),
        (("kernels", 0, "compute_flop_per_s"), -1.0, "greater than 0"),
        (("kernels", 0, "intervals", "low"), [0.0], "one entry more than edges_s"),
        (("collectives", 0, "bytes", 0), -4.0, "must be positive and increase"),
        (("collectives", 0, "seconds", 0), 0.0, "seconds must be positive"),
        (("memory", 0, "surprise"), 1, "surprise: unknown key; remove it"),
    ],
)
def test_a_wrong_value_is_refused_by_name(path: tuple[str | int, ...], value: object, message: str) -> None:
    document: Any = a100()
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(SpecError, match=message):
        validate(document, Profile, source="p.json")


def test_a_class_appears_once_a_dtype() -> None:
    document = a100()
    document["kernels"].append(document["kernels"][0])
    with pytest.raises(SpecError, match="kernels: an entry appears twice"):
        validate(document, Profile, source="p.json")


def test_a_missing_class_is_named_with_a_remedy() -> None:
    profile = load_profile("a100-sxm4-80gb").model_copy(update={"kernels": ()})
    with pytest.raises(ProfileError, match=r"no 'gemm' measurements \(it has: none\); .*plan calibrate"):
        profile.model("gemm", "bf16")


def test_floats_survive_base64() -> None:
    values = np.array([1.5, -2.25, 3e-8], dtype=np.float32)
    assert np.array_equal(decode_floats(encode_floats(values)), values)
