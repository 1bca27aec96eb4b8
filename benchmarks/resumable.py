"""Resumable: cases of a sweep on a few processes; finished rows are kept in a JSONL file, written whole each time.

A sweep that was stopped goes on where it was: cases whose key is in the file are not run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from simulator.formats.files import write_atomically

Row = dict[str, Any]


def finished(path: Path) -> dict[str, Row]:
    """Rows of an earlier run, by key."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["key"]: row for row in rows}


def sweep(cases: Mapping[str, Any], run: Callable[[str, Any], Row], path: Path, *, processes: int = 2) -> list[Row]:
    """``run(key, case)`` of every case that has no row yet; all rows, in the order of the cases."""
    rows = finished(path)
    todo = {key: case for key, case in cases.items() if key not in rows}
    with ProcessPoolExecutor(processes, mp_context=get_context("fork"), max_tasks_per_child=None) as pool:
        futures = {pool.submit(run, key, case): key for key, case in todo.items()}
        for future in as_completed(futures):
            key = futures[future]
            rows[key] = {"key": key, **future.result()}
            kept = [rows[name] for name in cases if name in rows]
            write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
            print(f"{len(kept)}/{len(cases)} {key}", flush=True)
    return [rows[key] for key in cases]
