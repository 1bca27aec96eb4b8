"""The page ``docs/published.md``: measurements by others beside what their hardware simulates to."""

from __future__ import annotations

from collections.abc import Sequence

from planner.paper.page import table
from planner.published import all_reduce, dispatch, ring_attention
from planner.published.comparison import Comparison
from simulator.units import MB

RING = """
65,536 tokens, 32 heads, 8 KV heads, causal (zhuzilin/ring-flash-attention). Calibrated: FLOP/s of the one-GPU rows
(8,192 tokens: 1.69 ms, with the backward pass 6.46 ms). The three schedules are that repository's, with its unfused
fp32 updates after every step at the datasheet's 3.35 TB/s; NVLink 200 GB/s each way.
"""
RING_END = """
This project's ring merges all parts once, in bf16, which saves the updates. The measured forward rows, solved for two
unknowns, give 0.58 ms an update (38 bytes an element at 3.35 TB/s: 0.38 ms) and full blocks that run at 1.17 times the
causal block's rate; neither is used.
"""
DISPATCH = f"""
DeepEP's normal kernels, 4,096 tokens a GPU. 160 GB/s a port and 50 GB/s a NIC (both stated), two hops in
{dispatch.CHUNKS} pieces. The published figure counts tokens that stay on their node or GPU. *Own tokens free*: a GPU's
own tokens do not take up its port. *No latency*: links without their assumed 5 µs.
"""
ALL_REDUCE = f"""
nccl-tests logs, fp32, rows of at least {all_reduce.LEAST_BYTES / MB:.0f} MB; rings, trees or the switch's tree,
whichever is fastest. Of six logs over nodes one states its NICs (`nic_facts: stated` beside the log): it is the one
that decides. Two more ran on shapes whose public specification names NICs (Oracle's BM.GPU.B4.8 and BM.GPU.H100.8),
and are held to the same 15 % by a test. Not held: DGX H100 (4 GPUs of each node used, NICs unknown), GH200 (Slingshot,
from memory; no profile of the node) and GB200 (one NVLink domain: no NIC takes part).
"""
ALL_REDUCE_END = """
What misses: 2 × 4 H100 below 2 GB and 2 × 4 GH200, whose sources do not state their NICs. Bytes over time keep rising
up to gigabytes (H100: 30 GB/s at 17 MB, 86 at 134 MB, 188 at 8.6 GB), which no latency of microseconds gives. NCCL's
chunk sizes and protocols, registration of memory by the OFI plugin (GH200) and a disturbed machine (the H100 log has
rows of 1 ms for 32 kB) are candidates; the logs cannot tell them apart. GB200 below 2 GB: no measured curve of 72 GPUs
in one domain is shipped, and trees at the datasheet's 900 GB/s are too fast for half a gigabyte.
"""

HEADER = ("", "measured", "simulated", "error")


def text() -> str:
    """The page as Markdown."""
    lines = [
        "# Measured by others",
        "",
        "Published measurements beside simulations of the same systems, from stated hardware only. Written by",
        "`python -m planner.published`. **Bold**: off by more than 15 %. Citations stand in the modules.",
        "",
        *_ring(),
        *_dispatch(),
        *_all_reduce(),
    ]
    return "\n".join(lines)


def rows(found: Sequence[Comparison]) -> list[list[str]]:
    """Cells of a table."""
    return [[c.what, f"{c.measured:.4g} {c.unit}", f"{c.simulated:.4g} {c.unit}", _error(c)] for c in found]


def _error(comparison: Comparison) -> str:
    shown = f"{100 * comparison.error:+.1f} %".replace("-", "−")
    return shown if comparison.within else f"**{shown}**"


def _ring() -> list[str]:
    return [
        "## Context-parallel attention on 8 × H800",
        "",
        *RING.strip().splitlines(),
        "",
        *table(HEADER, rows(ring_attention.comparisons())),
        *RING_END.strip().splitlines(),
        "",
    ]


def _dispatch() -> list[str]:
    found = dispatch.comparisons()
    others = [
        Comparison(
            c.what, c.unit, c.measured, dispatch.exchange(ranks // dispatch.GPUS, way, own_copies=own, latency_s=s)
        )
        for c, (ranks, way, own, s) in zip(found * 2, _variants(), strict=True)
    ]
    half = len(found)
    lines = [
        [*row, _error(free), _error(quick)]
        for row, free, quick in zip(rows(found), others[:half], others[half:], strict=True)
    ]
    return [
        "## MoE dispatch and combine on H800",
        "",
        *DISPATCH.strip().splitlines(),
        "",
        *table([*HEADER, "own tokens free", "no latency"], lines),
    ]


def _variants() -> list[tuple[int, dispatch.Way, bool, float]]:
    ways: tuple[dispatch.Way, ...] = ("dispatch", "combine")
    alike = [(ranks, way) for ranks in dispatch.MEASURED for way in ways]
    return [(r, w, False, 5e-6) for r, w in alike] + [(r, w, True, 0.0) for r, w in alike]


def _all_reduce() -> list[str]:
    lines = []
    for log in all_reduce.LOGS:
        note = "stated" if log.stated else log.remark
        lines += [[*row, note] for row in rows(all_reduce.comparisons(log))]
    return [
        "## All-reduce over nodes",
        "",
        *ALL_REDUCE.strip().splitlines(),
        "",
        *table([*HEADER, "NICs"], lines),
        *ALL_REDUCE_END.strip().splitlines(),
        "",
    ]
