"""python -m benchmarks.documents_cases [--processes N] [--limit N]

The documents' cases: prompts of 8K to 128K tokens on 5 DGX A100 with 1, 2, 4 or 8 NICs a node: what is chosen, the best
pool, and both over the base alone and the documents' static strategies. Rows go to
benchmarks/results/documents_cases.jsonl as they finish; the page to docs/documents-cases.md. Times are simulated
(``assumed``: fabric latencies are). Efficiency is speed-up over the base divided by the ratio of GPUs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.resumable import Row, sweep
from planner.make import plan_bucket
from planner.problem import load_problem
from simulator import presets
from simulator.allocation import Choice
from simulator.formats.files import write_atomically
from simulator.workload import Bucket

LENGTHS = (8192, 16384, 32768, 65536, 131072)
NICS = (1, 2, 4, 8)
ROWS = Path("benchmarks/results/documents_cases.jsonl")
PAGE = Path("docs/documents-cases.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--limit", type=int, default=400, help="simulations a race at most; a twentieth for the best pool"
    )
    arguments = parser.parse_args()
    cases = {f"nic{nics}-{tokens}": (nics, tokens) for nics in NICS for tokens in LENGTHS}
    rows = sweep(cases, partial(run, limit=arguments.limit), ROWS, processes=arguments.processes)
    write_atomically(PAGE, page(rows))


def run(key: str, case: tuple[int, int], *, limit: int) -> Row:
    """Both phases of one length on one cluster."""
    nics, tokens = case
    cluster = "dgx-a100-5" + (f"-nic{nics}" if nics < 8 else "")
    problem = load_problem(presets.scenario("fa-pool").model_copy(update={"cluster": cluster}))
    bucket = Bucket(name=key, min_tokens=1, tokens=tokens, share=1.0)
    problem = replace(problem, workload=problem.workload.model_copy(update={"buckets": (bucket,)}))
    prefill, decode = plan_bucket(problem, bucket, limit=limit)
    return {"nics": nics, "tokens": tokens, "prefill": entry(prefill), "decode": entry(decode)}


def entry(choice: Choice) -> Row:
    """The figures of one phase: seconds, GPUs, names."""
    pool = choice.best_pool
    rivals = {one.name: one.step_s.value for one in choice.baselines if one.step_s is not None}
    return {
        "choice": choice.placement.name,
        "gpus": choice.num_gpus,
        "step_s": choice.metrics.step_s.value,
        "close": choice.too_close_to_call,
        "pool": None if pool is None else pool.name,
        "pool_gpus": 0 if pool is None else pool.pool_gpus,
        "pool_total_gpus": 0 if pool is None else pool.num_gpus,
        "pool_s": None if pool is None or pool.step_s is None else pool.step_s.value,
        "rule": choice.rule.name,
        "rule_s": None if choice.rule.step_s is None else choice.rule.step_s.value,
        "baselines": rivals,
        "gap": choice.search.gap,
    }


def page(rows: list[Row]) -> str:
    """The committed table."""
    lines = [
        "# The documents' cases",
        "",
        "Made by `python -m benchmarks.documents_cases`; rows in `benchmarks/results/documents_cases.jsonl`. Four",
        "layers of 32 heads × 128 on 5 × 8 A100, prefill batch 1, decode batch 32. Times are simulated [assumed: links",
        "nobody measured]. × is the speed-up over the strategy named; *efficiency* is the speed-up over TP8 divided by",
        "the ratio of GPUs.",
        "*gap*: how far the choice may be from the best (0: proved optimal for the simulator).",
    ]
    for phase in ("prefill", "decode"):
        lines += ["", f"## {phase.capitalize()}", "", *_table(rows, phase), "", *_thresholds(rows, phase)]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row], phase: str) -> list[str]:
    head = ("NICs", "tokens", "choice", "GPUs", "ms", "× TP8", "efficiency", "× TP8×PP2", "× TP16×PP2", "× TP8×PP4",
            "best pool", "its GPUs", "ms", "× TP8", "efficiency", "rule, ms", "gap")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        one = row[phase]
        base = one["baselines"]["tp8-pp1"]
        over = [_ratio(one["baselines"].get(name), one["step_s"]) for name in ("tp8-pp2", "tp16-pp2", "tp8-pp4")]
        pool_s, gpus = one["pool_s"], one["pool_total_gpus"]
        cells = [
            str(row["nics"]), f"{row['tokens']:,}", one["choice"] + (" (close)" if one["close"] else ""),
            str(one["gpus"]), f"{1e3 * one['step_s']:.2f}", _ratio(base, one["step_s"]),
            f"{base / one['step_s'] / (one['gpus'] / 8):.0%}", *over, one["pool"] or "none",
            f"8 + {one['pool_gpus']}" if one["pool"] else "",
            "" if pool_s is None else f"{1e3 * pool_s:.2f}", _ratio(base, pool_s),
            "" if pool_s is None else f"{base / pool_s / (gpus / 8):.0%}",
            "" if one["rule_s"] is None else f"{1e3 * one['rule_s']:.2f}", f"{one['gap']:.0%}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ratio(rival_s: float | None, ours_s: float | None) -> str:
    return "" if rival_s is None or ours_s is None else f"{rival_s / ours_s:.2f}"


def _thresholds(rows: list[Row], phase: str) -> list[str]:
    """Of the lengths asked for, the first at which the best pool beats the base alone, by NICs."""
    lines = []
    for nics in NICS:
        mine = [row for row in rows if row["nics"] == nics]
        wins = [
            row["tokens"] for row in mine
            if row[phase]["pool_s"] is not None and row[phase]["pool_s"] < row[phase]["baselines"]["tp8-pp1"]
        ]  # fmt: skip
        chosen = [row["tokens"] for row in mine if "pool" in row[phase]["choice"]]
        best = f"from {min(wins):,} tokens" if wins else "at none of these lengths"
        taken = f"from {min(chosen):,}" if chosen else "never"
        lines.append(f"* {nics} NIC{'s' * (nics > 1)}: a pool beats TP8 alone {best}; it is the best choice {taken}.")
    return lines


if __name__ == "__main__":
    main()
