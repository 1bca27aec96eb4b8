"""How long the explorer makes one wait, measured in a real browser: first page, slider to redrawn map.

    python -m benchmarks.app_latency [-o benchmarks/results/app_latency.json]
    python -m benchmarks.app_latency --screenshots docs/screenshots --files .    # after make demo: Validate shows out/

Slider to redrawn: from the key press on a slider of the What-if page to the frame in which the map has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.app_browser import browser, missing, open_page, served, settle

TABLE, CHART = "[data-testid=stDataFrame]", "[data-testid=stVegaLiteChart] svg, [data-testid=stVegaLiteChart] canvas"
PAGES = {
    "": TABLE,
    "whatif?phase=decode": ".ap-map",
    "compare": CHART,
    "timeline?pool=8": CHART,
    "topology?pool=24": ".chosen",
    "validate": "[data-testid=stFileUploader]",
    "documents": TABLE,
}
"""Every page and what it shows last."""
SIZES = ((1440, 900), (390, 844))
LONGEST = 3200
LONG = "Math.max(...[...document.querySelectorAll('section, [data-testid=stMain]')].map(one => one.scrollHeight))"
PRESSES = 60
WATCH = """
() => { const map = () => document.querySelector('.ap-map')?.innerHTML ?? ''; let before = map(); window.redrawn = [];
  new MutationObserver(() => { const now = map(); if (now && now !== before) { before = now;
  requestAnimationFrame(() => window.redrawn.push(performance.now())); } })
  .observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true}); }
"""
PRESS = """
async ([label, key]) => { const thumb = [...document.querySelectorAll('[data-testid=stSlider]')]
  .find(one => one.innerText.includes(label)).querySelector('input[type=range], [role=slider]'); thumb.focus();
  window.redrawn.length = 0;
  window.pressed = performance.now(); return true; }
"""


def slider_s(page: Any, label: str, keys: list[str]) -> list[float]:
    """Seconds from every key press to the map it redraws."""
    page.evaluate(WATCH)
    found = []
    for key in keys:
        page.evaluate(PRESS, [label, key])
        page.keyboard.press(key)
        page.wait_for_function("window.redrawn.length > 0", timeout=20_000, polling=5)
        found.append(page.evaluate("window.redrawn[0] - window.pressed") / 1e3)
        page.wait_for_timeout(350)
    return found


def measure(address: str) -> dict[str, Any]:
    with browser() as found:
        context = found.new_context(viewport={"width": SIZES[0][0], "height": SIZES[0][1]})
        first = []
        for _ in range(5):
            page, begun = context.new_page(), time.perf_counter()
            page.goto(address)
            page.wait_for_selector("[data-testid=stCode]", timeout=60_000)
            first.append(time.perf_counter() - begun)
            page.close()
        page = open_page(context, f"{address}/whatif?phase=decode")
        keys = ["ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight"] * (PRESSES // 12)
        spans = [one for label in ("NICs", "GB/s", "Sequences") for one in slider_s(page, label, keys)]
    return {
        "first_page_s": {"cold": first[0], "median": statistics.median(first)},
        "slider_s": {
            "count": len(spans),
            "median": statistics.median(spans),
            "p95": statistics.quantiles(spans, n=20)[-1],
            "max": max(spans),
        },
        "environment": {
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
            "python": platform.python_version(),
            "tag": "measured",
        },
    }


def screenshots(address: str, folder: Path) -> None:
    """Every page at both sizes, light and dark, as long as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as found:
        for scheme in ("light", "dark"):
            for width, height in SIZES:
                context = found.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                for path, last in PAGES.items():
                    page = open_page(context, f"{address}/{path}")
                    page.wait_for_selector(last, timeout=120_000)
                    settle(page)
                    long = page.evaluate(LONG)
                    page.set_viewport_size({"width": width, "height": min(max(int(long), height), LONGEST)})
                    page.wait_for_timeout(800)
                    name = (path.partition("?")[0] or "plan") + ("-dark" if scheme == "dark" else "")
                    page.screenshot(path=folder / f"{name}-{width}x{height}.png")
                    page.close()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("-o", "--output", type=Path)
    arguments.add_argument("--screenshots", type=Path, help="folder; without -o nothing is timed")
    arguments.add_argument("--files", type=Path, help="folder with a plan and a measurement for the Validate page")
    chosen = arguments.parse_args()
    if missing():
        raise SystemExit(missing())
    with tempfile.TemporaryDirectory() as folder, served(chosen.files or Path(folder)) as address:
        if chosen.output or not chosen.screenshots:
            text = json.dumps(measure(address), indent=2) + "\n"
            print(text, end="")
            if chosen.output:
                chosen.output.write_text(text, encoding="utf-8")
        if chosen.screenshots:
            screenshots(address, chosen.screenshots)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
