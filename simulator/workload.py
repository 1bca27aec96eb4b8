"""Workload: what arrives — request lengths, batches, and the share of each length bucket — as a file.

``Step`` is what lowering consumes: one forward pass over a batch of sequences, each with tokens already
cached (``past``) and tokens to compute (``new``): prefill has past = 0, decode new = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from simulator.formats.files import Name, Record

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Sequences:
    """``count`` sequences alike: ``past`` cached tokens and ``new`` ones to compute.

    ``prompt`` tells where a KV cache that is split over ranks was cut: the first ``prompt`` tokens evenly,
    later ones dealt round-robin. None: at ``past``.
    """

    count: int
    past: int
    new: int
    prompt: int | None = None

    @property
    def total(self) -> int:
        return self.past + self.new


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over a (possibly ragged) batch, packed without padding."""

    phase: Phase
    batch: tuple[Sequences, ...]

    @property
    def num_sequences(self) -> int:
        return sum(group.count for group in self.batch)

    @property
    def num_tokens(self) -> int:
        return sum(group.count * group.new for group in self.batch)


def prefill_step(batch: int, length: int) -> Step:
    return Step("prefill", (Sequences(batch, 0, length),))


def decode_step(batch: int, context: int) -> Step:
    """The step that computes token number ``context`` (0-based) of every sequence."""
    return Step("decode", (Sequences(batch, context, 1),))


class Bucket(Record):
    """Requests of like length: [min_tokens, max_tokens) prompt tokens, planned at ``tokens``."""

    name: str
    min_tokens: int = Field(ge=0)
    max_tokens: int | None = Field(default=None, ge=1, description="None: no upper edge")
    tokens: int = Field(ge=1, description="the representative prompt length that is simulated")
    share: float = Field(gt=0, le=1, description="of requests")
    output_tokens: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _tokens_inside(self) -> Bucket:
        if self.tokens < self.min_tokens or (self.max_tokens is not None and self.tokens >= self.max_tokens):
            upper = "∞" if self.max_tokens is None else self.max_tokens
            raise ValueError(f"tokens {self.tokens} lies outside [{self.min_tokens}, {upper})")
        return self


class Workload(Record):
    """A workload file: length buckets, batch sizes and the arrival rate, if known."""

    schema_version: Literal[1] = 1
    name: Name
    buckets: tuple[Bucket, ...] = Field(min_length=1)
    prefill_batch: int = Field(default=1, ge=1, description="sequences in a prefill step")
    decode_batch: int = Field(default=1, ge=1, description="sequences in a decode step")
    requests_per_s: float | None = Field(default=None, gt=0)
    assumptions: tuple[str, ...] = ()
    source: str = ""

    @model_validator(mode="after")
    def _buckets_in_order(self) -> Workload:
        for index, (bucket, following) in enumerate(pairwise(self.buckets)):
            if bucket.max_tokens is None or following.min_tokens < bucket.max_tokens:
                raise ValueError(f"buckets[{index + 1}] begins before buckets[{index}] ends; order them, no overlap")
        if len({bucket.name for bucket in self.buckets}) != len(self.buckets):
            raise ValueError("two buckets have one name; rename one")
        return self

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Workload:
        total = sum(bucket.share for bucket in self.buckets)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"bucket shares sum to {total:.6g}, not 1")
        return self
