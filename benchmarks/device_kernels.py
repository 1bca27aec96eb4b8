"""What the device campaign measures beside whole programs: attention backends side by side, routing and grouped GEMM by
kernel and by torch, decode steps with and without CUDA graphs. Each is left out, with the reason, where it cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import get_args

import torch
from torch import Tensor

from executor.attention_backends import Backend, attend, choose, probe
from executor.experts import Ragged, feed_forward, top_experts
from executor.replay import Replay
from executor.session import Generation
from executor.timing import median_seconds
from executor.weights import TORCH_DTYPES
from simulator import program as p

BUDGET_S = 0.1  # of one kernel
SHAPES = {  # queries, keys, query heads, KV heads; head_dim 128
    "prefill 4096": (4096, 4096, 32, 32),
    "prefill 16384": (16384, 16384, 32, 8),
    "block 1024 of 8192": (1024, 8192, 32, 8),
    "decode 16384": (1, 16384, 32, 8),
}
SMALL_SHAPES = {"prefill 256": (256, 256, 8, 8), "block 64 of 256": (64, 256, 8, 2), "decode 1024": (1, 1024, 8, 2)}
ASKED = 0.9  # of the best backend's speed


def seconds(call: Callable[[], object], device: torch.device) -> float:
    with torch.inference_mode():
        return median_seconds([call], device, BUDGET_S)


def backends(device: torch.device, dtype: str) -> list[dict[str, object]]:
    """Every backend that works here on every shape; ``chosen_over_best``: the chosen one's speed of the fastest's."""
    kind, rows = TORCH_DTYPES[dtype], list[dict[str, object]]()
    reasons = {name: probe(name, device, kind, 128) for name in get_args(Backend)}
    chosen = choose(device, kind, 128)
    for name, (queries, keys, heads, kv_heads) in (SMALL_SHAPES if device.type == "cpu" else SHAPES).items():
        q = torch.randn(1, queries, heads, 128, device=device).to(kind)
        k, v = (torch.randn(1, keys, kv_heads, 128, device=device).to(kind) for _ in "kv")
        working = [one for one, reason in reasons.items() if reason is None]
        if queries * keys > 2**26:  # it would form the scores whole
            working.remove("math")
        times = {one: attention_seconds(q, k, v, one) for one in working}
        share = min(times.values()) / times[chosen]
        rows.append({"shape": name, "seconds": times, "chosen": chosen, "chosen_over_best": share, "asked": ASKED})
    return [{"left_out": {name: reason for name, reason in reasons.items() if reason}}, *rows]


def attention_seconds(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> float:
    """Causal where queries and keys are as many."""
    return seconds(lambda: attend(q, k, v, causal=q.shape[1] == k.shape[1], backend=backend), q.device)


def routing(device: torch.device) -> dict[str, object]:
    """Softmax and top-2 of 64 experts for 8,192 tokens, by torch and by Triton."""
    logits = torch.randn(8192, 64, device=device)
    found: dict[str, object] = {"torch_s": seconds(lambda: top_experts(logits, 2, "torch"), device)}
    try:
        found["triton_s"] = seconds(lambda: top_experts(logits, 2, "triton"), device)
    except Exception as error:  # no triton here, or one that cannot run: the row says so
        found["triton"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
    return found


def grouped(device: torch.device, dtype: str) -> dict[str, object]:
    """Eight experts' rows in one grouped GEMM and expert by expert; hidden 1,024 (CPU: 128)."""
    hidden, rows = (1024, 4096) if device.type == "cuda" else (128, 256)
    kind = TORCH_DTYPES[dtype]
    up, down = (torch.randn(8, hidden, hidden, device=device).to(kind) for _ in "ud")
    operation = p.Experts(
        reads=("r",), writes=("o",), layer=0, micro_batch=0, num_tokens=rows, hidden=hidden, intermediate=(0, hidden),
        num_experts=8, top_k=1, experts=(0, 8), capacity=None, peers=1, kind="silu", gated=False,
    )  # fmt: skip
    counts = torch.full((8,), rows // 8, device=device)
    values = torch.randn(rows, hidden, device=device).to(kind)

    def one_by_one() -> list[Tensor]:
        parts = values.chunk(8)
        return [torch.nn.functional.silu(part @ up[i]) @ down[i] for i, part in enumerate(parts)]

    return {
        "grouped_s": seconds(lambda: feed_forward(operation, Ragged(values, counts), up, down), device),
        "one_by_one_s": seconds(one_by_one, device),
    }


def graphs(generation: Generation, device: torch.device) -> Mapping[str, object]:
    """A decode step's device time, launched kernel by kernel and replayed as a graph, and whether tokens agree."""
    if device.type != "cuda":
        return {"left_out": "CUDA graphs need a GPU"}
    found: dict[str, object] = {}
    tokens = []
    for name, on in (("eager_s", False), ("graphs_s", True)):
        replayed = Replay(replace(generation, warm_up=1, repeats=5, graphs=on), device)
        ends = step_ends(replayed)
        tokens.append(replayed.run().measurement.generated)
        found[name] = median(ends)
        if on:
            used = replayed.sessions[0].graphs
            found["problem"] = None if used is None else used.problem
    return found | {"same_tokens": tokens[0] == tokens[1]}


def step_ends(replayed: Replay) -> list[float]:
    """Filled while it runs: the seconds of every decode step of rank 0, begin to end."""
    ends: list[float] = []
    session = replayed.sessions[0]
    step = session.step

    def timed(number: int, tokens: Tensor | None) -> object:
        result = step(number, tokens)
        if number:
            ends.append(result.end_s)
        return result

    session.step = timed  # type: ignore[method-assign, assignment]
    return ends
