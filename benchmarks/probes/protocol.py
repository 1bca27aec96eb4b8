"""Protocol: what every probe of a planner answers, run by ``benchmarks/peers.py`` in that planner's own environment.

Standard library only: a peer's environment has nothing of attnplan's. A probe is ``python probe.py MODE JSON`` and
prints one line that starts with ``ANSWER`` and goes on as JSON:

    predict [case, …]   per case ``ttft_s`` and ``tpot_s`` (or ``error``), and the median seconds of a warm evaluation
    search question     distinct plans looked at, seconds, the best plan in the tool's own words
    about               version of the tool, bytes of it and of everything that it requires
"""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Case = dict[str, Any]
"""model (llama-3.1-8b, …), gpu (a100, h100), tensor, tokens, batch (of decode; prefill takes one sequence)."""
REPEATS = 5


def answer(
    distribution: str | Callable[[], dict[str, Any]],
    predict: Callable[[Case], dict[str, float]],
    search: Callable[[Case], dict[str, Any]],
) -> None:
    """Do what the command line asks. Whatever the tool prints goes to stderr."""
    mode, text = sys.argv[1], sys.argv[2]
    given = json.loads(text)
    with contextlib.redirect_stdout(sys.stderr):
        match mode:
            case "predict":
                found: Any = [_predicted(predict, case) for case in given["cases"]]
            case "search":
                found = _timed(search, given)
            case _:
                found = about(distribution) if isinstance(distribution, str) else distribution()
    sys.stdout.write("ANSWER" + json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a tool's threads must not keep the probe


def _predicted(predict: Callable[[Case], dict[str, float]], case: Case) -> dict[str, Any]:
    try:
        found: dict[str, Any] = dict(predict(case))
    except Exception as error:  # a peer's failure is a result
        return {
            "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
        }
    if case.get("warm"):
        spans = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            predict(case)
            spans.append(time.perf_counter() - begun)
        found["evaluation_s"] = statistics.median(spans) / 2  # a prefill and a decode
    return found


def _timed(search: Callable[[Case], dict[str, Any]], question: Case) -> dict[str, Any]:
    begun, spent = time.perf_counter(), _cpu_s()
    found = search(question)
    return {"seconds": time.perf_counter() - begun, "cpu_s": _cpu_s() - spent, **found}


def _cpu_s() -> float:
    """Of this process and of its children that ended."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def about(distribution: str) -> dict[str, Any]:
    """Version, and bytes of the distribution and all that it requires (no extras), as pip installed them."""
    sizes = sizes_of([distribution])
    return {"version": metadata.version(distribution), "bytes": sum(sizes.values()), "packages": len(sizes)}


def sizes_of(roots: list[str]) -> dict[str, int]:
    """Bytes by distribution: ``roots`` and, without extras, all that they require."""
    from pip._vendor.packaging.requirements import Requirement  # every environment has pip

    seen: dict[str, int] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        key = name.lower().replace("_", "-").replace(".", "-")
        if key in seen:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        paths = [str(found.locate_file(path)) for path in found.files or ()]
        seen[key] = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
        for text in found.requires or ():
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                todo.append(required.name)
    return seen
