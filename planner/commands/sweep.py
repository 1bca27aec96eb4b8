"""``plan sweep``: plan a grid of scenarios side by side, resumably."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from planner.commands.make import PARTS, scenario_of
from planner.commands.output import say, table, to_terminal
from simulator.errors import SpecError
from simulator.scenario import Scenario
from simulator.units import format_seconds

COUNTS = ("max_gpus", "base_gpus")


def sweep(arguments: argparse.Namespace) -> int:
    from planner.exploring.sweep import grid
    from planner.exploring.sweep import sweep as plan_all

    if arguments.ttft_slo is not None or arguments.tpot_slo is not None:
        raise SpecError("sweep: scenarios have no SLOs; leave --ttft-slo and --tpot-slo to plan make")
    varied = dict(_varied(text) for text in arguments.vary)
    if not varied:
        raise SpecError("sweep: nothing varies; give --vary FIELD=A,B, e.g. --vary cluster=dgx-a100-5,a100-4x4")
    for name in PARTS:  # a part that varies need not be given too
        if arguments.scenario is None and name in varied and getattr(arguments, name) is None:
            setattr(arguments, name, varied[name][0])
    cases = grid(scenario_of(arguments).model_dump(), varied)
    rows = plan_all(
        cases,
        arguments.output,
        limit=arguments.simulations,
        processes=arguments.processes or os.cpu_count() or 1,
        ray_address=arguments.ray,
    )
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        columns = ("case", "phase", "bucket", "placement", "GPUs", "step", "gap")
        to_terminal(table(f"{len(rows)} scenarios", columns, [cells for row in rows for cells in _shown(row)]))
    say(f"wrote {arguments.output}")
    return 0


def _varied(text: str) -> tuple[str, list[Any]]:
    """``field=a,b`` → (field, values); counts as whole numbers."""
    name, equals, values = text.partition("=")
    name = name.replace("-", "_")
    if not equals or not values or name not in Scenario.model_fields:
        known = ", ".join((*PARTS, "objective", *COUNTS))
        raise SpecError(f"--vary {text}: must be FIELD=VALUE,VALUE with one of {known}")
    found = values.split(",")
    if name in COUNTS and not all(value.isdigit() for value in found):
        raise SpecError(f"--vary {text}: {name} must be whole numbers")
    return name, [int(value) for value in found] if name in COUNTS else found


def _shown(row: dict[str, Any]) -> list[tuple[str, ...]]:
    if "refused" in row:
        return [(row["key"], "refused", row["refused"], "", "", "", "")]
    return [
        (row["key"], one["phase"], one["bucket"], one["placement"], str(one["gpus"]),
         f"{format_seconds(one['step_s']['value'])} [{one['step_s']['tag']}]", f"{one['gap']:.0%}")
        for one in row["policy"]
    ]  # fmt: skip
