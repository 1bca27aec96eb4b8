"""python -m benchmarks.validate [--directory out/campaign] [--rounds N] [--places …] [--models …] [-o FILE]

The campaign: on emulated clusters of four ranks, is the plan predicted fastest the fastest when run? For every place,
model, phase and length: calibrate the place once, write what a dozen plans are predicted to take, then run them all in
interleaved rounds. Resumable: what is in the directory is not done again. Needs root (see executor/emulated_hosts.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.campaign.calibrating import calibrated_place, kernel_sweep
from benchmarks.campaign.cells import Cell, all_cells, append, lines
from benchmarks.campaign.figures import Result, cell_figures, summary
from benchmarks.campaign.models import MODELS
from benchmarks.campaign.places import PLACES
from benchmarks.campaign.race import run_race
from executor.emulated_hosts import EmulatedHosts
from executor.supervisor import Supervisor
from simulator.cluster import Cluster
from simulator.profile import Profile
from simulator.simulation.engine import simulate

ROUNDS = 20
PHASES = ("prefill", "decode")
WORLD_TIMEOUT_S = 120.0


def predictions(cell: Cell, cluster: Cluster, profile: Profile) -> dict[str, list[float]]:
    """Candidate → [predicted, p05, p95] seconds."""
    race = cell.race()
    found = {}
    for candidate in cell.candidates:
        program = race.program(candidate.placement)
        middle, low, high = (
            simulate(program, cluster, {profile.gpu.name: profile}, quantile=quantile).duration_s
            for quantile in ("median", "p05", "p95")
        )
        found[candidate.name] = [middle, min(low, middle), max(high, middle)]
    return found


def run_place(place: str, cells: Sequence[Cell], arguments: argparse.Namespace) -> None:
    """Calibrate, predict and run what is missing of one place."""
    folder: Path = arguments.directory
    done = lines(folder / "runs.jsonl")
    todo = [cell for cell in cells if cell.name not in done]
    if not todo:
        return
    with EmulatedHosts(PLACES[place]) as hosts, Supervisor(4, timeout_s=WORLD_TIMEOUT_S, seats=hosts.seats) as world:
        cluster, profile = calibrated_place(folder, PLACES[place], world)
        known = lines(folder / "predictions.jsonl")
        for cell in todo:
            if cell.name not in known:
                append(
                    folder / "predictions.jsonl", {"cell": cell.name, "seconds": predictions(cell, cluster, profile)}
                )
        for number, cell in enumerate(todo, 1):
            began_s = time.monotonic()
            runs = run_race(world, cell.race(), arguments.rounds)
            names = [candidate.name for candidate in cell.candidates]
            kept = {
                name: {"durations_s": run.durations_s, "spans_s": run.spans_s}
                for name, run in zip(names, runs, strict=True)
            }
            append(folder / "runs.jsonl", {"cell": cell.name, "runs": kept})
            took_s = time.monotonic() - began_s
            note(f"{place}: {number} of {len(todo)} cells, {cell.name} took {took_s:.0f} s")


def results(cells: Sequence[Cell], folder: Path, predicted_in: str = "predictions.jsonl") -> list[Result]:
    """Every candidate of every cell that has been run."""
    predicted, done = lines(folder / predicted_in), lines(folder / "runs.jsonl")
    found = []
    for cell in cells:
        if cell.name not in done or cell.name not in predicted:
            continue
        for candidate in cell.candidates:
            seconds = predicted[cell.name]["seconds"][candidate.name]
            durations = tuple(done[cell.name]["runs"][candidate.name]["durations_s"])
            found.append(
                Result(cell.name, cell.phase, cell.tokens, candidate.scheme, candidate.name, *seconds, durations)
            )
    return found


def report(found: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Figures by phase, place and scheme."""
    groups: dict[str, list[Result]] = {"all": list(found)}
    for one in found:
        groups.setdefault(one.phase, []).append(one)
        groups.setdefault(one.cell.split("/")[0], []).append(one)
        groups.setdefault(f"scheme {one.scheme}", []).append(one)
    return {name: summary(members) for name, members in groups.items()}


def show(figures: dict[str, dict[str, float]]) -> None:
    columns = ("error_median", "error_p90", "bias_median", "spread_median", "regret_median", "regret_worst", "tau_median",
               "tau_distinct_median", "coverage", "hit_rate")  # fmt: skip
    print(f"{'':22}" + "".join(f"{column.replace('_median', ''):>14}" for column in columns))
    for name, row in figures.items():
        shown = "".join(
            f"{row[column]:14.2f}" if column.startswith("tau") else f"{row[column]:14.1%}" for column in columns
        )
        print(f"{name:22}{shown}")


def note(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("out/campaign"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--places", nargs="+", default=list(PLACES), choices=list(PLACES))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--cells", action="store_true", help="a line a cell as well")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parsed()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    cells = list(all_cells(arguments.places, arguments.models, arguments.phases))
    kernel_sweep(arguments.directory, cells)
    for place in arguments.places:
        run_place(place, [cell for cell in cells if cell.place == place], arguments)
    found = results(cells, arguments.directory)
    if arguments.cells:
        for cell in cells:
            members = [one for one in found if one.cell == cell.name]
            if members:
                print(
                    json.dumps({k: v if not isinstance(v, float) else round(v, 3) for k, v in as_row(members).items()})
                )
    show(report(found))


def as_row(members: Sequence[Result]) -> dict[str, object]:
    figures = cell_figures(members)
    return {name: getattr(figures, name) for name in ("cell", "chosen", "best", "regret", "tau", "too_close", "hit")}


if __name__ == "__main__":
    main()
