"""Cells: the campaign's questions (place × model × phase × length), and what is kept of each on disk.

A prediction is on disk before its cell runs. Files are lines of JSON, one a cell, each written whole or not at all; a
line that a crash cut short is dropped when they are read again, and its cell runs again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.campaign.candidates import Candidate, candidates
from benchmarks.campaign.models import MODELS, ROUTED_TEACHER, TEACHER, TEACHERS
from benchmarks.campaign.places import PLACES
from benchmarks.campaign.race import Race
from planner.prediction import predict_step
from simulator.cluster import Cluster
from simulator.model import Model
from simulator.profile import Profile
from simulator.workload import Phase

PREFILL_TOKENS, PREFILL_BATCH = (64, 128, 192, 288), 2  # up to 512 they alone would take half an hour
DECODE_TOKENS, DECODE_BATCH = (128, 256, 512, 1024), 32


TEACHER_TOKENS: dict[str, dict[Phase, tuple[int, ...]]] = {
    TEACHER.name: {"prefill": (96, 320), "decode": (192, 1280)},
    ROUTED_TEACHER.name: {"prefill": (160,), "decode": (384,)},
}
TEACHER_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Cell:
    """One question of the campaign."""

    place: str
    model: str
    phase: Phase
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.place}/{self.model}/{self.phase}/{self.tokens}"

    @property
    def sitting(self) -> str:
        """What is calibrated together: one model at one place. The folder of its calibration, in the campaign's."""
        return f"{self.place}/{self.model}"

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(node for node, _, _ in PLACES[self.place].rank_nodes())

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return candidates(self.its_model, self.phase, self.nodes)

    @property
    def its_model(self) -> Model:
        return TEACHERS[self.model] if self.model in TEACHERS else MODELS[self.model]

    def race(self) -> Race:
        batch = PREFILL_BATCH if self.phase == "prefill" else DECODE_BATCH
        placements = tuple(candidate.placement for candidate in self.candidates)
        return Race(self.its_model, self.phase, self.tokens, batch, self.nodes, placements)


def all_cells(places: Iterable[str], models: Iterable[str], phases: Iterable[Phase]) -> Iterator[Cell]:
    """Place by place and model by model, as each is calibrated just before it runs."""
    models, phases = list(models), list(phases)
    for place in places:
        for model in models:
            for phase in phases:
                for tokens in PREFILL_TOKENS if phase == "prefill" else DECODE_TOKENS:
                    yield Cell(place, model, phase, tokens)


def teaching_cells(place: str) -> list[Cell]:
    """What a place is taught by: other models at other lengths."""
    return [
        Cell(place, model, phase, tokens)
        for model, phases in TEACHER_TOKENS.items()
        for phase, all_ in phases.items()
        for tokens in all_
    ]


def predictions(cell: Cell, cluster: Cluster, profile: Profile) -> dict[str, Any]:
    """The cell's line: candidate → [predicted, p05, p95] seconds, and by what log two plans must be predicted apart for
    their order to be sure."""
    race, found = cell.race(), {}
    for candidate in cell.candidates:
        step = predict_step(race.program(candidate.placement), cluster, {profile.gpu.name: profile})
        found[candidate.name] = [step.duration_s, step.p05_s, step.p95_s]
    return {"cell": cell.name, "seconds": found, "apart": profile.step_log_apart}


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line, on disk when this returns."""
    data = (json.dumps(line) + "\n").encode()
    with path.open("ab") as file:
        if file.tell() and path.read_bytes()[-1:] != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def lines(path: Path) -> dict[str, dict[str, Any]]:
    """Cell → its last whole line."""
    if not path.exists():
        return {}
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return {row["cell"]: row for row in rows}
