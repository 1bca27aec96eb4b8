"""The page ``docs/scenarios.md``: every figure of S1–S8, and the sweeps behind S4 to S8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.documents.two_level import TwoLevel
from planner.paper.page import table
from planner.paper.scaling import POOLS
from planner.paper.slices import byte_table, decode_choice
from planner.paper.speedup import (
    break_even_tokens,
    closed_form_break_even_tokens,
    flash_flop_per_s,
    simulated_break_even_tokens,
    speed_up,
)
from planner.paper.split import balancing_batch, crossover, sweep
from planner.paper.whole_steps import form_seconds, slice_step, split_step
from simulator.placement import Exit
from simulator.workload import Phase

if TYPE_CHECKING:
    from planner.paper.scenarios import Outcome


def text(outcomes: Sequence[Outcome]) -> str:
    """The page as Markdown."""
    parts = [_figures(outcomes), _reasons(outcomes), _pools(), _decode(), _splits(), _two_level(), _not_slower()]
    return "\n".join(line for part in parts for line in part) + "\n"


def number(value: float) -> str:
    """Three or four digits; whole numbers with separators."""
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _figures(outcomes: Sequence[Outcome]) -> list[str]:
    lines = [
        [o.scenario, o.what, f"{number(o.low)} – {number(o.high)}", f"{number(o.ours)} {o.unit}".strip(),
         "accepted" if o.accepted else "**outside**"]
        for o in outcomes
    ]  # fmt: skip
    head = [
        "# Reference scenarios",
        "",
        "An independent estimate of the key figures, and what attnplan computes for them. Written by",
        "`python -m planner.paper.scenarios`; nothing is tuned towards the estimate.",
        "",
    ]
    return [*head, *table(["", "figure", "accepted range", "ours", ""], lines)]


def _reasons(outcomes: Sequence[Outcome]) -> list[str]:
    outside = [o for o in outcomes if not o.accepted]
    if not outside:
        return []
    return ["## Why a figure lies outside", "", *(f"* **{o.scenario}, {o.what}.** {o.reason}" for o in outside), ""]


def _pools() -> list[str]:
    rate = flash_flop_per_s(32768)
    lines = []
    for nics in (8, 4, 2, 1):
        simulated = [f"{speed_up(length, 32, nics=nics):.2f}×" for length in (16384, 65536, 131072)]
        closed = [number(closed_form_break_even_tokens(nics, pool, rate)) for pool in (16, 32, 1e9)]
        even = [number(round(simulated_break_even_tokens(nics, pool), -2)) for pool in (16, 32)]
        lines.append([f"{nics}", number(break_even_tokens(nics)), *closed, *even, *simulated])
    sizes = ", ".join(f"{speed_up(16384, pool):.2f}× with {pool}" for pool in POOLS)
    header = ["NICs", "from kernels, p = 16", "n* p = 16", "n* p = 32", "n* p = ∞"]
    header += ["simulated p = 16", "simulated p = 32", "speed-up 16K", "64K", "128K"]
    return [
        "## S4: FA Pool prefill, one sequence, causal flash attention",
        "",
        "Break-even lengths over TP 8, in tokens. *From kernels*: Q in, KV in behind the attention it feeds, O "
        "back. *n\\**",
        "is the closed form `(2r+1)·s·F / (2·g·β·(1/8 − 1/p))` (Q and KV in, nothing overlapped, O streamed) at",
        f"F = {rate / 1e12:.0f} TFLOP/s, the fitted kernel at 32K. *Simulated*: whole steps with zigzag query "
        "blocks, KV in",
        "8 pieces along a chain, attention on a piece while the next arrives, log-sum-exp merge. Speed-ups with "
        "32 GPUs.",
        "",
        *table(header, lines),
        f"At 16K with 8 NICs: {sizes}.",
        "",
    ]


def _decode() -> list[str]:
    from planner.paper.scenarios import decode_speed_up

    lines = [
        [f"{pool}", f"{decode_speed_up(pool):.2f}×", f"{decode_speed_up(pool, head_groups=1):.2f}×"] for pool in POOLS
    ]
    return [
        "## S5: FA Pool decode, 256 sequences of 16K, over TP 8",
        "",
        "Eight head groups keep each output on one base GPU's heads. A pure KV split sends every pool GPU's partial",
        "output of all heads to all of the base, p/8 times the bytes, and merges p parts:",
        "",
        *table(["pool GPUs", "8 head groups × p/8 KV blocks", "p KV blocks, all heads"], lines),
    ]


def _splits() -> list[str]:
    found: list[str] = []
    cases: tuple[tuple[Phase, int], ...] = (("prefill", 1), ("prefill", 16), ("decode", 256), ("decode", 1024))
    for phase, batch in cases:
        lines = [
            [f"{t.attention_gpus} : {t.moe_gpus}", *(f"{1e3 * s:.3f}" for s in (t.core_s, t.projections_s)),
             *(f"{1e3 * s:.3f}" for s in (t.measured_s, t.grouped_s, t.roof_s)), f"{t.ratio:.2f}"]
            for t in sweep(phase, batch)
        ]  # fmt: skip
        most = crossover(phase, batch)
        edge = "attention is never slower" if most is None else f"attention is slower up to {most} attention GPUs"
        header = ["attention : MoE", "attention core, ms", "projections, ms", "experts measured, ms"]
        header += ["experts as matmuls, ms", "experts at memory bandwidth, ms", "core / experts measured"]
        found += [f"### {phase}, {batch} sequences of 2048: {edge}", "", *table(header, lines)]
    batch_text = balancing_batch("decode")
    lead = [
        "## S7: MA Separation, every split of 16 GPUs, one layer",
        "",
        f"With 12 : 4, attention is the slower side in decode from {batch_text} sequences (powers of two), never "
        "in prefill.",
        "",
    ]
    return [*lead, *_whole_splits(), *found]


def _whole_splits() -> list[str]:
    """S7's table of simulated steps."""
    cases: tuple[tuple[Phase, int], ...] = (("prefill", 1), ("prefill", 16), ("decode", 256), ("decode", 1024))
    exits: tuple[Exit, Exit] = ("all_reduce_broadcast", "all_to_all")
    lines = []
    for phase, batch in cases:
        for attention in (8, 12, 14):
            one = split_step(phase, batch, attention)
            steps = [split_step(phase, batch, attention, exit) for exit in exits]
            halved = split_step(phase, batch, attention, micro_batches=2) if batch > 1 else None
            assert one is not None
            lines.append(
                [f"{phase}, {batch}", f"{attention} : {16 - attention}", f"{1e3 * one.core_s:.3f}",
                 f"{1e3 * one.experts_s:.3f}", f"{one.ratio:.2f}",
                 *("–" if found is None else f"{1e3 * found.step_s:.2f}" for found in (*steps, halved))]
            )  # fmt: skip
    header = ["step", "attention : MoE", "core, ms", "experts, ms", "core / experts"]
    header += ["step, as written, ms", "step, all-to-all, ms", "all-to-all, 2 micro-batches, ms"]
    return [
        "### Whole steps, lowered and simulated, a layer",
        "",
        "Projections, norms, router, messages and collectives included, on 4 × 4 A100. *As written*: all-reduce over",
        "the attention GPUs, then a broadcast to the experts'. All-to-all: heads to tokens at once.",
        "",
        *table(header, lines),
    ]


