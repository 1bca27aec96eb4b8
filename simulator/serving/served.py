"""Served: when each request of a run was queued, prefilled and finished, what the GPUs did, and the metrics of it.

Arrays are in the order of the requests, in integer picoseconds. Definitions: ``metrics.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from simulator import metrics
from simulator.serving.resource_manager import Change
from simulator.units import PICOSECONDS_PER_S
from simulator.workload import Phase

Picoseconds = npt.NDArray[np.int64]


@dataclass(slots=True)
class Usage:
    """Running sums: steps and time per phase, GPU-picoseconds that steps ran on base and pool and that the pool was
    held, and the time groups stood still for their pool (waiting in line or activating)."""

    num_steps: dict[Phase, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    time_ps: dict[Phase, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    base_busy_gpu_ps: int = 0
    pool_busy_gpu_ps: int = 0
    pool_held_gpu_ps: int = 0
    stalled_ps: int = 0

    def add(self, phase: Phase, num_steps: int, elapsed_ps: int, base_gpus: int, pool_gpus: int) -> None:
        self.num_steps[phase] += num_steps
        self.time_ps[phase] += elapsed_ps
        self.base_busy_gpu_ps += base_gpus * elapsed_ps
        self.pool_busy_gpu_ps += pool_gpus * elapsed_ps


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One run. ``changes``: what the resource manager decided, in order."""

    arrival_ps: Picoseconds
    prefill_ps: Picoseconds
    first_token_ps: Picoseconds
    finish_ps: Picoseconds
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    num_base_gpus: int
    pool_gpus: int
    usage: Usage
    changes: tuple[Change, ...]

    @property
    def queueing_s(self) -> metrics.Floats:
        return _seconds(self.prefill_ps - self.arrival_ps)

    @property
    def ttft_s(self) -> metrics.Floats:
        return _seconds(self.first_token_ps - self.arrival_ps)

    @property
    def tpot_s(self) -> metrics.Floats:
        """NaN for requests of one output token."""
        return metrics.tpot_s(_seconds(self.first_token_ps), _seconds(self.finish_ps), self.output_tokens)

    @property
    def end_to_end_s(self) -> metrics.Floats:
        return _seconds(self.finish_ps - self.arrival_ps)

    @property
    def duration_s(self) -> float:
        """First arrival to last completion."""
        return int(self.finish_ps.max() - self.arrival_ps.min()) / PICOSECONDS_PER_S

    @property
    def num_tokens(self) -> int:
        """Input and output."""
        return int(self.prompt_tokens.sum() + self.output_tokens.sum())

    @property
    def tokens_per_s(self) -> float:
        return metrics.tokens_per_s(self.num_tokens, self.duration_s)

    @property
    def gpu_seconds(self) -> float:
        """Held: the bases for the whole run, the pool while leased or changing hands."""
        return self.num_base_gpus * self.duration_s + self.usage.pool_held_gpu_ps / PICOSECONDS_PER_S

    @property
    def gpu_seconds_per_token(self) -> float:
        return self.gpu_seconds / self.num_tokens

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return metrics.tokens_per_s(self.num_tokens, self.gpu_seconds)

    @property
    def base_utilisation(self) -> float:
        return self.usage.base_busy_gpu_ps / PICOSECONDS_PER_S / (self.num_base_gpus * self.duration_s)

    @property
    def pool_utilisation(self) -> float | None:
        """None: the pool was never held."""
        held_ps = self.usage.pool_held_gpu_ps
        return self.usage.pool_busy_gpu_ps / held_ps if held_ps else None

    @property
    def documents_input_tps(self) -> float:
        """Their clock runs during forward passes only; ours is the time the groups were in a step."""
        busy_s = sum(self.usage.time_ps.values()) / PICOSECONDS_PER_S
        return metrics.tokens_per_s(int(self.prompt_tokens.sum()), busy_s)


def _seconds(picoseconds: Picoseconds) -> metrics.Floats:
    return picoseconds / PICOSECONDS_PER_S
