"""Hostile addresses and uploads against the served explorer, in a real browser: each must give a notice.

    python -m benchmarks.app_hostile [-o benchmarks/results/app_hostile.json]

A traceback, an exception box, a script that runs, a request to another host or no notice within a minute is a failure.
``make test`` has a sample of these in a browser and more of them without one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.app_browser import browser, missing, served

LIMIT_MS = 60_000
VALUES = ("<script>alert(1)</script>", "' OR 1=1 --", "../../../etc/passwd", "NaN", "\u202e\u0000x", "9" * 2000)
SMALL = "model=fa-pool&cluster=dgx-a100-2&workload=local&max_gpus=2&base_gpus=1"
SMALL_PLAN = quote("fa-pool --cluster dgx-a100-2 --workload local --max-gpus 2 --base-gpus 1")
"""What comes after planning is asked of a plan that takes seconds."""
KEYS = (
    "?scenario", "?max_gpus", f"?{SMALL}&entry", "whatif?phase", "whatif?nics", "whatif?scenario=two-level&tornado",
    "compare?a", f"compare?a={SMALL_PLAN}&b=&phase",
    "timeline?scheme", "timeline?ranks", "topology?rank", "topology?model", "documents?verdict", "validate?allocation",
)  # fmt: skip
QUERIES = tuple(f"{key}={quote(VALUES[(turn + 2 * at) % 6])}" for turn in range(3) for at, key in enumerate(KEYS))[:40]
UPLOADS = (
    b"", b"{", b"[]", b'{"a": 1, "a": NaN}', b'{"x": 1e999}', b"[" * 100_000, b'{"steps": ' + b"9" * 5000 + b"}",
    b"\xff\xfe\x00", b'{"policy": [], "schema_version": "<img src=x onerror=alert(1)>"}', b'"\\ud800"',
)  # fmt: skip


def faults(page: Any, hosts: set[str], address: str) -> list[str]:
    """What is wrong with what the page shows."""
    found = []
    if page.locator("[data-testid=stException]").count() or "Traceback" in page.inner_text("body"):
        found.append("a traceback")
    if {host for host in hosts if host} - {address.removeprefix("http://")}:
        found.append(f"asked {sorted(hosts)}")
    return found


def visit(context: Any, address: str, path: str) -> list[str]:
    """Faults of one address."""
    page, hosts, dialogs = context.new_page(), set[str](), list[str]()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    page.on("dialog", partial(_dismiss, dialogs))
    try:
        page.goto(f"{address}/{path}")
        page.wait_for_selector("[data-testid=stAlert]", timeout=LIMIT_MS)
        return faults(page, hosts, address) + [f"a script ran: {words}" for words in dialogs]
    except Exception as error:
        return [f"no notice: {type(error).__name__}"]
    finally:
        page.close()


def _dismiss(heard: list[str], dialog: Any) -> None:
    heard.append(dialog.message)
    dialog.dismiss()


def upload(context: Any, address: str, path: Path) -> list[str]:
    """Faults of one file, given as plan and as measurement."""
    page = context.new_page()
    try:
        page.goto(f"{address}/validate")
        page.wait_for_selector("[data-testid=stAlert]", timeout=LIMIT_MS)  # the page has run: it asks for both files
        for index in range(2):
            page.locator("input[type=file]").nth(index).set_input_files(path)
            page.get_by_text(path.name).nth(index).wait_for(timeout=LIMIT_MS)
        page.locator("[data-testid=stAlert]", has_text=path.name).first.wait_for(timeout=LIMIT_MS)
        return faults(page, set(), address)
    except Exception as error:
        return [f"no notice: {type(error).__name__}"]
    finally:
        page.close()


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as address, browser() as found:
        folder, begun = Path(name), time.perf_counter()
        context = found.new_context()
        queries = {}
        for number, path in enumerate(QUERIES):
            queries[path[:120]] = visit(context, address, path)
            print(f"{number + 1} of {len(QUERIES)}: {queries[path[:120]] or 'a notice'}", file=sys.stderr, flush=True)
        uploads = {}
        for index, content in enumerate(UPLOADS):
            file = folder / f"hostile-{index}.json"
            file.write_bytes(content)
            uploads[f"{content[:40]!r}"] = upload(context, address, file)
            file.unlink()
        seconds = time.perf_counter() - begun
    bad = {name: one for name, one in {**queries, **uploads}.items() if one}
    return {"addresses": len(queries), "uploads": len(uploads), "failures": bad, "seconds": round(seconds, 1)}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("-o", "--output", type=Path)
    chosen = arguments.parse_args()
    if missing():
        raise SystemExit(missing())
    result = measure()
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if chosen.output:
        chosen.output.write_text(text, encoding="utf-8")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
