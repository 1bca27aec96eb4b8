"""Hypothesis without deadlines (a slow machine is not a wrong answer), and ``__main__`` as it was before each test."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("attnplan", deadline=None)
settings.load_profile("attnplan")


@pytest.fixture(autouse=True)
def _main_module() -> Iterator[None]:
    """Streamlit's AppTest leaves its script behind as ``__main__``, which processes spawned later would run again."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main
