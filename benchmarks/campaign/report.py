"""Report: a campaign's figures on screen and on disk, and the misses it adds to the invalidation set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign.cells import Cell, append, lines
from benchmarks.campaign.figures import CellFigures, Result, cell_figures, summary
from simulator.cluster import Cluster
from simulator.costs.pricing import price
from simulator.formats.files import load, write_atomically
from simulator.profile import load_profile
from simulator.program import Collective, Recv, Send

RESULTS = Path(__file__).parent.parent / "results"
MISS_ERROR, MISS_REGRET = 0.20, 0.10  # a step's error, a cell's regret, beyond which the prediction is invalid
COLUMNS = {
    "error_median": "error", "error_p90": "p90", "error_worst": "worst", "bias_median": "bias",
    "spread_median": "spread", "regret_median": "regret", "regret_worst": "worst", "tau_median": "tau",
    "tau_distinct_median": "distinct", "coverage": "coverage", "hit_rate": "close hit",
}  # fmt: skip


def results(cells: Sequence[Cell], folder: Path, predicted_in: str = "predictions.jsonl") -> list[Result]:
    """Every candidate of every cell that was predicted and run."""
    predicted, done = lines(folder / predicted_in), lines(folder / "runs.jsonl")
    found = []
    for cell in cells:
        if cell.name not in done or cell.name not in predicted:
            continue
        for one in cell.candidates:
            seconds = predicted[cell.name]["seconds"][one.name]
            durations = tuple(done[cell.name]["runs"][one.name]["durations_s"])
            apart = predicted[cell.name].get("apart") or math.inf
            found.append(Result(cell.name, cell.phase, cell.tokens, one.scheme, one.name, *seconds, durations, apart))
    return found


def figures(found: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Summaries of all, by phase, by place and by scheme."""
    groups: dict[str, list[Result]] = {"all": list(found)}
    for one in found:
        for name in (one.phase, one.cell.split("/")[0], f"scheme {one.scheme}"):
            groups.setdefault(name, []).append(one)
    return {name: summary(members) for name, members in groups.items()}


def print_figures(found: Mapping[str, Sequence[Result]]) -> None:
    for title, members in found.items():
        if not members:
            continue
        print(f"\n== {title}")
        print(f"{'':20}" + "".join(f"{shown:>10}" for shown in COLUMNS.values()))
        for name, row in figures(members).items():
            print(f"{name:20}" + "".join(f"{shown(column, row[column]):>10}" for column in COLUMNS))


def shown(column: str, value: float) -> str:
    return f"{value:.2f}" if column.startswith("tau") else f"{value:.1%}"


def print_cells(found: Sequence[Result]) -> None:
    """A line a cell."""
    for members in by_cell(found).values():
        one = cell_figures(members)
        print(
            f"{one.cell:36} chosen {one.chosen:16} best {one.best:16} regret {one.regret:6.1%} "
            f"({one.regret_low:.1%} – {one.regret_high:.1%})  tau {one.tau:5.2f} {one.tau_distinct:5.2f}  "
            f"{'too close' if one.too_close else 'clear':9} {'hit' if one.hit else 'miss'}"
        )


def by_cell(found: Sequence[Result]) -> dict[str, list[Result]]:
    cells: dict[str, list[Result]] = {}
    for one in found:
        cells.setdefault(one.cell, []).append(one)
    return cells


def write_results(found: Mapping[str, Sequence[Result]], folder: Path) -> None:
    """The campaign, as far as it ran, to results/validate.json; its misses to the invalidation set."""
    import torch

    from executor.environment import environment

    beforehand, runs = found["predicted beforehand"], lines(folder / "runs.jsonl")
    document = {
        "environment": environment(torch.device("cpu"), "cpu").model_dump(),
        "rounds": len(beforehand[0].durations_s),
        "cells": len(by_cell(beforehand)),
        "again": sum(runs[cell].get("again", 0) for cell in by_cell(beforehand)),
        "figures": {title: known(figures(members)) for title, members in found.items() if members},
        "rows": [row_of(one) for one in beforehand],
    }
    write_atomically(RESULTS / "validate.json", json.dumps(document, allow_nan=False) + "\n")
    add_misses(RESULTS / "invalidation.jsonl", beforehand, folder)


