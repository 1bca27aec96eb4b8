"""Files: hostile input is refused quickly in one line, and a killed writer leaves no half file."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster import Cluster
from simulator.errors import SpecError
from simulator.formats.files import Record, load, parse, to_json, validate, write_atomically
from simulator.formats.parsing import parse_json, parse_yaml
from simulator.presets import FOLDER
from tests import hostile
from tests.reliability.scale import record
from tests.shared_data import refusal

MAX_REFUSAL_S = 1.0
MAX_MEMORY_BYTES = 200 * 10**6
ROOT = Path(__file__).parents[1]


class Pair(Record):
    count: int
    rate: float = 1.0
    parts: tuple[int, ...] = ()


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    """[file, seconds, kind, message, peak bytes] of every hostile file, parsed in one fresh process."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write_all(folder)
    command = [sys.executable, "-m", "tests.hostile", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_hostile_file_is_refused_in_one_line_that_names_it(refusals: list[list[object]]) -> None:
    assert len(refusals) == len(hostile.CASES)
    for name, _, kind, message, _ in refusals:
        assert kind == "SpecError", (name, kind, message)
        assert str(name) in str(message), message
        assert "\n" not in str(message)
        assert len(str(message)) < 600, message


def test_every_hostile_file_is_refused_within_a_second(refusals: list[list[object]]) -> None:
    slow = {name: seconds for name, seconds, *_ in refusals if float(str(seconds)) > MAX_REFUSAL_S}
    assert not slow


def test_refusing_every_hostile_file_takes_at_most_200_megabytes(refusals: list[list[object]]) -> None:
    peaks = {str(name): int(str(peak)) for name, *_, peak in refusals}
    slowest = max(float(str(seconds)) for _, seconds, *_ in refusals)
    record("hostile", files=len(peaks), slowest_s=round(slowest, 2), peak_megabytes=max(peaks.values()) // 10**6)
    assert max(peaks.values()) <= MAX_MEMORY_BYTES, max(peaks, key=lambda name: peaks[name])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 312e12", 312e12),  # YAML 1.1 would give the string "312e12"
        ("a: 1.5e-6", 1.5e-6),
        ("a: 007", 7),
        ("a: -3", -3),
        ("a: no", "no"),  # YAML 1.1 would give False
        ("a: 12:4", "12:4"),  # YAML 1.1 would give 724
        ("a: 2024-01-01", "2024-01-01"),  # YAML 1.1 would give a date
        ("a: '8'", "8"),
        ("a: ~", None),
        ("a: true", True),
        ("a: |\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_yaml_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert parse_yaml(text, "x.yaml") == {"a": value}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: {a: 1, a: 2}", "x.yaml:2:11"),
        ("a: &x 1\nb: *x", "x.yaml:2:4"),
        ("a: !!set {x}", "x.yaml:1:4"),
        ("a: 1\n---\na: 2", "x.yaml:2:1"),
        ("? [a]\n: 1", "x.yaml:1:3"),
        ("a: 1\nb: -.inf", "x.yaml:2:4"),
        ("a: [1, 2", "x.yaml:2:1"),
    ],
)
def test_refused_yaml_names_line_and_column(text: str, place: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith(f"{place}: ")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_json_text_parses_to_the_value_it_came_from(value: object) -> None:
    assert parse_json(json.dumps(value), "x.json") == value


@given(PLAIN.filter(lambda value: not isinstance(value, str)))
def test_json_text_is_yaml_with_the_same_value(value: object) -> None:
    text = json.dumps(value)
    if r"\u" not in text:  # a surrogate pair is one character in JSON and none in YAML
        assert parse_yaml(text, "x.yaml") == value


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for suffix in (".json", ".yaml"):
        path = folder / f"bytes{suffix}"
        path.write_bytes(data)
        message = refusal(lambda path=path: parse(path))
        assert message is None or str(path) in message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"count": "8"}, "x: count: Input should be a valid integer, got '8'"),
        ({"count": True}, "x: count: Input should be a valid integer, got True"),
        ({"count": 8.0}, "x: count: Input should be a valid integer, got 8.0"),
        ({"count": math.inf}, "x: count: Input should be a valid integer, got inf"),
        ({"count": 1, "rate": math.nan}, "x: rate: Input should be a finite number, got nan"),
        ({"count": 1, "rat": 2}, "x: rat: unknown key; known: count, rate, parts"),
        ({}, "x: count: missing; add it"),
        ({"count": 1, "parts": [1, "b", "c"]}, "x: parts[1]: Input should be a valid integer, got 'b'"),
        (None, "x: empty; it needs count, rate, parts"),
        ([1], "x: top level: Input should be an object"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(value: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(value, Pair, source="x")
    assert str(caught.value) == message


def test_a_list_of_a_million_wrong_items_is_one_error() -> None:
    with pytest.raises(SpecError, match=r"parts\[0\].*got 'a'$"):
        validate({"count": 1, "parts": ["a"] * 1_000_000}, Pair, source="x")


def test_a_directory_a_pipe_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, tmp_path / "absent.json", Path("bad\0name.json")):
        with pytest.raises(SpecError):
            parse(path)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"count": 1}')
    assert load(path, Pair).count == 1


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    cluster = load(FOLDER / "clusters" / "dgx-a100-5.yaml", Cluster)
    path = tmp_path / "deep" / "cluster.json"
    write_atomically(path, to_json(cluster))
    assert load(path, Cluster) == cluster
    assert to_json(load(path, Cluster)) == path.read_text()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]
    assert path.read_text() == "old"


def test_writing_below_a_file_is_a_spec_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "out.json", "x")


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