def _two_level() -> list[str]:
    forms = [[form, number(size)] for form, size in byte_table(TwoLevel())]
    lines = [
        [f"{c.kv_heads}", *(f"{1e6 * s:.0f}" for s in (c.heads_only_s, c.slices_s, c.sequence_s))]
        for c in (decode_choice(kv) for kv in (1, 2, 4, 8, 16, 32))
    ]
    return [
        "## S8: two-level partitioning",
        "",
        "Sent by a device before W_O, n = m = 4 (per-slice is another model):",
        "",
        *table(["form", "GB"], forms),
        "Decode of 128 sequences of 10000 on 16 GPUs, µs a layer. Fewer KV heads than GPUs: heads alone replicate KV.",
        "Slices (m > 1) pay for a score sum and win only where 4 or 8 KV heads are left; splitting the sequence always",
        "beats slices, for it exchanges outputs instead of scores.",
        "",
        *table(["KV heads", "heads alone", "heads × slices", "heads × KV blocks"], lines),
        *_whole_slices(),
    ]


def _whole_slices() -> list[str]:
    """S8's simulated steps, and where longer or more is not slower."""
    forms = [[form, f"{seconds:.3f}"] for form, seconds in form_seconds().items()]
    lines = [
        [f"{s.kv_heads}", *(f"{1e6 * x:.0f}" for x in (s.heads_only_s, s.slices_s, s.sequence_s))]
        for s in (slice_step(kv) for kv in (1, 2, 4, 8, 16, 32))
    ]
    return [
        "The same decode as whole steps, lowered and simulated (µs; one layer with projections, feed-forward and",
        "output head): the verdicts stand.",
        "",
        *table(["KV heads", "heads alone", "heads × slices", "heads × KV blocks"], lines),
        "Prefill of the document's 128 × 10,000 tokens as a whole step, on 4 × 4 (memory is not asked: the score sum",
        "would need hundreds of gigabytes):",
        "",
        *table(["form", "s a layer"], forms),
    ]


NOT_SLOWER = """
## Where more is not slower

Simulated time grows with length and falls with bandwidth (`tests/test_invariants.py`: every scheme, 500 draws) but for

* **Tokens that fall to other ranks.** With KV split, one token more can give another rank the new token to store, and
  messages that shared a link may then pass one after another: up to 0.04 % earlier in those trials.
* **Sequences too short for their cuts.** Of 1 or 2 tokens over 4 query blocks some ranks get none, and rows that are
  not neighbours must be copied where longer ones need not be: 2 tokens took 11 % less than 1 in the smallest case.
* **Measured kernels.** A GEMM's time has steps in m (tiles, waves) and falls at some of them, as measured; so does a
  fused MoE kernel's, where skew meets tiles.
"""


def _not_slower() -> list[str]:
    return NOT_SLOWER.strip().splitlines()
