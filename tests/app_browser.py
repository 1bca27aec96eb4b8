"""A served explorer and a real browser for the tests that need them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from planner.commands.app import command

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--no-first-run",
)  # fmt: skip
SETTLED = (
    "!document.querySelector('[data-testid=stStatusWidget]') && !document.querySelector('[data-testid=stSpinner]')"
    " && !document.querySelector('[data-testid=stProgress]') && !document.querySelector('[data-stale=true]')"
)


def missing() -> str:
    """Why a browser test cannot run here; empty if it can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install playwright"
    return "" if browser_path() else f"no browser found: install one of {', '.join(BROWSERS)}"


def browser_path() -> str | None:
    return os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The explorer as ``plan app`` starts it, on a free port, started in ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "server.log").open("w")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command(port), cwd=folder, stdout=log, stderr=log, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)
        log.close()


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise RuntimeError(f"the explorer ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the explorer did not start within a minute")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        try:
            yield found
        finally:
            found.close()


def settle(page: Any, limit_s: float = 120) -> None:
    """Wait until nothing is running, loading or stale any more."""
    page.wait_for_selector("h1", timeout=limit_s * 1e3)
    for _ in range(2):
        page.wait_for_function(SETTLED, timeout=limit_s * 1e3)
        page.wait_for_timeout(250)


def open_page(context: Any, address: str, hosts: set[str] | None = None) -> Any:
    """A settled page; ``hosts`` collects every host that anything was asked of."""
    page = context.new_page()
    if hosts is not None:
        page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    page.goto(address)
    settle(page)
    return page
