"""Packages: plain top-level names must resolve inside this checkout and nowhere else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["simulator", "executor", "calibration", "planner", "app"])
def test_the_package_resolves_inside_the_checkout(name: str) -> None:
    spec = find_spec(name)
    assert spec is not None, f"{name} does not resolve: install with pip install -e ."
    assert spec.origin is not None, f"{name} is a namespace package: add {name}/__init__.py"
    assert Path(spec.origin).resolve() == ROOT / name / "__init__.py"
