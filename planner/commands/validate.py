"""``plan validate``: predicted against measured, per step and per operation class."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from statistics import median

from planner.commands.output import say, table, to_terminal
from planner.validation import StepRow, Validation
from planner.validation import validate as validate_run
from simulator.allocation import Allocation
from simulator.formats.files import load, write_atomically
from simulator.measurement import Measurement
from simulator.units import format_seconds


def validate(arguments: argparse.Namespace) -> int:
    allocation = load(arguments.allocation, Allocation)
    found = [validate_run(allocation, load(path, Measurement)) for path in arguments.measurements]
    if arguments.trace is not None:
        from planner.overlay import overlay

        write_atomically(arguments.trace, overlay(found[0]))
        say(f"wrote {arguments.trace}")
    if arguments.json:
        print(json.dumps([as_json(one) for one in found], indent=2))
        return 0
    for path, one in zip(arguments.measurements, found, strict=True):
        show(str(path), one)
    return 0


def as_json(found: Validation) -> dict[str, object]:
    return {
        "tag": found.measurement.tag,
        "steps": [{**asdict(row), "error": row.error, "inside": row.inside} for row in found.steps],
        "operations": [{**asdict(row), "error": row.error} for row in found.operations],
    }


def show(title: str, found: Validation) -> None:
    """Prefill, the median decode step, then operation classes, worst first by seconds."""
    rows = [step_cells("prefill", [row]) for row in found.steps if row.phase == "prefill"]
    decode = [row for row in found.steps if row.phase == "decode"]
    if decode:
        rows.append(step_cells(f"decode, median of {len(decode)} steps", decode))
    columns = ("step", "predicted", "90 % interval", "measured", "error", "inside", "run-to-run spread", "tag")
    tag = found.measurement.tag
    to_terminal(table(f"{title}: predicted vs measured, a step", columns, [(*row, tag) for row in rows]))
    cells = [
        (
            row.phase,
            row.kind,
            str(row.count),
            format_seconds(row.predicted_s),
            format_seconds(row.measured_s),
            f"{row.error:+.0%}",
        )
        for row in found.operations
    ]
    heads = ("phase", "operation", "count", "predicted", "measured", "error")
    note = "rank-seconds a step, summed over ranks; waiting: blocked on transfers"
    to_terminal(table(f"{title}: by operation", heads, cells, note))


def step_cells(name: str, rows: list[StepRow]) -> tuple[str, ...]:
    predicted, measured = median(row.predicted_s for row in rows), median(row.measured_s for row in rows)
    low, high = median(row.p05_s for row in rows), median(row.p95_s for row in rows)
    inside = sum(row.inside for row in rows)
    return (
        name,
        format_seconds(predicted),
        f"{format_seconds(low)} – {format_seconds(high)}",
        format_seconds(measured),
        f"{predicted / measured - 1:+.1%}",
        f"{inside} of {len(rows)}",
        f"{median(row.spread for row in rows):.0%}",
    )
