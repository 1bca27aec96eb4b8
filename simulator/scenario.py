"""Scenario: one planning question (model, cluster, workload, profile, objective) as a file.

Every part is a preset's name or a path; a relative path in a scenario file starts at that file's folder.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from simulator.formats.files import Name, Record

Objective = Literal["ttft", "tpot", "tps", "tps_per_gpu", "cost", "joule"]


class Scenario(Record):
    """A scenario file. ``base_gpus`` is the feed-forward group of FA Pool; the rest may be pool."""

    schema_version: Literal[1] = 1
    name: Name
    model: str = Field(min_length=1, description="preset or path")
    cluster: str = Field(min_length=1, description="preset or path")
    workload: str = Field(min_length=1, description="preset or path")
    profile: str = Field(min_length=1, description="preset or path")
    objective: Objective = "ttft"
    max_gpus: int | None = Field(default=None, ge=1, description="None: the whole cluster")
    base_gpus: int | None = Field(default=None, ge=1, description="None: the planner chooses")
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _base_within(self) -> Scenario:
        if self.max_gpus is not None and self.base_gpus is not None and self.base_gpus > self.max_gpus:
            raise ValueError(f"base_gpus {self.base_gpus} exceeds max_gpus {self.max_gpus}")
        return self
