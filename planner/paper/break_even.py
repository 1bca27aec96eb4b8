"""Where an FA Pool's prefill begins to pay, simulated, with one part of the step left out at a time (S4).

    python -m planner.paper.break_even        writes docs/s4.md

One sequence of causal flash attention against TP 8 alone, 8 NICs a node; a pool of 32 GPUs as 8 head groups × 4 query
blocks. Lengths by bisection to 1 %, in steps of 128 tokens, so differences below 1 % mean nothing.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from planner.documents.placements import Transfers, fa_pool_grid, static
from planner.paper.page import table
from planner.paper.speedup import flash_flop_per_s
from planner.paper.steps import cluster, model, nodes, profile
from simulator import program as p
from simulator.cluster import Cluster
from simulator.costs.pricing import as_measured, price
from simulator.costs.work import kernels_of
from simulator.kernel import flops
from simulator.lowering import lower
from simulator.placement import Placement
from simulator.simulation.engine import run, world_of
from simulator.workload import prefill_step

DEFAULT_FILE = Path(__file__).resolve().parents[2] / "docs" / "s4.md"
ESTIMATE_TOKENS = 26_000
POOL = 32


@dataclass(frozen=True, slots=True)
class Variant:
    """What is changed: how the pool receives (``transfers``), and what is free.

    ``ideal``: attention on a piece of keys runs at the rate of TP 8's kernel at that length, whatever its shape."""

    name: str
    transfers: Transfers = field(default_factory=Transfers)
    copies: bool = True
    merges: bool = True
    latency: bool = True
    ideal: bool = False


VARIANTS = (
    Variant("as simulated: zigzag, 8 pieces along a chain"),
    Variant("no copies", copies=False),
    Variant("no merges", merges=False),
    Variant("no latency", latency=False),
    Variant("attention at TP 8's rate", ideal=True),
    Variant("none of the four", copies=False, merges=False, latency=False, ideal=True),
    Variant("16 pieces", Transfers(kv_pieces=16)),
    Variant("4 pieces", Transfers(kv_pieces=4)),
    Variant("sqrt cuts", Transfers(block_rule="sqrt")),
    Variant("direct copies, whole keys", Transfers(kv_multicast="direct", kv_pieces=1)),
)


def _machine(variant: Variant) -> Cluster:
    found = as_measured(cluster(), {profile().gpu.name: profile()})
    if variant.latency:
        return found
    still = tuple(
        node.model_copy(
            update={
                "link": node.link.model_copy(update={"latency_s": 0.0}),
                "nics": None if node.nics is None else node.nics.model_copy(update={"latency_s": 0.0}),
            }
        )
        for node in found.nodes
    )
    return found.model_copy(update={"nodes": still, "fabric": found.fabric.model_copy(update={"latency_s": 0.0})})


@lru_cache(maxsize=512)
def step_s(placement: Placement, length: int, variant: Variant) -> float:
    """A step of one sequence, as ``variant`` prices it."""
    machine = _machine(variant)
    cache = static(model()) if placement.pool_ranks else None
    built = lower(model(), prefill_step(1, length), placement, nodes=nodes(), cache=cache)
    profiles = {profile().gpu.name: profile()}
    prices = price(built, machine, profiles)
    rate = flash_flop_per_s(length)
    seconds = [
        np.array([_seconds(op, float(s), variant, rate) for op, s in zip(ops, row, strict=True)])
        for ops, row in zip(built.ranks, prices.durations_s, strict=True)
    ]
    return run(built, machine, seconds, world_of(profiles)).duration_s


def _seconds(operation: p.Operation, priced_s: float, variant: Variant, flop_per_s: float) -> float:
    match operation:
        case p.Slice() | p.Concat() if not variant.copies:
            return 0.0
        case p.MergeAttention() if not variant.merges:
            return 0.0
        case p.Attention() if variant.ideal:
            return sum(flops(kernel) for kernel in kernels_of(operation, "bf16")) / flop_per_s
        case _:
            return priced_s


def break_even(variant: Variant) -> float:
    """Tokens from which the pool's step is shorter than TP 8's, whose copies, merges and latency stay."""
    pool = fa_pool_grid(model(), POOL, variant.transfers)
    alone, plain = static(model()), VARIANTS[0]
    low, high = 64, 704  # of 128 tokens: 8,192 to 90,112
    while high - low > 1 and high / low > 1.01:
        middle = math.isqrt(low * high)
        faster = step_s(pool, 128 * middle, variant) < step_s(alone, 128 * middle, plain)
        low, high = (low, middle) if faster else (max(middle, low + 1), high)
    return 128 * math.sqrt(low * high)


def page() -> str:
    """docs/s4.md."""
    lines = []
    for variant in VARIANTS:
        tokens = break_even(variant)
        apart = f"{100 * (tokens / ESTIMATE_TOKENS - 1):+.0f} %"
        lines.append([variant.name, f"{round(tokens, -2):,.0f}", apart.replace("-", "−")])
    found = table(["the pool's step", "break-even, tokens", "over the estimate"], lines)
    return "\n".join([*HEAD.strip().splitlines(), "", *found, *END.strip().splitlines(), ""])


HEAD = """
# When an FA Pool pays in prefill, and what moves that length

Tokens from which a pool of 32 GPUs is faster than TP 8 alone: one sequence, causal, 8 NICs a node (documents' model
and cluster, shipped profile, links between nodes assumed). The estimate, 26,000, is from kernels and bytes alone.
Written by `python -m planner.paper.break_even`, by bisection to 1 %; [scenarios](scenarios.md): other NICs, p = 16.
"""
END = """
The simulation agrees with the estimate, partly because two differences cancel. Flash attention on a query block against
a piece of keys is priced below the rate of TP 8's whole causal square (such rectangles are in no public table of A100
kernels: their price is the physical model's, tag *assumed*), which moves the length up; keys travel and are kept where
compute waits for an all-reduce anyway, which the estimate does not know, and that moves it down.

Near the break-even the two curves are almost parallel, so small costs move the length far: the length is a weak
statement, the time at a given length the strong one.
"""

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE
    target.write_text(page(), encoding="utf-8")
    print(target)
