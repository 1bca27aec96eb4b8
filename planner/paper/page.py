"""The page ``docs/paper-vs-physics.md``: rows by document, seed replay, and the split of every speed-up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planner.paper.replay import BASELINE_MS, BATCH, FA_POOL_MS, LENGTHS, replay
from planner.paper.speedup import break_even_tokens, ceiling, over_baseline, simulated_break_even_tokens, split
from planner.paper.statement import DOCUMENTS, Statement

INTRODUCTION = """# The documents against physics

attnplan comes from five documents. It implements what they say and computes what is true. Every row below is
computed by `python -m planner.paper` (or `plan paper`); no verdict is written down anywhere.

* **consistent**: our value agrees with the claim, by the criterion shown.
* **only under assumption**: it agrees only if what the assumptions column says is assumed.
* **inconsistent**: it does not agree.
* **specification, implemented**: not a claim but something to build; the check ran and passed.
* **unverifiable**: neither the documents nor arithmetic can decide it.

Tags: *derived* is arithmetic and counting over the lowered program; *fitted* uses A100 kernels fitted to measured
tables and a simulated network; *assumed* leans on network constants that were not measured.
"""


def page(rows: Sequence[Statement]) -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *_summary(rows), *_documents(rows), *_first_principles(), *_replay()]) + "\n"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; bars inside cells are escaped."""
    rows = [header, ["---"] * len(header), *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows] + [""]


def _summary(rows: Sequence[Statement]) -> list[str]:
    verdicts = sorted({row.verdict for row in rows})
    lines = [
        [name, *(str(sum(row.document == name and row.verdict == verdict for row in rows)) for verdict in verdicts)]
        for name in DOCUMENTS.values()
    ]
    total = ["all", *(str(sum(row.verdict == verdict for row in rows)) for verdict in verdicts)]
    return [f"## {len(rows)} statements", "", *table(["document", *verdicts], [*lines, total])]


def _documents(rows: Sequence[Statement]) -> list[str]:
    header = ["", "claim", "ours", "criterion", "assumptions", "verdict", "tag"]
    lines = []
    for name in DOCUMENTS.values():
        cells = [
            [row.id, row.claim, row.ours, row.criterion, row.assumptions, f"**{row.verdict}**", row.tag]
            for row in rows
            if row.document == name
        ]
        lines += [f"## {name}", "", *table(header, cells)]
    return lines


def _first_principles() -> list[str]:
    lines = []
    for length in LENGTHS:
        found = split(length)
        lines.append(
            [
                f"{length}",
                f"{found.pool_gpus}",
                f"{found.flash:.2f}×",
                f"{found.added_gpus:.2f}×",
                f"{found.communication:.2f}×",
                f"{found.overlap:.2f}×",
                f"{found.total:.2f}×",
                f"{found.over_flash_baseline:.2f}×",
                f"{over_baseline(length):.2f}×",
                f"{ceiling(length):.2f}×",
            ]
        )
    header = ["tokens", "pool GPUs", "flash attention", "added GPUs", "communication", "overlap", "product"]
    header += ["without flash's share", "against TP 8 × PP 2", "ceiling"]
    even = ", ".join(f"{break_even_tokens(nics):,.0f} with {nics}" for nics in (8, 4, 2, 1))
    return [
        "## First principles: where a speed-up of FA Pool comes from",
        "",
        "Prefill of two sequences, bf16, causal, DGX A100 nodes with 8 NICs of 25 GB/s. Factors multiply from TP "
        "8 with",
        "unfused attention to the pool of the documents' own rule; below 1 is a loss. *Ceiling* is TP 8 over TP "
        "8 without",
        "any attention: no pool of any size can give more without overlap.",
        "",
        *table(header, lines),
        f"A pool of 16 breaks even, KV transfer behind attention, from (tokens, NICs a node): {even}.",
        "A simulated step, KV in pieces behind attention, breaks even with 32 pool GPUs and 8 NICs from about "
        f"{simulated_break_even_tokens():,.0f} tokens.",
        "",
    ]


def _replay() -> list[str]:
    found = replay()
    lines = [
        [f"{n}", f"{a:.0f}", f"{b:.0f}", f"{c:.0f}", f"{d:.0f}"]
        for n, a, b, c, d in zip(LENGTHS, BASELINE_MS, found.baseline_ms, FA_POOL_MS, found.fa_pool_ms, strict=True)
    ]
    return [
        "## Seed replay: what it takes for their baseline column to come out",
        "",
        f"Not first principles. A prefill of {BATCH} sequences on TP 8 with *unfused* attention, plus one constant of",
        f"{found.constant_ms:.1f} ms **fitted** to their baseline column. The baseline then agrees to "
        f"{100 * found.baseline_rms:.0f} % RMS; the same",
        f"model with flash attention and their pool rule is {100 * found.fa_pool_rms:.0f} % RMS away from their "
        "FA Pool "
        "column, which was not fitted.",
        "",
        *table(["tokens", "their baseline, ms", "replay, ms", "their FA Pool, ms", "model, ms"], lines),
    ]
