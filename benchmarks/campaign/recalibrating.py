"""Recalibrating: one round of learning from half of a campaign's runs, held against the other half.

A place's runs teach that place's profile: once those of two of the four lengths of each phase, once those of two of
the four models. The other half is predicted with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from benchmarks.campaign.cells import DECODE_TOKENS, PREFILL_TOKENS, Cell, append, lines, predictions
from benchmarks.campaign.figures import Result
from benchmarks.campaign.report import results
from planner.learning import Lesson, taught
from simulator.cluster import Cluster
from simulator.formats.files import load, to_json, write_atomically
from simulator.profile import load_profile

LENGTHS_OF = {"prefill": (PREFILL_TOKENS[0], PREFILL_TOKENS[2]), "decode": (DECODE_TOKENS[0], DECODE_TOKENS[2])}
TEACHING_MODELS = ("grouped", "routed")

Teaches = Callable[[Cell], bool]


def by_length(cell: Cell) -> bool:
    return cell.tokens in LENGTHS_OF[cell.phase]


def by_model(cell: Cell) -> bool:
    return cell.model in TEACHING_MODELS


SPLITS: dict[str, Teaches] = {"lengths": by_length, "models": by_model}


def held_out(cells: Sequence[Cell], folder: Path) -> dict[str, list[Result]]:
    """The results of the held-out half of both splits, as calibrated and as recalibrated."""
    places = list(dict.fromkeys(cell.place for cell in cells))
    jobs = [(split, place) for split in SPLITS for place in places]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        done = [pool.submit(recalibrate, split, [c for c in cells if c.place == p], folder) for split, p in jobs]
        for job in done:
            job.result()
    found = {}
    for split, teaches in SPLITS.items():
        others = [cell for cell in cells if not teaches(cell)]
        found[f"other {split}, as calibrated"] = results(others, folder)
        found[f"other {split}, recalibrated"] = results(others, folder, f"recalibrated-{split}.jsonl")
    return found


def recalibrate(split: str, cells: Sequence[Cell], folder: Path) -> None:
    """Teach one place's profile and predict what it was not taught; one file a place, then appended."""
    place, teaches = cells[0].place, SPLITS[split]
    path = folder / f"recalibrated-{split}.jsonl"
    others = [cell for cell in cells if not teaches(cell)]
    known = lines(path)
    if all(cell.name in known for cell in others):
        return
    taught_by = lessons([cell for cell in cells if teaches(cell)], folder)
    if not taught_by:
        return
    cluster, profile = load(folder / f"cluster-{place}.json", Cluster), load_profile(folder / f"profile-{place}.json")
    learned = taught(profile, cluster, taught_by)
    write_atomically(folder / f"recalibrated-{split}-{place}.json", to_json(learned))
    for cell in others:
        append(path, predictions(cell, cluster, learned))


def lessons(cells: Sequence[Cell], folder: Path) -> list[Lesson]:
    """What the cells' runs say."""
    done = lines(folder / "runs.jsonl")
    found = []
    for cell in cells:
        race = cell.race()
        for candidate in cell.candidates if cell.name in done else ():
            run = done[cell.name]["runs"][candidate.name]
            durations = run["durations_s"]
            program = race.program(candidate.placement)
            found.append(Lesson(program, median(durations), run["spans_s"], durations, cell.name))
    return found
