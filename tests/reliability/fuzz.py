"""Fuzzing: mutated real files through every reader. ``python -m tests.reliability.fuzz --seconds 600``.

A case is a defect if anything but the project's own errors comes out, if the refusal has more than one line or no
file's name, or if it takes more than a second of processor time. A crash of the process counts too: the case that was
running is in the folder ``--keep`` names. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from simulator.errors import AttnplanError
from tests.hostile import peak_bytes
from tests.reliability.mutation import mutated
from tests.reliability.parsers import Parser, parsers
from tests.reliability.scale import ROOT

MAX_CASE_S = 1.0
MAX_MEMORY_BYTES = 2 * 10**9  # of address space beyond what is mapped at the start: a leak ends in MemoryError
LONGEST_MESSAGE = 600


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, default=None, help="folder for the files of cases that found a defect")
    options.add_argument("--only", default="", help="readers whose name contains this")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="attnplan-fuzz-") as folder:
        found = fuzz(Path(folder), arguments)
    print(json.dumps(found, indent=2))
    return 1 if found["defects"] else 0


def fuzz(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    chosen = [one for one in parsers() if arguments.only in one.name]
    chance = random.Random(arguments.seed)
    outcomes = {one.name: Counter[str]() for one in chosen}
    slowest = {one.name: 0.0 for one in chosen}
    defects: dict[str, str] = {}
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + MAX_MEMORY_BYTES,) * 2)
    before, began_s = peak_bytes(), time.monotonic()
    while time.monotonic() - began_s < arguments.seconds:
        for one in chosen:
            name, seed = chance.choice(one.seeds)
            data = mutated(seed, name, chance)
            path = written(folder, one, name, data)
            used_s, outcome, detail = attempt(one, path)
            outcomes[one.name][outcome] += 1
            slowest[one.name] = max(slowest[one.name], used_s)
            kind = re.sub(r"[0-9]+", "#", f"{one.name}: {detail.split(': ')[0]}")
            if outcome == "defect" and kind not in defects:
                defects[kind] = f"{one.name}: {detail}"
                keep(arguments.keep, len(defects), path)
    return {
        "seconds": round(time.monotonic() - began_s, 1),
        "cases": sum(sum(counts.values()) for counts in outcomes.values()),
        "readers": {name: {**counts, "slowest_s": round(slowest[name], 3)} for name, counts in outcomes.items()},
        "memory_growth_bytes": peak_bytes() - before,
        "defects": list(defects.values()),
    }


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def written(folder: Path, one: Parser, name: str, data: bytes) -> Path:
    place = folder / one.name.replace(" ", "-")
    place.mkdir(exist_ok=True)
    for other, content in one.beside:
        (place / other).write_bytes(content)
    (place / name).write_bytes(data)
    return place / name


def attempt(one: Parser, path: Path) -> tuple[float, str, str]:
    """(processor seconds, accepted / refused / defect, what is wrong)."""
    began_s = time.process_time()
    detail = ""
    try:
        one.read(path)
        outcome = "accepted"
    except AttnplanError as error:
        outcome, message = "refused", str(error)
        if not message.isprintable() or len(message) > LONGEST_MESSAGE:
            outcome, detail = "defect", f"message of {len(message)} characters at {_place(error)}: {message[:120]!r}"
    except Exception as error:
        outcome, detail = "defect", f"{type(error).__name__} at {_place(error)}: {str(error)[:120]!r}"
    used_s = time.process_time() - began_s
    if used_s > MAX_CASE_S and outcome != "defect":
        outcome, detail = "defect", f"took {used_s:.0f} s"
    return used_s, outcome, detail


def _place(error: BaseException) -> str:
    """``file.py:function`` of the last line of ours that the error went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}"


def keep(folder: Path | None, number: int, path: Path) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}-{path.parent.name}-{path.name}").write_bytes(path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
