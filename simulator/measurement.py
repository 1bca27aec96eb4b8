"""Measurement: what a run did, operation by operation — the file that predictions are held against.

Operation indices are those of the program's rank lists, so a span and a prediction meet by (rank, index) alone.
Times are relative to the step's start, the moment the first rank began it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from simulator.formats.files import Record
from simulator.workload import Phase

Place = Literal["gloo", "emulated", "nccl", "replay"]
TAGS = {"emulated": "emulated", "replay": "replayed"}  # others: measured


class Environment(Record):
    """Where it ran."""

    device: str
    backend: str = Field(description="the attention backend chosen by a real call")
    torch: str
    python: str
    platform: str
    cores: int = Field(ge=1)
    threads_per_rank: int = Field(ge=1)
    versions: dict[str, str] = Field(default_factory=dict, description="of other libraries that ran")


class RankSpans(Record):
    """One rank's part of one step. ``spans[i]``: operation i, [start, end].

    A transfer's span is what the rank saw of it: of a Send its issue, of a Recv or Collective the wait for its value.
    """

    rank: int = Field(ge=0)
    spans: tuple[tuple[float, float], ...]
    messages: int = Field(ge=0)
    bytes_sent: int = Field(ge=0)
    collectives: int = Field(ge=0)
    collective_bytes: int = Field(ge=0, description="nccl-tests' size, counted on every member")


class MeasuredStep(Record):
    """One execution of one program."""

    phase: Phase
    index: int = Field(ge=0, description="0 is prefill, k the k-th decode step")
    repeat: int = Field(ge=0)
    duration_s: float = Field(gt=0, description="last rank's start to last rank's end")
    ranks: tuple[RankSpans, ...]


class Question(Record):
    """What of an allocation was run: enough to lower the same programs again."""

    tokens: int = Field(ge=1, description="prompt length")
    batch: int = Field(ge=1)
    decoded_tokens: int = Field(ge=0)
    candidate: Literal["chosen", "pool", "rule"] = "chosen"
    packing: Literal["none", "int8", "topk"] = Field(default="none", description="how messages travelled")


class Measurement(Record):
    """A measurement file. Times of ``replay`` are of compute operations; its transfers take none. ``emulated``: real
    processes and kernels on nodes whose links are rate-limited here."""

    schema_version: Literal[1] = 1
    tag: Literal["measured", "emulated", "replayed"]
    place: Place
    allocation: str | None = Field(default=None, description="digest of the allocation that was run")
    question: Question | None = None
    environment: Environment
    dtype: str
    steps: tuple[MeasuredStep, ...]
    generated: tuple[tuple[int, ...], ...] = Field(default=(), description="tokens of each sequence, in batch order")

    @model_validator(mode="after")
    def _tag_fits_place(self) -> Measurement:
        if self.tag != TAGS.get(self.place, "measured"):
            raise ValueError(f"tag {self.tag!r} does not fit place {self.place!r}")
        return self

    def durations_s(self, index: int) -> tuple[float, ...]:
        """Step ``index``'s duration in every repeat."""
        return tuple(step.duration_s for step in self.steps if step.index == index)
