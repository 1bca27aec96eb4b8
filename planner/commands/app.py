"""``plan app``: the what-if explorer in a browser, on this machine only."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from simulator.errors import SpecError

PAGES = Path(__file__).resolve().parent.parent.parent / "app" / "main.py"
ADDRESS = "127.0.0.1"
OPTIONS = {
    "server.address": ADDRESS,
    "server.maxUploadSize": "5",
    "server.enableXsrfProtection": "true",
    "server.enableCORS": "true",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "browser.serverAddress": ADDRESS,
    "client.showErrorDetails": "none",
    "client.toolbarMode": "viewer",
}
"""Streamlit's own defaults listen on every interface, take 200 MB and phone home."""


def command(port: int) -> list[str]:
    """The process that serves the pages."""
    words = [sys.executable, "-m", "streamlit", "run", str(PAGES), f"--server.port={port}"]
    return words + [f"--{name}={value}" for name, value in OPTIONS.items()]


def app(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    if not 1 <= arguments.port <= 65535:
        raise SpecError(f"--port {arguments.port}: must be 1 to 65535")
    print(f"http://{ADDRESS}:{arguments.port}", flush=True)
    with subprocess.Popen(command(arguments.port)) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            raise
