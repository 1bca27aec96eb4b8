"""Where the shared real inputs lie: ``../shared/data`` beside the checkout; tests that need them skip without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.errors import SpecError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(folder: str) -> Path:
    """A folder of real inputs, or a skip that says which is absent."""
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"../shared/data/{folder} is absent: real inputs are not part of the checkout")
    return path


def shared_files(folder: str, *suffixes: str) -> list[str]:
    """Names for parametrisation; empty (one skipped test) where the folder is absent."""
    return sorted(path.name for path in (SHARED / folder).glob("*") if path.suffix in suffixes)


def refusal(action: Callable[[], object]) -> str | None:
    """The message of the SpecError that ``action`` raises; None if it raises nothing."""
    try:
        action()
    except SpecError as error:
        return str(error)
    return None
