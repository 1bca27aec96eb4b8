"""Recalibrating: one round of learning from half of a campaign's runs, held against the other half.

A sitting's runs of two of the four lengths of each phase teach its profile. The other two are predicted with and
without.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.campaign.cells import DECODE_TOKENS, PREFILL_TOKENS, Cell, append, lines, predictions
from benchmarks.campaign.figures import Result
from benchmarks.campaign.report import results
from planner.learning import Lesson, taught
from simulator.cluster import Cluster
from simulator.formats.files import load, to_json, write_atomically
from simulator.profile import load_profile

LENGTHS_OF = {"prefill": (PREFILL_TOKENS[0], PREFILL_TOKENS[2]), "decode": (DECODE_TOKENS[0], DECODE_TOKENS[2])}
RECALIBRATED = "recalibrated.jsonl"


def teaches(cell: Cell) -> bool:
    return cell.tokens in LENGTHS_OF[cell.phase]


def held_out(cells: Sequence[Cell], folder: Path) -> dict[str, list[Result]]:
    """The results of the held-out half, as calibrated and as recalibrated."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(recalibrated, list(sitting), folder) for _, sitting in groupby(cells, lambda cell: cell.sitting)
        ]
        for job in jobs:
            for line in job.result():
                append(folder / RECALIBRATED, line)
    others = [cell for cell in cells if not teaches(cell)]
    return {
        "other lengths, as calibrated": results(others, folder),
        "other lengths, recalibrated": results(others, folder, RECALIBRATED),
    }


def recalibrated(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """Predictions of a sitting's other cells by its profile as taught by the first half; none if all are known already
    or none of that half ran."""
    others, known = [cell for cell in cells if not teaches(cell)], lines(folder / RECALIBRATED)
    if all(cell.name in known for cell in others):
        return []
    taught_by = lessons([cell for cell in cells if teaches(cell)], folder)
    if not taught_by:
        return []
    calibrated = folder / cells[0].sitting
    cluster, profile = load(calibrated / "cluster.json", Cluster), load_profile(calibrated / "profile.json")
    learned = taught(profile, cluster, taught_by)
    write_atomically(calibrated / "recalibrated.json", to_json(learned))
    return [predictions(cell, cluster, learned) for cell in others]


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
