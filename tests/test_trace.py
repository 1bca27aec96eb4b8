"""Traces: three formats to the same requests, quantile buckets by hand, refusals with the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import presets
from simulator.errors import SpecError
from simulator.formats.trace import Request, from_trace, read_requests
from tests.shared_data import refusal, shared

EXPECTED = (Request(0.0, 374, 44), Request(4.5, 396, 109), Request(6.25, 20, 7))
PROCESSED = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.5,396,109\n6.25,20,7\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:51.1805900,396,109\n"
    "2023-11-16 18:15:52.9305900,20,7\n"
)
MOONCAKE = (
    '{"timestamp": 27000, "input_length": 374, "output_length": 44, "hash_ids": [1, 2]}\n'
    '{"timestamp": 31500, "input_length": 396, "output_length": 109, "hash_ids": [1]}\n'
    '{"timestamp": 33250, "input_length": 20, "output_length": 7, "hash_ids": []}\n'
)


def written(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [PROCESSED, AZURE, MOONCAKE, PROCESSED.replace("\n", "\r\n"), MOONCAKE + "\n\n"])
def test_every_format_gives_the_same_requests(tmp_path: Path, text: str) -> None:
    for found, expected in zip(read_requests(written(tmp_path, text)), EXPECTED, strict=True):
        assert found.arrival_s == pytest.approx(expected.arrival_s, abs=1e-6)  # Azure: 7 decimals of a date
        assert (found.prompt_tokens, found.output_tokens) == (expected.prompt_tokens, expected.output_tokens)


def test_requests_are_sorted_by_arrival(tmp_path: Path) -> None:
    lines = PROCESSED.splitlines()
    shuffled = "\n".join([lines[0], lines[3], lines[1], lines[2]])
    assert read_requests(written(tmp_path, shuffled)) == EXPECTED


def test_four_lengths_in_two_buckets_by_hand(tmp_path: Path) -> None:
    rows = "".join(
        f"{i},{tokens},{output}\n" for i, (tokens, output) in enumerate([(10, 1), (20, 4), (30, 5), (40, 8)])
    )
    workload = from_trace(written(tmp_path, PROCESSED.splitlines()[0] + "\n" + rows), num_buckets=2)
    low, high = workload.buckets
    # the smallest length with half of the requests at or below it is 20: [0, 20) and [20, ∞)
    assert (low.min_tokens, low.max_tokens, low.tokens, low.share, low.output_tokens) == (0, 20, 10, 0.25, 1)
    # of 20, 30, 40 the middle is 30; (4 + 5 + 8) / 3 rounds to 6
    assert (high.min_tokens, high.max_tokens, high.tokens, high.share, high.output_tokens) == (20, None, 30, 0.75, 6)
    assert workload.requests_per_s == 3 / 3  # 3 gaps in 3 s


def test_equal_lengths_make_one_bucket_and_no_rate_comes_from_one_instant(tmp_path: Path) -> None:
    workload = from_trace(written(tmp_path, PROCESSED.splitlines()[0] + "\n" + "5,100,1\n" * 10))
    assert [(bucket.min_tokens, bucket.share) for bucket in workload.buckets] == [(0, 1.0)]
    assert workload.requests_per_s is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n", "trace.csv:1: unknown header 'a,b,c'; known: arrived_at,"),
        (PROCESSED + "7,1\n", "trace.csv:5: 2 cells under a header of 3"),
        (PROCESSED + "x,1,1\n", "trace.csv:5: arrived_at: not a time, got 'x'"),
        (PROCESSED + "-1,1,1\n", "trace.csv:5: arrived_at: not a time of 0 or more"),
        (PROCESSED + "inf,1,1\n", "trace.csv:5: arrived_at: not a time of 0 or more"),
        (PROCESSED + "7,0,1\n", "trace.csv:5: num_prefill_tokens: not a whole number of tokens"),
        (PROCESSED + "7,1.5,1\n", "trace.csv:5: num_prefill_tokens: not a whole number of tokens"),
        (PROCESSED + "7,,1\n", "trace.csv:5: num_prefill_tokens: missing"),
        (AZURE + "2023-11-16 18:15:46+02:00,1,1\n", "trace.csv:5: TIMESTAMP: not a time"),
        (MOONCAKE + "[1]\n", "trace.csv:4: not a JSON object"),
        (MOONCAKE + '{"timestamp": 1}\n', "trace.csv:4: input_length: not a whole number"),
        (
            MOONCAKE + '{"timestamp": true, "input_length": 1, "output_length": 1}\n',
            "trace.csv:4: timestamp: not a time",
        ),
        (MOONCAKE + "{oops}\n", "trace.csv:4:1:2: not JSON"),
        (PROCESSED.splitlines()[0], "a header but no request"),
        ("\n\n", "empty; name a CSV"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_requests(written(tmp_path, text))
    assert message in str(caught.value)


def test_no_bucket_and_too_many_are_refused(tmp_path: Path) -> None:
    for num_buckets in (0, 65):
        with pytest.raises(SpecError, match="num_buckets"):
            from_trace(written(tmp_path, PROCESSED), num_buckets)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 10))
def test_buckets_cover_every_request_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], num_buckets: int
) -> None:
    rows = "".join(f"{index},{length},1\n" for index, length in enumerate(lengths))
    path = written(tmp_path_factory.getbasetemp(), PROCESSED.splitlines()[0] + "\n" + rows)
    buckets = from_trace(path, num_buckets).buckets
    assert len(buckets) <= num_buckets
    assert buckets[0].min_tokens == 0
    assert [bucket.max_tokens for bucket in buckets[:-1]] == [bucket.min_tokens for bucket in buckets[1:]]
    for bucket in buckets:
        inside = [n for n in lengths if bucket.min_tokens <= n < (bucket.max_tokens or 10**9)]
        assert bucket.share == pytest.approx(len(inside) / len(lengths))
        assert bucket.tokens in inside


@given(st.text(max_size=60))
def test_any_text_is_a_trace_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    message = refusal(lambda: read_requests(path))
    assert message is None or str(path) in message


@pytest.mark.parametrize(
    ("preset", "name", "count"),
    [("azure-conv", "splitwise_conv.csv", 19366), ("mooncake", "mooncake_synthetic_trace.jsonl", 3993)],
)
def test_the_shipped_table_is_what_the_importer_makes_of_the_real_trace(preset: str, name: str, count: int) -> None:
    path = shared("traces") / name
    assert len(read_requests(path)) == count
    made, shipped = from_trace(path), presets.workload(preset)
    assert (made.buckets, made.requests_per_s) == (shipped.buckets, shipped.requests_per_s)
