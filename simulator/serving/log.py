"""Serving log: what the resource manager decided batch by batch when a plan was served, and what each change cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from simulator.formats.files import Record
from simulator.measurement import Environment
from simulator.workload import Phase


class PoolChange(Record):
    """The pool a batch's phase found and left."""

    phase: Phase
    what: str = Field(description="activated, released, queued or fellback")
    before_gpus: int = Field(ge=0)
    after_gpus: int = Field(ge=0)


class ServedStep(Record):
    phase: Phase
    duration_s: float = Field(gt=0)
    bytes_sent: int = Field(ge=0, description="by all ranks, point to point")


class ServedBatch(Record):
    """One batch: the decision, its measured cost, and what came out."""

    number: int = Field(ge=0)
    lengths: tuple[int, ...] = Field(min_length=1, description="prompt tokens of each sequence; the longest decides")
    prefill_placement: str
    decode_placement: str
    prefill_pool_gpus: int = Field(ge=0)
    decode_pool_gpus: int = Field(ge=0)
    wanted_gpus: tuple[int, int] = Field(description="what the policy asked for: prefill, decode")
    changes: tuple[PoolChange, ...]
    switch_s: float = Field(ge=0, description="until the slowest rank had its groups and weights")
    steps: tuple[ServedStep, ...]
    generated: tuple[tuple[int, ...], ...]

    @property
    def ttft_s(self) -> float:
        """Of the batch: what it waited for its placement, and its prefill."""
        return self.switch_s + sum(step.duration_s for step in self.steps if step.phase == "prefill")

    @property
    def tpot_s(self) -> float | None:
        """Mean of its decode steps; None without one."""
        found = [step.duration_s for step in self.steps if step.phase == "decode"]
        return sum(found) / len(found) if found else None


class ServingLog(Record):
    """A serving log file. Times are measured on ``environment``."""

    schema_version: Literal[1] = 1
    tag: Literal["measured"] = "measured"
    allocation: str | None = Field(default=None, description="digest of the plan that was served")
    environment: Environment | None = None
    dtype: str
    warm_s: float = Field(ge=0, description="making and using every group before the first batch")
    batches: tuple[ServedBatch, ...]
