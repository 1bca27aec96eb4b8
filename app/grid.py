"""Grid: the what-if slices of one question: read from ``app/grids`` where they were made before from the same inputs,
simulated where not, and kept for the life of the process.

    python -m app.grid      makes the shipped grids again (the documents' scenarios; some ten minutes)
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from planner.exploring.whatif import BATCHES, RATES, SCHEMES, Floats, Progress, Slice, Where, default_base, make_slice
from planner.make import digests
from planner.problem import Problem, load_problem
from simulator import presets
from simulator.formats.files import write_atomically
from simulator.workload import Phase

FOLDER = Path(__file__).parent / "grids"
SHIPPED = ("fa-pool", "ma-separation", "two-level")
DIGITS = 5

Slices = dict[int, Slice]
Rows = dict[tuple[int, int], Slice]
"""One length of one batch, by (batch, tokens): what is done of a grid that was stopped."""


def key_of(where: Where) -> str:
    """What a grid depends on: inputs by digest, the phase, the axes."""
    found = digests(where.problem)
    axes = [where.phase, where.base_gpus, where.lengths, where.pools, RATES, SCHEMES]
    text = json.dumps([found.model, found.cluster, found.profiles, axes], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def shipped(where: Where) -> Slices:
    """Slices that were made before; none if the inputs have changed since."""
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("key") == key_of(where):
            return {
                int(batch): Slice(int(batch), _array(one["seconds"]), _array(one["free_bytes"]))
                for batch, one in found["slices"].items()
            }
    return {}


def _array(values: object) -> Floats:
    return np.array(values, dtype=np.float64)


def neighbours(batch: int) -> tuple[int, ...]:
    """The batches a surface at ``batch`` is made from."""
    low = max((number for number in BATCHES if number <= batch), default=BATCHES[0])
    high = min((number for number in BATCHES if number >= batch), default=BATCHES[-1])
    return (low,) if low == high else (low, high)


def missing(have: Slices, batch: int) -> tuple[int, ...]:
    """The batches that a surface at ``batch`` lacks."""
    return tuple(number for number in neighbours(batch) if number not in have)


def complete(where: Where, have: Slices, rows: Rows, batch: int, progress: Progress) -> None:
    """Simulate into ``have`` what a surface at ``batch`` lacks, a length at a time. ``progress`` may raise to stop;
    lengths that were done stay in ``rows``."""
    lacking = missing(have, batch)
    cells, width = len(lacking) * len(where.lengths) * len(where.pools), len(where.pools)
    for turn, number in enumerate(lacking):
        for row, tokens in enumerate(where.lengths):
            before = (turn * len(where.lengths) + row) * width
            progress(before, cells)
            if (number, tokens) not in rows:
                rows[number, tokens] = make_slice(
                    replace(where, lengths=(tokens,)), number, partial(_onwards, progress, before, cells)
                )
        done = [rows.pop((number, tokens)) for tokens in where.lengths]
        have[number] = Slice(
            number, np.concatenate([one.seconds for one in done]), np.concatenate([one.free_bytes for one in done])
        )


def _onwards(progress: Progress, before: int, cells: int, done: int, _total: int) -> None:
    """Progress of a row as progress of the whole."""
    progress(before + done, cells)


def save(name: str, where: Where, slices: Slices) -> Path:
    """Write a shipped grid."""
    made = {
        str(batch): {"seconds": _rounded(one.seconds), "free_bytes": _rounded(one.free_bytes)}
        for batch, one in sorted(slices.items())
    }
    path = FOLDER / f"{name}-{where.phase}.json"
    text = json.dumps({"key": key_of(where), "made_with": "python -m app.grid", "slices": made})
    write_atomically(path, text.replace("NaN", "null") + "\n")
    return path


def _rounded(values: Floats) -> object:
    if values.ndim:
        return [_rounded(part) for part in values]
    return None if np.isnan(values) else float(f"{float(values):.{DIGITS}g}")


def main() -> int:
    phases: tuple[Phase, ...] = ("prefill", "decode")
    for name in SHIPPED:
        problem: Problem = load_problem(presets.scenario(name))
        for phase in phases:
            where, have = Where(problem, phase, default_base(problem)), Slices()
            for batch in BATCHES:
                print(f"{name} {phase}: batch {batch}", file=sys.stderr)
                have[batch] = make_slice(where, batch)
            print(save(name, where, have))
    return 0


if __name__ == "__main__":
    sys.exit(main())
