"""JSON Schemas of every file attnplan reads or writes, by name: what ``plan schema NAME`` prints."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import BaseModel

from simulator.errors import SpecError

RECORDS = {
    "model": ("simulator.model", "Model"),
    "cluster": ("simulator.cluster", "Cluster"),
    "workload": ("simulator.workload", "Workload"),
    "scenario": ("simulator.scenario", "Scenario"),
    "profile": ("simulator.profile", "Profile"),
    "allocation": ("simulator.allocation", "Allocation"),
    "measurement": ("simulator.measurement", "Measurement"),
    "serving-log": ("simulator.serving.log", "ServingLog"),
}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def names() -> tuple[str, ...]:
    """The files that have a schema, in the order data flows."""
    return tuple(RECORDS)


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one file; SpecError lists the known names."""
    return {"$schema": DIALECT, **record(name).model_json_schema()}


def record(name: str) -> type[BaseModel]:
    """The record that reads the file, imported only when asked for."""
    if name not in RECORDS:
        raise SpecError(f"schema: unknown {name[:80]!r}; known: {', '.join(RECORDS)}")
    module, attribute = RECORDS[name]
    found: type[BaseModel] = getattr(import_module(module), attribute)
    return found
