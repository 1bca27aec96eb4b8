"""python -m benchmarks.validate [--directory out/campaign] [--rounds N] [--minutes M] [--places …] [--models …]

The campaign: on emulated clusters of four ranks, is the plan predicted fastest the fastest when run? Sitting by
sitting, of one model at one place: calibrate, write what a dozen plans are predicted to take for each phase and length,
then run them all in interleaved rounds, those again that found the machine slower or faster than it was at first
(executor/pace.py: neighbours of a virtual machine). Then what half of the lengths teach is held against the other half.

Resumable: what is in the directory is not done again. ``--minutes``: no cell begins later than that; ``--commit``: a
sitting's predictions are committed to git before its races. Needs root (executor/emulated_hosts.py says why). A
campaign of all places, models and phases, whole or as far as it ran, is written to benchmarks/results/validate.json;
its misses are added to benchmarks/results/invalidation.jsonl. ``python -m benchmarks.campaign.tables`` then renders it.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.campaign.calibrating import calibrated_place, kernel_sweep, place_paces
from benchmarks.campaign.cells import Cell, all_cells, append, lines, predictions
from benchmarks.campaign.models import MODELS
from benchmarks.campaign.places import PLACES
from benchmarks.campaign.race import run_race
from benchmarks.campaign.recalibrating import held_out
from benchmarks.campaign.report import RESULTS, print_cells, print_figures, results, write_results
from executor.emulated_hosts import EmulatedHosts
from executor.supervisor import Supervisor
from simulator.formats.files import write_atomically

ROUNDS = 20
PHASES = ("prefill", "decode")
WORLD_TIMEOUT_S = 120.0


def run_sitting(cells: Sequence[Cell], folder: Path, arguments: argparse.Namespace, until_s: float) -> None:
    """Calibrate, predict and run what is missing of one model at one place; no race begins after ``until_s``."""
    done, sitting, place = lines(folder / "runs.jsonl"), cells[0].sitting, PLACES[cells[0].place]
    todo = [cell for cell in cells if cell.name not in done]
    if not todo:
        return
    note(f"{sitting}: calibrating")
    calibrated = folder / sitting
    calibrated.mkdir(parents=True, exist_ok=True)
    kernel_sweep(calibrated, cells)
    with EmulatedHosts(place) as hosts, Supervisor(4, timeout_s=WORLD_TIMEOUT_S, seats=hosts.seats) as world:
        cluster, profile = calibrated_place(calibrated, place, world)
        known = lines(folder / "predictions.jsonl")
        for cell in todo:
            if cell.name not in known:
                append(folder / "predictions.jsonl", predictions(cell, cluster, profile))
        if arguments.commit:
            commit_predictions(folder, sitting)
        for cell in todo:
            began_s = time.monotonic()
            if began_s > until_s:
                note(f"{sitting}: out of time before {cell.name}")
                return
            runs = run_race(world, cell.race(), arguments.rounds, paces=place_paces(calibrated, world))
            names = [candidate.name for candidate in cell.candidates]
            kept = {
                name: {"durations_s": run.durations_s, "spans_s": run.spans_s}
                for name, run in zip(names, runs, strict=True)
            }
            append(folder / "runs.jsonl", {"cell": cell.name, "again": runs[0].again, "runs": kept})
            note(f"{cell.name} took {time.monotonic() - began_s:.0f} s, {runs[0].again} rounds again")


def commit_predictions(folder: Path, sitting: str) -> None:
    """Put all predictions so far beside the results, in git, before anything runs."""
    path = RESULTS / "predictions.jsonl"
    write_atomically(path, (folder / "predictions.jsonl").read_text(encoding="utf-8"))
    subprocess.run(["git", "add", "--", str(path)], check=True, cwd=RESULTS)
    if subprocess.run(["git", "diff", "--cached", "--quiet", "--", str(path)], check=False, cwd=RESULTS).returncode:
        message = f"Predictions of the campaign's {sitting}, before it runs"
        subprocess.run(["git", "commit", "--quiet", "-m", message, "--", str(path)], check=True, cwd=RESULTS)


def note(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("out/campaign"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--places", nargs="+", default=list(PLACES), choices=list(PLACES))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no cell begins later than that")
    parser.add_argument("--commit", action="store_true", help="commit a sitting's predictions before its races")
    parser.add_argument("--cells", action="store_true", help="print a line a cell as well")
    parser.add_argument("--no-recalibration", action="store_true", help="only the predictions made beforehand")
    return parser.parse_args(argv)


def main() -> None:
    arguments, began_s = parsed(), time.monotonic()
    folder: Path = arguments.directory
    folder.mkdir(parents=True, exist_ok=True)
    cells = list(all_cells(arguments.places, arguments.models, arguments.phases))
    for _, sitting in groupby(cells, lambda cell: cell.sitting):
        until_s = began_s + 60.0 * arguments.minutes
        if time.monotonic() < until_s:
            run_sitting(list(sitting), folder, arguments, until_s)
    found = {"predicted beforehand": results(cells, folder)}
    if arguments.cells:
        print_cells(found["predicted beforehand"])
    print_figures(found)
    whole = cells == list(all_cells(PLACES, MODELS, PHASES))
    if whole:
        write_results(found, folder)
    if not arguments.no_recalibration:
        note("what runs of half of the lengths teach about the others")
        taught = held_out(cells, folder)
        print_figures(taught)
        if whole:
            write_results(found | taught, folder)


if __name__ == "__main__":
    main()