def known(groups: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Without the figures that a group cannot have (no two of its plans to be ranked): JSON knows no NaN."""
    return {name: {key: value for key, value in row.items() if value == value} for name, row in groups.items()}


def row_of(one: Result) -> dict[str, Any]:
    place, model, phase, tokens = one.cell.split("/")
    return {
        "place": place, "model": model, "phase": phase, "tokens": int(tokens), "scheme": one.scheme,
        "candidate": one.name, "predicted_s": one.predicted_s, "p05_s": one.p05_s, "p95_s": one.p95_s,
        "measured_s": [round(seconds, 7) for seconds in one.durations_s],
    }  # fmt: skip


def add_misses(path: Path, found: Sequence[Result], folder: Path) -> None:
    """Append steps beyond ``MISS_ERROR`` and cells beyond ``MISS_REGRET``, each once; nothing is ever taken out."""
    known, runs = lines(path), lines(folder / "runs.jsonl")
    for members in by_cell(found).values():
        figure = cell_figures(members)
        for one in members:
            key = f"{one.cell}/{one.name}"
            if abs(one.error) > MISS_ERROR and key not in known:
                spans = runs[one.cell]["runs"][one.name]["spans_s"]
                append(path, {"cell": key, **step_miss(one, spans, folder)})
        if figure.regret > MISS_REGRET and figure.cell not in known:
            append(path, {"cell": figure.cell, **regret_miss(figure)})


def step_miss(one: Result, spans_s: Sequence[Sequence[float]], folder: Path) -> dict[str, Any]:
    """What was wrong by how much, and where the seconds went."""
    noisy = one.spread >= abs(one.error)
    return {
        "predicted_s": one.predicted_s,
        "measured_s": one.measured_s,
        "error": round(one.error, 4),
        "spread": round(one.spread, 4),
        "why": "the rounds themselves differ as much" if noisy else whereabouts(one, spans_s, folder),
    }


def whereabouts(one: Result, spans_s: Sequence[Sequence[float]], folder: Path) -> str:
    """How long the rank that computed longest computed, and waited, against its kernels' prices."""
    place, model, phase, tokens = one.cell.split("/")
    cell = Cell(place, model, "prefill" if phase == "prefill" else "decode", int(tokens))
    placement = next(candidate.placement for candidate in cell.candidates if candidate.name == one.name)
    program = cell.race().program(placement)
    calibrated = folder / cell.sitting
    profile = load_profile(calibrated / "profile.json")
    prices = price(program, load(calibrated / "cluster.json", Cluster), {profile.gpu.name: profile})
    moves = [[isinstance(operation, Send | Recv | Collective) for operation in rank] for rank in program.ranks]
    computed = [sum(s for s, m in zip(*row, strict=True) if not m) for row in zip(spans_s, moves, strict=False)]
    rank = computed.index(max(computed))
    waited = sum(s for s, m in zip(spans_s[rank], moves[rank], strict=True) if m)
    alone = float(prices.kernels_s[rank].sum())
    return (
        f"rank {rank} computed {computed[rank] * 1e3:.1f} ms (alone, as priced, {alone * 1e3:.1f}) and sent or waited "
        f"{waited * 1e3:.1f} ms of {one.measured_s * 1e3:.1f}; predicted {one.predicted_s * 1e3:.1f}"
    )


def regret_miss(cell: CellFigures) -> dict[str, Any]:
    return {
        "regret": round(cell.regret, 4),
        "regret_low": round(cell.regret_low, 4),
        "chosen": cell.chosen,
        "best": cell.best,
        "why": "announced as too close to call" if cell.too_close else "ranked wrongly",
    }
