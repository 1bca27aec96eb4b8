"""The command line: parses arguments, calls one plain function, prints. ``plan --help`` imports nothing heavy.

stdout is the result (``--json``: JSON and nothing else), stderr is for people. Exit 0 done, 2 bad input or
infeasible, 1 a run that failed or a defect of ours.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from simulator.collector import collector_paused

EXACTNESS = ("exact", "drops-possible", "model-changing")
OBJECTIVES = {
    "ttft": "shortest time to first token",
    "tpot": "shortest time an output token",
    "tps": "most tokens/s",
    "tps_per_gpu": "most tokens/s a GPU",
    "cost": "fewest GPU-hours a million tokens",
    "joule": "least energy a token, at the boards' limits",
}
MOST = 10**9
Handler = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors meant for users become one line on stderr."""
    from simulator.errors import AttnplanError

    arguments = parser().parse_args(argv)
    try:
        command = handler(arguments.handler)
        if argv is None:
            gc.freeze()  # a process of its own, which needs all of this to its end
        return command(arguments)
    except AttnplanError as error:
        print(f"plan: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("plan: stopped", file=sys.stderr)
        return 130


def handler(name: str) -> Handler:
    """The function ``module:function`` in this package, imported only now; the collector rests, as modules stay."""
    module, function = name.split(":")
    with collector_paused():
        found: Handler = getattr(import_module(f"planner.commands.{module}"), function)
    return found


def parser() -> argparse.ArgumentParser:
    """All commands of DESIGN section 7."""
    root = argparse.ArgumentParser(
        prog="plan",
        description="Plan, simulate and run attention parallelism on GPU clusters.",
        epilog="A preset name or a path goes wherever MODEL, CLUSTER, WORKLOAD, PROFILE or SCENARIO is asked for.",
    )
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    _add_planning(commands)
    _add_allocation(commands)
    _add_calibration(commands)
    _add_rest(commands)
    return root


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return value


def zero_or_more(text: str) -> float:
    """A finite number, 0 or above."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number, 0 or above, got {text!r}")
    return value


def positive(text: str) -> int:
    """A whole number from 1 to a thousand million."""
    if count(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number from 0 to a thousand million."""
    value = int(text)
    if not 0 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"must be from 0 to {MOST}, got {text!r}")
    return value


Commands = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: Commands, name: str, target: str, text: str) -> argparse.ArgumentParser:  # type: ignore[valid-type]
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)  # type: ignore[attr-defined]
    command.set_defaults(handler=target)
    return command


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON and nothing else")


def scenario_options(command: argparse.ArgumentParser) -> None:
    """The inputs of a planning question; options override the scenario's parts."""
    command.add_argument("scenario", nargs="?", help="preset (fa-pool, ma-separation, two-level, local) or path")
    for name in ("model", "cluster", "workload", "profile"):
        command.add_argument(f"--{name}", metavar=name.upper(), help="preset or path")
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in OBJECTIVES.items())
    command.add_argument("--objective", choices=tuple(OBJECTIVES), help=meanings)
    command.add_argument("--max-gpus", type=positive, metavar="N", help="use at most N GPUs")
    command.add_argument("--base-gpus", type=positive, metavar="N", help="feed-forward group of FA Pool")
    command.add_argument("--ttft-slo", type=above_zero, metavar="SECONDS", help="limit on the time to first token")
    command.add_argument("--tpot-slo", type=above_zero, metavar="SECONDS", help="limit on the time an output token")


def _add_planning(commands: Commands) -> None:  # type: ignore[valid-type]
    make = _command(commands, "make", "make:make", "choose the best policy and write allocation.json")
    scenario_options(make)
    make.add_argument("-o", "--output", type=Path, default=Path("allocation.json"), metavar="FILE")
    make.add_argument("--exact", action="store_true", help="prove every choice, beyond the default of 40 simulations")
    make.add_argument("--simulations", type=int, metavar="N", help="a race at most (the gap is stated); default 40")
    make.add_argument(
        "--slo-quantile", choices=("median", "p95"), default="median", help="which predicted value must meet an SLO"
    )
    make.add_argument(
        "--activation", type=zero_or_more, metavar="SECONDS", help="what a batch waits for GPUs the last did not hold"
    )
    make.add_argument(
        "--exactness", choices=EXACTNESS, default="drops-possible", help="what the plan may change of the model"
    )
    _json(make)
    sweep = _command(commands, "sweep", "sweep:sweep", "plan a grid of scenarios, resumably, side by side")
    scenario_options(sweep)
    sweep.add_argument(
        "--vary", action="append", default=[], metavar="FIELD=A,B", help="a field of the scenario; repeat"
    )
    sweep.add_argument("-o", "--output", type=Path, default=Path("sweep.jsonl"), metavar="FILE", help="rows; kept rows")
    sweep.add_argument(
        "--simulations", type=positive, default=4, metavar="N", help="a race at most (the gap is stated)"
    )
    sweep.add_argument("--processes", type=positive, metavar="N", help="on this machine; default: its cores")
    sweep.add_argument("--ray", metavar="ADDRESS", help="plan on a Ray cluster ('local' starts one; extra: ray)")
    _json(sweep)
    compare = _command(commands, "compare", "compare:compare", "all schemes side by side on one workload")
    scenario_options(compare)
    compare.add_argument("--seed", type=count, default=0)
    compare.add_argument("--per-category", type=positive, default=1000, metavar="N", help="sequences a length category")
    compare.add_argument("--requests-per-s", type=above_zero, metavar="RATE", help="offered load of every scheme")
    _json(compare)


