"""Sweep: a grid of scenarios, each planned once: on this machine's processes or, with the extra ``ray``, on a cluster.

Rows go to a JSONL file as they finish, whole each time; what is in it is not planned again. A row is a plan's policy in
short, or the one line that refuses the scenario (``exit_code`` 2); anything else ends the sweep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from planner.make import make_problem
from planner.problem import load_problem
from planner.processes import process_pool
from simulator.errors import AttnplanError, SpecError
from simulator.formats.files import validate, write_atomically
from simulator.scenario import Scenario

Row = dict[str, Any]


def grid(base: Mapping[str, Any], varied: Mapping[str, Sequence[Any]]) -> dict[str, Scenario]:
    """Every combination of the varied fields laid over ``base``, by ``field=value``. SpecError for no such field."""
    found = {}
    for values in product(*varied.values()):
        changes = dict(zip(varied, values, strict=True))
        key = " ".join(f"{name}={value}" for name, value in changes.items())
        found[key] = validate({**base, **changes}, Scenario, source=f"sweep: {key}")
    return found


def plan_row(key: str, scenario: Scenario, limit: int) -> Row:
    """One scenario's row."""
    try:
        allocation = make_problem(load_problem(scenario), limit=limit)
    except AttnplanError as error:
        return {"key": key, "refused": str(error), "exit_code": error.exit_code}
    policy = [
        {
            "phase": choice.phase,
            "bucket": choice.bucket,
            "placement": choice.placement.name,
            "gpus": choice.num_gpus,
            "step_s": choice.metrics.step_s.model_dump(),
            "gap": choice.search.gap,
        }
        for choice in allocation.policy
    ]
    return {"key": key, "objective": allocation.objective, "simulations": limit, "policy": policy}


def sweep(
    cases: Mapping[str, Scenario], path: Path, *, limit: int, processes: int = 1, ray_address: str | None = None
) -> list[Row]:
    """All rows, in the cases' order; those that ``path`` has are not made again. ``ray_address``: "local" or a
    cluster's."""
    rows = finished(path)
    todo = {key: scenario for key, scenario in cases.items() if key not in rows}
    makers = _on_ray(ray_address) if ray_address is not None else _on_processes(processes)
    for row in makers(todo, limit):
        rows[row["key"]] = row
        lines = [
            json.dumps(rows[key], ensure_ascii=False) + "\n" for key in (*cases, *(rows.keys() - cases)) if key in rows
        ]
        write_atomically(path, "".join(lines))
    return [rows[key] for key in cases]


def finished(path: Path) -> dict[str, Row]:
    """Rows of an earlier run, by key. SpecError where the file is no sweep's."""
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            found[row["key"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(f"{path}: line {number} is no row of a sweep ({error}); give another file") from error
    return found


Makers = Callable[[Mapping[str, Scenario], int], Iterator[Row]]


def _on_processes(count: int) -> Makers:
    def rows(cases: Mapping[str, Scenario], limit: int) -> Iterator[Row]:
        if not cases:
            return
        with process_pool(count, start="fork") as pool:
            futures = [pool.submit(plan_row, key, scenario, limit) for key, scenario in cases.items()]
            for future in as_completed(futures):
                yield future.result()

    return rows


def _on_ray(address: str) -> Makers:
    if find_spec("ray") is None:
        raise SpecError("sweep on Ray: the package ray is absent; install attnplan[ray], or leave --ray out")

    def rows(cases: Mapping[str, Scenario], limit: int) -> Iterator[Row]:
        ray: Any = import_module("ray")
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
        try:
            task = ray.remote(plan_row)
            waiting = [task.remote(key, scenario, limit) for key, scenario in cases.items()]
            while waiting:
                done, waiting = ray.wait(waiting)
                yield from ray.get(done)
        finally:
            ray.shutdown()

    return rows
