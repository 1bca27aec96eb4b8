"""Nearby: input files in the folder where ``plan app`` was started (or its ``out``), offered beside the presets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import streamlit as st

Kind = Literal["model", "cluster", "workload", "profile", "allocation", "measurement"]
FOLDERS = (".", "out")
SUFFIXES = (".json", ".yaml", ".yml")
MOST_FILES, MOST_BYTES = 40, 5 * 10**6
MARKS: dict[Kind, str] = {
    "model": r"\bnum_attention_heads\b",
    "cluster": r"^\s*\"?nodes\"?:",
    "workload": r"^\s*\"?(buckets|prefill_batch)\"?:",
    "profile": r"\"kernels\":",
    "allocation": r"\"policy\":",
    "measurement": r"\"steps\":",
}
"""What a file of a kind has and others have not; a file that only looks like one is refused when it is read."""


def nearby(kind: Kind) -> dict[str, Path]:
    """Files that look like the kind wanted, by their path as typed."""
    found = {}
    for folder in FOLDERS:
        paths = [path for path in sorted(Path(folder).glob("*")) if path.suffix in SUFFIXES and path.is_file()]
        for path in paths[:MOST_FILES]:
            facts = path.stat()
            if facts.st_size <= MOST_BYTES and kind == _kind(str(path.resolve()), facts.st_mtime_ns):
                found[str(path)] = path
    return found


@st.cache_resource(max_entries=256, show_spinner=False)
def _kind(path: str, _mtime_ns: int) -> Kind | None:
    """The first kind whose mark is there; outputs first, as they quote inputs. Read once for every version."""
    text = Path(path).read_text("utf-8", "ignore")
    order: tuple[Kind, ...] = ("allocation", "measurement", "profile", "cluster", "workload", "model")
    return next((kind for kind in order if re.search(MARKS[kind], text, re.MULTILINE)), None)


def stamp(words: tuple[str, ...]) -> tuple[int, ...]:
    """When the files among ``words`` last changed: what is kept for them is stale after that."""
    paths = [Path(word) for word in words if word.endswith(SUFFIXES)]
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths)
