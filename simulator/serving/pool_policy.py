"""Pool policy: how many pool GPUs a batch is given, by its longest sequence; the documents' own rule; and the rules of
sharing that the resource manager applies.

A policy is a list of steps; the first length that gets GPUs is its threshold. The documents fix one (FA Pool, section
"GPU Allocation Algorithm"); an allocation's policy, one per phase, is the other source. A base group can always run
without the pool: GPUs that a scheme cannot do without belong to its base.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from simulator.errors import SpecError
from simulator.workload import Phase

Contention = Literal["wait", "fall_back"]


@dataclass(frozen=True, slots=True)
class PoolStep:
    """Batches whose longest sequence has at least ``min_tokens`` are given ``pool_gpus``, up to the next step."""

    min_tokens: int
    pool_gpus: int


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """Steps by ascending length, the first from 0. Sizes need not ascend: a planner may find a pool useless again."""

    steps: tuple[PoolStep, ...]

    def __post_init__(self) -> None:
        edges = [step.min_tokens for step in self.steps]
        if not edges or edges[0] != 0:
            raise SpecError(f"pool policy: first step starts at {edges[:1]} tokens; must start at 0")
        if any(high <= low for low, high in pairwise(edges)):
            raise SpecError(f"pool policy: min_tokens {edges} must ascend")
        if any(step.pool_gpus < 0 for step in self.steps):
            raise SpecError("pool policy: a step has negative pool_gpus; give 0 or more")

    @property
    def threshold_tokens(self) -> int | None:
        """The shortest length that is given a pool; None: none is."""
        return next((step.min_tokens for step in self.steps if step.pool_gpus), None)

    def pool_gpus(self, max_tokens: int) -> int:
        """The pool of a batch whose longest sequence has ``max_tokens``."""
        return self.steps[self._index(max_tokens)].pool_gpus

    def kept_gpus(self, max_tokens: int, band: float) -> int:
        """Hysteresis: the size up to which a held pool is kept. What is given from t tokens on is kept down to
        (1 − band)·t; never less than what is given now."""
        within = self.steps[self._index(max_tokens) :]
        return max(step.pool_gpus for step in within if _kept_from(step, band) <= max_tokens)

    def fitting_gpus(self, limit: int) -> int:
        """The largest size of this policy within ``limit``; 0, the base alone, if none is."""
        return max((step.pool_gpus for step in self.steps if step.pool_gpus <= limit), default=0)

    def steady_tokens(self, max_tokens: int, band: float) -> int | None:
        """The next length at which ``pool_gpus`` or ``kept_gpus`` may change; None: they never do again."""
        edges = (edge for step in self.steps for edge in (step.min_tokens, _kept_from(step, band)))
        return min((edge for edge in edges if edge > max_tokens), default=None)

    def _index(self, tokens: int) -> int:
        return bisect_right(self.steps, tokens, key=lambda step: step.min_tokens) - 1


def _kept_from(step: PoolStep, band: float) -> int:
    """The shortest length at which a step's pool is kept."""
    return math.ceil(step.min_tokens * (1 - band))


def policy(steps: Iterable[tuple[int, int]]) -> PoolPolicy:
    """From (min_tokens, pool_gpus) pairs."""
    return PoolPolicy(tuple(PoolStep(tokens, gpus) for tokens, gpus in steps))


NO_POOL = policy([(0, 0)])
DOCUMENTS_RULE = policy([(0, 0), (4096, 8), (8192, 16), (16384, 24), (32768, 32)])  # FA Pool: allocate_gpus()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRules:
    """What does not change while serving. Times in seconds; ``band`` is a share of a threshold."""

    num_groups: int = 1
    pool_gpus: int = 0
    prefill: PoolPolicy = NO_POOL
    decode: PoolPolicy = NO_POOL
    band: float = 0.0
    hold_s: float = 0.0
    activation_s: float = 0.0
    release_s: float = 0.0
    tenure_s: float = 0.0
    contention: Contention = "wait"

    def __post_init__(self) -> None:
        if self.num_groups < 1 or self.pool_gpus < 0:
            raise SpecError(f"pool rules: {self.num_groups} groups, {self.pool_gpus} pool GPUs; need ≥ 1 and ≥ 0")
        if not 0 <= self.band < 1:
            raise SpecError(f"pool rules: band {self.band} is not in [0, 1)")
        for name in ("hold_s", "activation_s", "release_s", "tenure_s"):
            if not 0 <= getattr(self, name) < 1e6:
                raise SpecError(f"pool rules: {name} {getattr(self, name)} is not in [0, 1e6) seconds")

    def policy(self, phase: Phase) -> PoolPolicy:
        return self.prefill if phase == "prefill" else self.decode
