"""python -m benchmarks.hf_sweep [FOLDER] [--processes N] [--simulations N]

Every Hugging Face config.json of a folder (default ../shared/data/hf-configs) planned on three shipped clusters: a
plan, or the one line that says what is not modelled or does not fit. Few simulations a race (the gap is stated): this
shows that every model gets an answer, not the last per cent of it. Rows go to benchmarks/results/hf_sweep.jsonl as
they finish (a run that was stopped goes on there; delete the file to begin again), the table to
benchmarks/results/hf_sweep.md.
"""

from __future__ import annotations

import argparse
import time
import traceback
from pathlib import Path

from benchmarks.resumable import Row, sweep
from planner.make import plan_bucket
from planner.problem import load_problem
from simulator.allocation import Choice
from simulator.errors import AttnplanError
from simulator.formats.files import write_atomically
from simulator.scenario import Scenario
from simulator.workload import Bucket

CLUSTERS = {"dgx-a100-5": "a100-sxm4-80gb", "dgx-h100-16": "h100-sxm", "dgx-h200-2": "h200-sxm"}
ROWS = Path("benchmarks/results/hf_sweep.jsonl")
TABLE = Path("benchmarks/results/hf_sweep.md")
TOKENS, LIMIT = 4096, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[2])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/data/hf-configs"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--simulations", type=int, default=LIMIT, help="a race at most, beside the pools'")
    arguments = parser.parse_args()
    configs = sorted(arguments.folder.glob("*.json"))
    cases = {
        f"{path.stem} on {cluster}": (str(path), cluster, arguments.simulations)
        for path in configs
        for cluster in CLUSTERS
    }
    write_atomically(TABLE, table(sweep(cases, run, ROWS, processes=arguments.processes)))


def run(key: str, case: tuple[str, str, int]) -> Row:
    """One model on one cluster: its two placements, a one-line refusal, or a traceback (a defect of ours)."""
    config, cluster, limit = case
    row: Row = {"model": Path(config).stem.removesuffix("_config"), "cluster": cluster}
    began_s = time.process_time()
    try:
        row |= plan(config, cluster, limit)
    except AttnplanError as error:
        row |= {"refused": str(error).replace(config, Path(config).name), "exit_code": error.exit_code}
    except Exception:
        row |= {"traceback": traceback.format_exc()}
    return row | {"cpu_s": round(time.process_time() - began_s, 1)}


def plan(config: str, cluster: str, limit: int) -> Row:
    scenario = Scenario(
        name="hf", model=config, cluster=cluster, workload="fa-pool", profile=CLUSTERS[cluster], objective="ttft"
    )
    problem = load_problem(scenario)
    bucket = Bucket(name="all", min_tokens=1, tokens=min(TOKENS, problem.model.max_position_embeddings), share=1.0)
    prefill, decode = plan_bucket(problem, bucket, limit=limit)
    return {"prefill": entry(prefill), "decode": entry(decode), "tokens": bucket.tokens, "simulations": limit}


def entry(choice: Choice) -> Row:
    headroom = min(row.headroom_bytes for row in choice.memory)
    return {
        "placement": choice.placement.name,
        "gpus": choice.num_gpus,
        "step_s": choice.metrics.step_s.value,
        "gap": choice.search.gap,
        "headroom_bytes": headroom,
    }


def table(rows: list[Row]) -> str:
    """The committed table: a plan or a line for every model and cluster."""
    planned = [row for row in rows if "prefill" in row]
    broken = [row for row in rows if "traceback" in row]
    limits = " or ".join(str(limit) for limit in sorted({row["simulations"] for row in planned}))
    lines = [
        f"{len(rows)} questions: {len(planned)} plans, {len(rows) - len(planned) - len(broken)} refused in one line, "
        f"{len(broken)} tracebacks.",
        f"Prompts of {TOKENS} tokens (or the model's most), prefill batch 1, decode batch 32, at most {limits} "
        "simulations a race beside the pools': the *gap* says how far a choice may be from the best.",
        "",
        "| model | cluster | prefill | ms | gap | decode | ms | gap | least headroom, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| {row['model']} | {row['cluster']} | "
        if "prefill" not in row:
            lines.append(start + (row.get("refused") or "**traceback**") + " |" * 7)
            continue
        cells = []
        for one in (row["prefill"], row["decode"]):
            cells += [f"{one['placement']} ({one['gpus']} GPUs)", f"{1e3 * one['step_s']:.2f}", f"{one['gap']:.0%}"]
        headroom = min(row["prefill"]["headroom_bytes"], row["decode"]["headroom_bytes"])
        lines.append(start + " | ".join(cells) + f" | {headroom / 1e9:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
