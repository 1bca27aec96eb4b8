"""Batch: what a base group runs at once, its limits, and the lengths in it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.errors import SpecError
from simulator.formats.trace import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """A base group's GPUs and limits. A request occupies prompt + output tokens of KV cache from its prefill on."""

    base_gpus: int
    prefill_batch: int = 1
    decode_batch: int = 32
    kv_capacity_tokens: int | None = None
    padded: bool = False

    def __post_init__(self) -> None:
        for name in ("base_gpus", "prefill_batch", "decode_batch"):
            if getattr(self, name) < 1:
                raise SpecError(f"batching: {name} {getattr(self, name)} must be at least 1")


class Batch:
    """What a group decodes. A request's context is its ``base`` + the group's decode steps so far."""

    __slots__ = ("bases", "ends", "kv_tokens", "steps", "sum_bases")

    def __init__(self) -> None:
        self.steps = 0
        self.sum_bases = 0
        self.kv_tokens = 0
        self.bases: dict[int, int] = {}
        self.ends: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.bases)

    def add(self, index: int, request: Request) -> None:
        self.bases[index] = request.prompt_tokens - self.steps
        self.sum_bases += self.bases[index]
        self.kv_tokens += request.prompt_tokens + request.output_tokens
        heapq.heappush(self.ends, (self.steps + request.output_tokens - 1, index))

    def pop_finished(self, requests: Sequence[Request]) -> list[int]:
        finished = []
        while self.ends and self.ends[0][0] <= self.steps:
            index = heapq.heappop(self.ends)[1]
            self.sum_bases -= self.bases.pop(index)
            self.kv_tokens -= requests[index].prompt_tokens + requests[index].output_tokens
            finished.append(index)
        return finished

    @property
    def longest(self) -> int:
        return max(self.bases.values()) + self.steps

    @property
    def mean(self) -> int:
        return math.ceil(self.sum_bases / len(self.bases)) + self.steps