def _add_allocation(commands: Commands) -> None:  # type: ignore[valid-type]
    for name, text in (
        ("explain", "why this plan, what binds it, what would flip it"),
        ("verify", "re-check an allocation with code the search does not share"),
    ):
        command = _command(commands, name, f"allocation:{name}", text)
        command.add_argument("allocation", type=Path)
        _json(command)
        if name == "explain":
            command.add_argument("--no-flips", action="store_true", help="from the file alone: simulate nothing")
    simulate = _command(commands, "simulate", "allocation:simulate", "the timeline of one entry of a plan")
    _entry_options(simulate)
    simulate.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome/Perfetto trace")
    _json(simulate)
    run = _command(commands, "run", "run:run", "run the plan: prefill, then decode, checked against the reference")
    run.add_argument("allocation", type=Path)
    run.add_argument("--tokens", type=positive, metavar="N", help="prompt length (default: the first bucket's)")
    run.add_argument(
        "--candidate", choices=("chosen", "pool", "rule"), default="chosen", help="the plan, its best pool, or the rule"
    )
    run.add_argument("--on", choices=("auto", "cpu", "emulated", "cuda", "replay"), default="auto")
    run.add_argument("--repeats", type=positive, default=3, metavar="N")
    run.add_argument("--decode-tokens", type=count, default=32, metavar="N")
    run.add_argument("--time-limit", type=above_zero, default=300.0, metavar="SECONDS")
    _run_options(run)
    run.add_argument("-o", "--output", type=Path, default=Path("measurement.json"), metavar="FILE")
    _json(run)
    validate = _command(commands, "validate", "validate:validate", "predicted vs measured, per operation and per step")
    validate.add_argument("allocation", type=Path)
    validate.add_argument("measurements", type=Path, nargs="+")
    validate.add_argument("--trace", type=Path, metavar="FILE", help="both timelines overlaid, for Perfetto")
    _json(validate)


def _run_options(run: argparse.ArgumentParser) -> None:
    """What generates which tokens, and how many batches."""
    run.add_argument("--weights", metavar="DIR", help="model directory: config.json, *.safetensors (default: seeded)")
    run.add_argument("--temperature", type=float, default=0.0, help="sample at this temperature (default 0: greedy)")
    run.add_argument("--top-k", type=int, default=0, metavar="N", help="sample among the N likeliest (0: all)")
    run.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest that reach P")
    run.add_argument("--seed", type=count, default=0, help="of sampled tokens and drawn batches")
    run.add_argument("--backend", metavar="NAME", help="attention backend, e.g. triton (default: the first that works)")
    run.add_argument("--graphs", action="store_true", help="replay decode steps as CUDA graphs, where there is a GPU")
    run.add_argument(
        "--transport",
        choices=("mesh", "gloo"),
        default="mesh",
        help="how CPU ranks' values travel: connections they serve themselves, or torch.distributed over gloo",
    )
    run.add_argument(
        "--compress", choices=("none", "int8", "topk"), default="none", help="pack messages; says what that loses"
    )
    run.add_argument("--batches", type=int, metavar="N", help="serve N batches, switching placements; writes a log")
    run.add_argument("--requests", type=Path, metavar="TRACE", help="their lengths (default: the plan's workload)")


def _entry_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("allocation", type=Path)
    command.add_argument("--phase", choices=("prefill", "decode"), default="prefill")
    command.add_argument("--tokens", type=positive, metavar="N", help="prompt length (default: the first bucket's)")


