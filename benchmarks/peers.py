"""Peers: aiconfigurator, GenZ and llm-analysis beside attnplan, on the same questions, in one run on one machine.

    python -m benchmarks.peers --venvs DIR [--make] [--rounds 3] [-o benchmarks/results/peers.json]

DIR holds one virtual environment a peer (DIR/venv-genz, …); ``--make`` makes those that are missing (2 GB in all).
Each peer is asked by ``benchmarks/probes/<peer>_probe.py`` in its own environment and process. Timed parts are
interleaved: in every round each tool answers once, and medians are reported. ``-o`` also writes the table as Markdown.

What is and is not comparable is in the table's own words; the last section says what each peer cannot express.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simulator.formats.files import write_atomically

PROBES = Path(__file__).parent / "probes"
PEERS = {"aiconfigurator": "aiconfigurator==0.12.0", "genz": "genz-llm==0.0.16", "llm_analysis": "llm-analysis==0.2.2"}
TOOLS = ("attnplan", *PEERS)
LIMIT_S = 600
BATCH = 8
CASES = [
    {"model": model, "gpu": gpu, "tensor": tensor, "tokens": tokens, "batch": BATCH}
    for model, gpu, tensor, tokens in (
        ("llama-3.1-8b", "a100", 1, 4096),
        ("llama-3.1-8b", "h100", 1, 4096),
        ("llama-3.1-8b", "h100", 1, 32768),
        ("llama-3.1-70b", "a100", 8, 8192),
        ("llama-3.1-70b", "h100", 8, 8192),
        ("llama-3.1-70b", "h100", 8, 32768),
        ("mixtral-8x7b", "h100", 8, 8192),
        ("fa-pool", "a100", 8, 16384),
    )
]
QUESTIONS = {
    "Llama-3.1-70B on 16 H100, 8,192 tokens in, 1,024 out": {
        "model": "llama-3.1-70b", "gpu": "h100", "gpus": 16, "tokens": 8192, "output_tokens": 1024, "batch": 32,
    },
    "the documents' model on 40 A100, 16,384 tokens in, 128 out": {
        "model": "fa-pool", "gpu": "a100", "gpus": 40, "tokens": 16384, "output_tokens": 128, "batch": 32,
    },
}  # fmt: skip
CANNOT = {
    "aiconfigurator": "models that it does not know by name (the documents'), placements beyond its worker layouts "
    "(TP, PP, DP, expert parallel, disaggregated prefill and decode, attention and experts apart): no pool joining for "
    "attention, no KV-split decode; NIC counts, rails and shared links (one bandwidth inside and one between nodes); "
    "intervals; a proof; running the plan (it writes deployment files)",
    "genz": "overlap, contention, NICs and rails (closed forms for collectives); measured kernels (a roofline times "
    "one efficiency, 1 by default); any placement beyond TP × PP × EP; layouts that use all GPUs (its search takes "
    "products below the number given); intervals; running the plan",
    "llm_analysis": "search (this script loops over TP × PP × batch); gated and free intermediate sizes in FLOPs (its "
    "MLP is 16·b·s·h²); causal attention (it counts the whole square); mixture-of-experts in inference time; decode's "
    "attention beyond reading the cache; NICs, overlap, contention; intervals; running the plan",
    "attnplan": "speculative decoding, worker layouts with data parallelism over whole replicas (aiconfigurator has "
    "both); models with latent attention or Mamba, refused by name",
}
NOTES = (
    "TTFT: one sequence's prefill step. TPOT: one decode step of 8 sequences at that length. Tensor parallel inside "
    "one node. No tool's figure here includes a scheduler, a tokenizer or queueing.",
    "attnplan's kernels are fitted on aiconfigurator's tables (vLLM), so that these two agree is no independent proof; "
    "GenZ and llm-analysis know datasheets only. Nobody's figure was measured here: this compares predictions.",
    "llm-analysis is given 0.6 of the peak FLOP/s and 0.7 of the memory bandwidth (it has no default for the first); "
    "its intermediate size is 1.5 × to stand for a gated MLP's bytes. It knows no such size in FLOPs.",
    "Plans a second is each tool's own search, not the same set of plans: attnplan's lattice has context parallelism, "
    "pools and hybrids, every plan bounded and those that may win simulated event by event; aiconfigurator's plans are "
    "layouts × batches that its sweep returns; GenZ's TP × PP × batch, each evaluated for both phases.",
    "Elapsed times suffer from whatever else the machine does; CPU seconds (a tool's processes together) hardly do. "
    "First result: from starting the process to the first prediction, imports included. Install: bytes of the tool and "
    "all it requires, Python itself apart.",
    "Not in the table: vidur (needs downloads to give a result), calculon (no package: the name on the index is "
    "another project).",
)


def python_of(tool: str, venvs: Path) -> str:
    return sys.executable if tool == "attnplan" else str(venvs / f"venv-{tool}" / "bin" / "python")


def ask(tool: str, venvs: Path, mode: str, question: dict[str, Any]) -> dict[str, Any]:
    """One process; its answer and ``wall_s``. A failure is an answer too."""
    line = [python_of(tool, venvs), str(PROBES / f"{tool}_probe.py"), mode, json.dumps(question)]
    begun = time.perf_counter()
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {LIMIT_S} s"}
    wall_s = time.perf_counter() - begun
    found = next((row[6:] for row in done.stdout.splitlines() if row.startswith("ANSWER")), None)
    if found is None:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"error": last[:200]}
    return {"answer": json.loads(found), "wall_s": wall_s}


def make(venvs: Path) -> None:
    """The environments that are missing."""
    for tool, requirement in PEERS.items():
        folder = venvs / f"venv-{tool}"
        if not folder.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", requirement], check=True)


def measure(venvs: Path, rounds: int) -> dict[str, Any]:
    """Everything that the table shows."""
    first = [{**CASES[1], "warm": False}]
    warm = [{**case, "warm": index == 1} for index, case in enumerate(CASES)]
    result: dict[str, Any] = {
        "about": {tool: ask(tool, venvs, "about", {}).get("answer") for tool in TOOLS},
        "cases": CASES,
        "predicted": {tool: ask(tool, venvs, "predict", {"cases": warm}).get("answer") for tool in TOOLS},
        "first_result_s": {tool: [] for tool in TOOLS},
        "searches": {name: {tool: [] for tool in TOOLS} for name in QUESTIONS},
        "rounds": rounds,
        "environment": {
            "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "python": platform.python_version(),
            "tag": "measured",
        },
    }  # fmt: skip
    for turn in range(rounds):
        for tool in TOOLS:
            print(f"round {turn + 1} of {rounds}: {tool}", file=sys.stderr)
            result["first_result_s"][tool].append(ask(tool, venvs, "predict", {"cases": first}).get("wall_s"))
            for name, question in QUESTIONS.items():
                result["searches"][name][tool].append(ask(tool, venvs, "search", question))
    return result


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    environment = result["environment"]
    parts = [
        "# attnplan beside its peers",
        f"`python -m benchmarks.peers`, {result['rounds']} interleaved rounds, {environment['cores']} cores, load "
        f"{environment['load']:.1f} when it began. Times are medians; predictions are each tool's own."
        + (f" This table: {result['note']}." if "note" in result else ""),
        "## Predicted, milliseconds (TTFT / TPOT)",
        _predictions(result),
        "## Speed and size",
        _speed(result),
        *(_search(name, rows) for name, rows in result["searches"].items()),
        "## What the figures mean",
        "\n".join(f"* {note}" for note in NOTES),
        "## What each cannot express",
        "\n".join(f"* **{tool}**: {words}." for tool, words in CANNOT.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    return "\n".join([_row(head), _row("---" for _ in head), *(_row(row) for row in rows)])


def _predictions(result: dict[str, Any]) -> str:
    rows: list[tuple[object, ...]] = []
    for index, case in enumerate(result["cases"]):
        cells = []
        for tool in TOOLS:
            found = (result["predicted"][tool] or [{"error": "no answer"}] * len(CASES))[index]
            both = (found.get("ttft_s"), found.get("tpot_s"))
            cells.append("cannot" if None in both else f"{both[0] * 1e3:,.4g} / {both[1] * 1e3:,.3g}")
        rows.append((f"{case['model']}, {case['gpu'].upper()} × {case['tensor']}, {case['tokens']:,} tokens", *cells))
    return _table(("model, GPUs, length", *TOOLS), rows)


def _speed(result: dict[str, Any]) -> str:
    rows: list[tuple[object, ...]] = []
    for tool in TOOLS:
        about, predicted = result["about"][tool] or {}, result["predicted"][tool] or []
        span = next((one["evaluation_s"] for one in predicted if "evaluation_s" in one), None)
        first = median(result["first_result_s"][tool])
        size = f"{about.get('bytes', 0) / 1e6:,.0f} MB"
        if "planning_bytes" in about:
            size += f" ({about['planning_bytes'] / 1e6:,.0f} MB without torch and Streamlit, which planning needs not)"
        rows.append(
            (
                f"{tool} {about.get('version', '?')}", f"{first:.2f} s" if first else "none",
                f"{span * 1e3:.3g} ms" if span else "none", size,
            )
        )  # fmt: skip
    return _table(("tool", "first result", "one warm evaluation", "install"), rows)


def _search(name: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    lines: list[tuple[object, ...]] = []
    for tool in TOOLS:
        found = [one["answer"] for one in rows[tool] if "answer" in one]
        if not found:
            lines.append((tool, "cannot", "", "", "", "", rows[tool][0]["error"][:90]))
            continue
        seconds, one = statistics.median(row["seconds"] for row in found), found[0]
        cpu_s = median(row.get("cpu_s") for row in found)
        plans = f"{one['plans']:,}" + (f" ({one['simulated']} simulated)" if "simulated" in one else "")
        lines.append(
            (
                tool,
                plans,
                f"{seconds:.3g} s",
                f"{cpu_s:.3g} s" if cpu_s else "",
                f"{one['plans'] / seconds:.3g}",
                f"{one['plans'] / cpu_s:.3g}" if cpu_s else "",
                f"{one['best']} ({one['objective']})",
            )
        )
    head = ("tool", "distinct plans", "elapsed", "CPU", "plans/s", "plans/CPU-s", "its best")
    return f"## Search: {name}\n\n" + _table(head, lines)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--venvs", type=Path, required=True)
    arguments.add_argument("--make", action="store_true")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    if chosen.make:
        make(chosen.venvs)
    result = measure(chosen.venvs, chosen.rounds)
    if chosen.output:
        write_atomically(chosen.output, json.dumps(result, indent=1) + "\n")
        write_atomically(chosen.output.with_suffix(".md"), table(result))
    print(table(result), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
