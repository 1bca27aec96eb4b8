"""Hypothesis without deadlines (a slow machine is not a wrong answer), ``__main__`` as it was before each test, and one
world of four processes for all tests that only need one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from executor.supervisor import Supervisor

settings.register_profile("attnplan", deadline=None)
settings.load_profile("attnplan")


@pytest.fixture(autouse=True)
def _main_module() -> Iterator[None]:
    """Streamlit's AppTest leaves its script behind as ``__main__``, which processes spawned later would run again."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def _worlds() -> Iterator[list[Supervisor]]:
    worlds: list[Supervisor] = []
    yield worlds
    for world in worlds:
        world.close()


@pytest.fixture
def world(_worlds: list[Supervisor]) -> Supervisor:
    """Four ranks over gloo, started once; anew after a test that broke them."""
    from executor.supervisor import Supervisor

    if not _worlds or _worlds[-1]._closed:
        _worlds.append(Supervisor(4, timeout_s=60.0))
    return _worlds[-1]