def _add_calibration(commands: Commands) -> None:  # type: ignore[valid-type]
    calibrate = _command(commands, "calibrate", "calibrate:calibrate", "measure this machine, or import measurements")
    calibrate.add_argument("--device", choices=("cpu", "cuda"), default=None)
    calibrate.add_argument("--budget", type=above_zero, default=None, metavar="SECONDS")
    calibrate.add_argument("--plan", type=Path, metavar="ALLOCATION", help="time this plan's kernels first")
    calibrate.add_argument("--like", metavar="PROFILE", help="correct this profile of the same generation")
    calibrate.add_argument("-o", "--output", type=Path, default=Path("profile.json"), metavar="FILE")
    actions = calibrate.add_subparsers(metavar="ACTION", required=False)
    imported = _command(actions, "import", "calibrate:import_", "a profile from other people's tables")
    imported.add_argument("source", choices=("aiconfigurator", "engine-all-reduce", "nccl-tests", "vidur"))
    imported.add_argument("files", type=Path, nargs="*", help="files, or the systems folder")
    imported.add_argument("--system", default="a100_sxm")
    imported.add_argument("--framework", default="vllm")
    imported.add_argument("-o", "--output", type=Path, default=Path("profile.json"), metavar="FILE")
    update = _command(actions, "update", "calibrate:update", "refit residuals and intervals from runs")
    update.add_argument("profile")
    update.add_argument("measurements", type=Path, nargs="+")
    update.add_argument("--allocation", type=Path, required=True)
    update.add_argument("-o", "--output", type=Path, default=Path("profile.json"), metavar="FILE")
    holdout = _command(actions, "holdout", "calibrate:holdout", "the accuracy table, on rows held out of the fit")
    holdout.add_argument("--system", default="a100_sxm")
    _json(holdout)
    predict = _command(commands, "predict", "calibrate:predict", "seconds, p05, p95 and tag for a table of operations")
    predict.add_argument("profile")
    predict.add_argument("operations", type=Path, metavar="OPS.csv")
    predict.add_argument("-o", "--output", type=Path, default=None, metavar="FILE")


def _add_rest(commands: Commands) -> None:  # type: ignore[valid-type]
    paper = _command(commands, "paper", "paper:paper", "one row a statement of the documents: claim, ours, verdict")
    paper.add_argument("--document", metavar="LETTER", help="F, K, E, M or T")
    _json(paper)
    launch = _command(commands, "launch", "launch:launch", "the commands and manifests that start a plan on a cluster")
    launch.add_argument("allocation", type=Path)
    target = launch.add_mutually_exclusive_group()
    target.add_argument("--slurm", action="store_true")
    target.add_argument("--kubernetes", action="store_true")
    cluster = _command(commands, "cluster", "cluster:import_topo", "a cluster file from nvidia-smi topo -m")
    cluster.add_argument("action", choices=("import",))
    cluster.add_argument("source", choices=("topo",))
    cluster.add_argument("file", type=Path)
    cluster.add_argument("--gpu", required=True, help="GPU type, e.g. A100-SXM4-80GB")
    cluster.add_argument("--nodes", type=positive, default=1)
    cluster.add_argument(
        "--nic-gbit-s", type=above_zero, default=None, help="rate of one NIC; the tool does not print it"
    )
    cluster.add_argument(
        "--nics-per-node", type=positive, default=None, help="where the matrix lists none, or too many"
    )
    cluster.add_argument(
        "--pcie-gbyte-s", type=above_zero, default=None, help="rate between GPUs without NVLink, each way"
    )
    cluster.add_argument("-o", "--output", type=Path, default=Path("cluster.yaml"), metavar="FILE")
    _add_workload(commands)
    doctor = _command(commands, "doctor", "doctor:doctor", "what this machine has and what attnplan can do on it")
    _json(doctor)
    schema = _command(commands, "schema", "schema:print_schema", "the JSON Schema of a file")
    schema.add_argument("name")
    app = _command(commands, "app", "app:app", "the what-if explorer in a browser, on 127.0.0.1")
    app.add_argument("--port", type=int, default=8501)


def _add_workload(commands: Commands) -> None:  # type: ignore[valid-type]
    workload = _command(commands, "workload", "workload:import_trace", "a workload file from a log of requests")
    workload.add_argument("action", choices=("import",))
    workload.add_argument("source", choices=("trace",))
    workload.add_argument("file", type=Path, help="Azure's CSV or Mooncake's JSON lines")
    workload.add_argument("--buckets", type=positive, default=8, metavar="N", help="length buckets of equal share")
    workload.add_argument("--prefill-batch", type=positive, metavar="N", help="prompts a prefill step (default 1)")
    workload.add_argument("--decode-batch", type=positive, metavar="N", help="sequences a decode step (default 1)")
    workload.add_argument("-o", "--output", type=Path, default=Path("workload.yaml"), metavar="FILE")


if __name__ == "__main__":
    sys.exit(main())
