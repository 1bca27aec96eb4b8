"""A hundred random wrong values of every field that matters: the verifier (or the schema) refuses each one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from simulator.allocation import Allocation
from simulator.formats.files import validate
from tests.test_verify import Json, faults, text

MUTATIONS = 100
Wrong = Callable[[np.random.Generator, Any], Any]


def number(random: np.random.Generator, value: Any) -> Any:
    """Off by 0.1 % to a factor of 20, either way; whole numbers by at least one."""
    factor = float(np.exp(random.uniform(0.001, 3.0) * random.choice([-1, 1])))
    if isinstance(value, int):
        wrong = round(value * factor) if value else int(random.integers(1, 50))
        return wrong if wrong != value else value + 1
    return value * factor if value else float(random.uniform(1e-3, 1))


def letters(random: np.random.Generator, value: Any) -> Any:
    del value
    return "".join(random.choice(list("abcdef0123456789"), size=64))


def other(*choices: Any) -> Wrong:
    """Any of the choices that is not what stands there."""
    return lambda random, value: choices[int(random.choice([i for i, one in enumerate(choices) if one != value]))]


def more(random: np.random.Generator, value: Any) -> Any:
    """Counts that must not exceed others, far too large."""
    return int(value) + int(random.integers(100_000, 10**9))


def rank(random: np.random.Generator, value: Any) -> Any:
    del value
    return int(random.integers(4, 10_000))  # the cluster has ranks 0 … 3


FILE: list[tuple[tuple[Any, ...], Wrong]] = [
    *((("digests", name), letters) for name in ("model", "cluster", "workload")),
    (("digests", "profiles", "A100-SXM4-80GB"), letters),
    *(((name,), letters) for name in ("model", "cluster", "workload", "command")),
    (("dtype",), other("bf16", "fp32", "fp16")),
    (("limits", "max_gpus"), lambda random, value: int(random.integers(5, 10**6))),
    (("limits", "base_gpus"), lambda random, value: int(random.integers(5, 10**6))),
    (("thresholds", 0, "tokens"), lambda random, value: int(random.integers(3, 2000))),
    (("thresholds", 1, "pool_tokens"), lambda random, value: int(random.integers(3, 2000))),
    (("thresholds", 0, "rule_tokens"), number),
]
SWITCHING = [
    *((("switching", name), number) for name in ("activation_s", "switching_cost", "policy_cost", "free_cost")),
    (("switching", "probability"), lambda random, value: float(random.uniform(0.001, 1))),
    (("switching", "gap"), lambda random, value: float(random.uniform(0.001, 0.999))),
    (("switching", "activation_tag"), other("assumed", "measured", "fitted")),
    (("switching", "unit"), other("s", "s a request", "s to the first token")),
    (("switching", "moved"), lambda random, value: [*value, letters(random, "")]),
    *((("switching", "residents", 0, name), number) for name in (
        "rank", "weights_bytes", "kv_cache_bytes", "activations_bytes", "buffers_bytes", "capacity_bytes",
        "headroom_bytes",
    )),
]  # fmt: skip


def reworded(random: np.random.Generator, value: Any) -> Any:
    """A digit or letter more somewhere in a text."""
    at = int(random.integers(len(value) + 1))
    return value[:at] + str(random.choice(list("0123456789xyz"))) + value[at:]


WORDS = [
    *(((name,), reworded) for name in ("command", "profile")),
    (("assumptions", 0), reworded),
    *((("policy", None, *path), reworded) for path in (
        ("placement", "name"), ("binding", "detail"), ("rule", "name"),
        ("baselines", 0, "name"), ("baselines", 2, "infeasible"), ("runner_up", "name"),
        ("runner_up", "placement", "name"), ("best_pool", "name"), ("pareto", 0, "name"),
    )),
]  # fmt: skip
STAGE = ("placement", "stages", 0)
ENTRY: list[tuple[tuple[Any, ...], Wrong]] = [
    (("min_tokens",), number),
    (("tokens",), number),
    (("batch",), number),
    (("bucket",), letters),
    (("num_gpus",), number),
    (("pool_gpus",), lambda random, value: int(value) + int(random.integers(1, 1000))),
    ((*STAGE, "grid", "heads", 0), number),
    ((*STAGE, "grid", "dim_slices"), lambda random, value: int(random.integers(2, 1000))),
    ((*STAGE, "grid", "kv_blocks"), lambda random, value: int(value) + int(random.integers(1, 1000))),
    ((*STAGE, "attention_ranks", 0), rank),
    ((*STAGE, "feed_forward_ranks", 0), rank),
    ((*STAGE, "tensor_degree"), lambda random, value: int(random.integers(5, 10**6))),
    ((*STAGE, "last_layer"), lambda random, value: int(random.integers(3, 10**4))),
    ((*STAGE, "first_layer"), lambda random, value: int(random.integers(1, 10**4))),
    (("placement", "micro_batches"), lambda random, value: int(random.integers(9, 10**6))),
    (("metrics", "step_s", "value"), number),
    (("metrics", "tokens_per_s", "value"), number),
    (("metrics", "tokens_per_s_per_gpu", "value"), number),
    (("metrics", "gpu_seconds_per_token", "value"), number),
    (("metrics", "step_s", "tag"), other("measured", "replayed", "emulated")),
    (("memory", 0, "rank"), rank),
    *((("memory", 0, name), number) for name in (
        "weights_bytes", "kv_cache_bytes", "activations_bytes", "capacity_bytes", "headroom_bytes",
    )),
    (("binding", "share"), number),
    (("binding", "shares", "gemm"), lambda random, value: value + float(random.uniform(0.02, 5))),
    (("exactness",), other("exact", "drops-possible", "model-changing")),
    (("rule", "pool_gpus"), lambda random, value: int(value) + int(random.integers(1, 1000))),
    (("baselines", 0, "num_gpus"), number),
    (("search", "simulated"), more),
    (("search", "lowered"), more),
    (("search", "gap"), lambda random, value: float(random.uniform(1, 100))),
]  # fmt: skip
FIELDS = [*FILE, *SWITCHING, *WORDS, *((("policy", None, *path), wrong) for path, wrong in ENTRY)]


@pytest.mark.parametrize(("path", "wrong"), FIELDS, ids=[".".join(map(str, path)) for path, _ in FIELDS])
def test_every_wrong_value_of_a_field_is_refused(path: tuple[Any, ...], wrong: Wrong) -> None:
    """Of a policy's field (None), in every entry in turn."""
    random, document, accepted = np.random.default_rng(len(path)), json.loads(text()), []
    for turn in range(MUTATIONS):
        *way, last = (turn % len(document["policy"]) if key is None else key for key in path)
        place: Any = document
        for key in way:
            place = place[key]
        right = place[last]
        place[last] = wrong(random, right)
        assert place[last] != right
        if not faults(document):
            accepted.append((way[:2], place[last], right))
        place[last] = right
    assert not accepted, f"{len(accepted)} of {MUTATIONS} accepted: {accepted[:3]}"


def test_the_allocation_itself_stands() -> None:
    document: Json = json.loads(text())
    assert faults(document) == ()
    assert validate(document, Allocation, source="allocation.json").policy
