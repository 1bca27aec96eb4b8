"""The independent verifier accepts what the planner makes and names every mutation's place and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest

from planner.make import make_problem
from planner.problem import Problem
from planner.verification.verify import verify
from simulator.allocation import Allocation, Limits, Sources
from simulator.errors import SpecError
from simulator.formats.files import to_json, validate
from simulator.presets import cluster as load_cluster
from simulator.profile import load_profile
from simulator.workload import Bucket, Workload
from tests.schemes import tiny_model

Json = dict[str, Any]


@lru_cache
def problem() -> Problem:
    """Two buckets on two nodes of two A100s: small, and with every part of an allocation filled in."""
    big = load_cluster("dgx-a100-5")
    node = big.nodes[0]
    nodes = (node.model_copy(update={"count": 2, "gpus": 2, "nics": node.nics}),)
    buckets = (
        Bucket(name="short", min_tokens=1, max_tokens=2048, tokens=1024, share=0.5),
        Bucket(name="long", min_tokens=2048, tokens=32768, share=0.5),
    )
    return Problem(
        name="small",
        command="plan make small",
        model=tiny_model(heads=32, kv_heads=8, layers=2).model_copy(update={"head_dim": 64}),
        cluster=big.model_copy(update={"name": "small", "nodes": nodes}),
        workload=Workload(name="two", buckets=buckets, prefill_batch=2, decode_batch=8),
        profile_name="a100-sxm4-80gb",
        profiles={"A100-SXM4-80GB": load_profile("a100-sxm4-80gb")},
        objective="ttft",
        limits=Limits(max_gpus=4, base_gpus=2, ttft_slo_s=10.0, tpot_slo_s=10.0),
        sources=Sources(model="tiny.json", cluster="small.yaml", workload="two.yaml", profile="a100-sxm4-80gb"),
    )


@lru_cache
def text() -> str:
    return to_json(make_problem(problem()))


def faults(document: Json) -> tuple[str, ...]:
    """The verifier's findings, or the schema's refusal."""
    one = problem()
    try:
        allocation = validate(document, Allocation, source="allocation.json")
    except SpecError as error:
        return (str(error),)
    return verify(allocation, model=one.model, cluster=one.cluster, workload=one.workload, profiles=one.profiles)


def test_what_the_planner_makes_is_accepted() -> None:
    assert faults(json.loads(text())) == ()


def test_making_it_again_gives_the_same_bytes() -> None:
    assert to_json(make_problem(problem())) == text()


def scale(*path: str | int, by: float) -> Callable[[Json], None]:
    """Multiply the number at ``path``."""

    def change(document: Json) -> None:
        *way, last = path
        place: Any = document
        for key in way:
            place = place[key]
        place[last] = type(place[last])(place[last] * by) if place[last] else 1

    return change


def put(*path: str | int, value: Any) -> Callable[[Json], None]:
    """Set the value at ``path``."""

    def change(document: Json) -> None:
        *way, last = path
        place: Any = document
        for key in way:
            place = place[key]
        place[last] = value

    return change


def drop(*path: str | int) -> Callable[[Json], None]:
    """Remove what is at ``path``."""

    def change(document: Json) -> None:
        *way, last = path
        place: Any = document
        for key in way:
            place = place[key]
        del place[last]

    return change


def whole_file() -> list[tuple[str, Callable[[Json], None]]]:
    zero = "0" * 64
    return [
        ("model", put("model", value="other")),
        ("cluster", put("cluster", value="other")),
        ("workload", put("workload", value="other")),
        ("dtype", put("dtype", value="fp32")),
        ("command", put("command", value="by hand")),
        ("name", put("name", value="../x")),
        ("schema_version", put("schema_version", value=2)),
        ("objective", put("objective", value="speed")),
        ("digests.model", put("digests", "model", value=zero)),
        ("digests.cluster", put("digests", "cluster", value=zero)),
        ("digests.workload", put("digests", "workload", value=zero)),
        ("digests.profiles", put("digests", "profiles", "A100-SXM4-80GB", value=zero)),
        ("digests.profiles", put("digests", "profiles", value={})),
        ("max_gpus", put("limits", "max_gpus", value=3)),
        ("max_gpus", put("limits", "max_gpus", value=400)),
        ("base_gpus", put("limits", "base_gpus", value=5)),
        ("SLO", put("limits", "ttft_slo_s", value=1e-6)),
        ("SLO", put("limits", "tpot_slo_s", value=1e-6)),
        ("policy", drop("policy", 0)),
        ("policy", put("policy", value=[])),
        ("thresholds", drop("thresholds", 0)),
        ("thresholds", put("thresholds", 0, "tokens", value=777)),
        ("thresholds", put("thresholds", 1, "tokens", value=777)),
        ("thresholds", put("thresholds", 0, "pool_tokens", value=777)),
        ("thresholds", put("thresholds", 1, "pool_tokens", value=777)),
        ("thresholds", put("thresholds", 1, "rule_tokens", value=2048)),
        ("unknown", put("extra", value=1)),
    ]


def one_entry(number: int) -> list[tuple[str, Callable[[Json], None]]]:
    at = ("policy", number)
    stage = (*at, "placement", "stages", 0)
    return [
        ("policy", put(*at, "bucket", value="none")),
        ("policy", put(*at, "phase", value="decode" if number < 2 else "prefill")),
        ("policy", scale(*at, "min_tokens", by=2)),
        ("policy", scale(*at, "tokens", by=2)),
        ("policy", scale(*at, "batch", by=2)),
        ("num_gpus", put(*at, "num_gpus", value=1)),
        ("pool_gpus", put(*at, "pool_gpus", value=9)),
        ("heads", put(*stage, "grid", "heads", 0, value=31)),
        ("layer", put(*stage, "last_layer", value=3)),
        ("first_layer", put(*stage, "first_layer", value=1)),
        ("rank", put(*stage, "feed_forward_ranks", 0, value=77)),
        ("grid", put(*stage, "grid", "dim_slices", value=2)),
        ("tensor_degree", put(*stage, "tensor_degree", value=64)),
        ("micro_batches", put(*at, "placement", "micro_batches", value=99)),
        ("experts", put(*stage, "experts", value=[1, 1])),
        ("metrics.", scale(*at, "metrics", "tokens_per_s", "value", by=1.0001)),
        ("metrics.", scale(*at, "metrics", "tokens_per_s_per_gpu", "value", by=1.0001)),
        ("metrics.", scale(*at, "metrics", "gpu_seconds_per_token", "value", by=0.9999)),
        ("step", scale(*at, "metrics", "step_s", "value", by=1.001)),
        ("p05", scale(*at, "metrics", "step_s", "p05", by=2)),
        ("p95", scale(*at, "metrics", "step_s", "p95", by=0.5)),
        ("tag", put(*at, "metrics", "tokens_per_s", "tag", value="measured")),
        ("metrics.", put(*at, "metrics", "ttft_s" if number < 2 else "tpot_s", value=None)),
        ("headroom_bytes", scale(*at, "memory", 0, "weights_bytes", by=2)),
        ("headroom_bytes", scale(*at, "memory", 0, "headroom_bytes", by=2)),
        ("capacity", scale(*at, "memory", 0, "capacity_bytes", by=2)),
        ("memory", drop(*at, "memory", 0)),
        ("memory", put(*at, "memory", 0, "rank", value=3)),
        ("binding", scale(*at, "binding", "shares", "gemm", by=3)),
        ("binding", scale(*at, "binding", "share", by=0.5)),
        ("binding.kind", put(*at, "binding", "kind", value="memory")),
        ("exactness", put(*at, "exactness", value="drops-possible")),
        ("too_close_to_call", flip(*at, "too_close_to_call")),
        ("margin", put(*at, "margin", value=None)),
        ("margin", scale(*at, "margin", "value", by=1.5)),
        ("runner_up", put(*at, "runner_up", "num_gpus", value=9)),
        ("rule", put(*at, "rule", "pool_gpus", value=5)),
        ("baselines", put(*at, "baselines", value=[])),
        ("baselines", scale(*at, "baselines", 0, "num_gpus", by=2)),
        ("pareto", put(*at, "pareto", value=[])),
        ("search", scale(*at, "search", "simulated", by=1000)),
        ("gap", put(*at, "search", "gap", value=1.5)),
    ]


def flip(*path: str | int) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        *way, last = path
        place: Any = document
        for key in way:
            place = place[key]
        place[last] = not place[last]

    return change


MUTATIONS = [*whole_file(), *(mutation for number in range(4) for mutation in one_entry(number))]


@pytest.mark.parametrize(("word", "mutate"), MUTATIONS, ids=[f"{i}-{m[0]}" for i, m in enumerate(MUTATIONS)])
def test_a_mutation_is_refused_with_its_place(word: str, mutate: Callable[[Json], None]) -> None:
    document = json.loads(text())
    try:
        mutate(document)
    except TypeError:
        pytest.skip("this entry has no runner-up")
    if document == json.loads(text()):
        pytest.skip("this entry has no runner-up")
    found = faults(document)
    assert found, f"{word}: the mutation was accepted"
    assert all("\n" not in fault for fault in found)
    assert any(word in fault for fault in found), found


def test_there_are_more_than_a_hundred_mutations() -> None:
    assert len(MUTATIONS) >= 100


def test_an_unlisted_profile_is_named() -> None:
    one = problem()
    allocation = validate(json.loads(text()), Allocation, source="allocation.json")
    found = verify(allocation, model=one.model, cluster=one.cluster, workload=one.workload, profiles={})
    assert found == ("digests.profiles.A100-SXM4-80GB: no such profile was given to check it against",)
