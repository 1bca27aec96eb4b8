"""Bench: a device to time operations on, with weights and values that do not matter.

What a step finds cold (weights, cached keys) is rotated through more copies than the caches hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from executor.attention_backends import choose
from executor.cache import Cache
from executor.operations import Rank
from executor.weights import TORCH_DTYPES, Weights
from simulator import program as p

COLD_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}  # copies to rotate through: twice a large last-level cache
MAX_COPIES = 16
FILL = 0.01

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class NoiseSource:
    """Weights whose values do not matter: noise or a constant."""

    noise: bool

    @property
    def tied_head(self) -> bool:
        return False

    def matrix(self, part: p.WeightSlice) -> Tensor:
        rows, columns = part.inputs[1] - part.inputs[0], part.outputs[1] - part.outputs[0]
        return torch.rand(rows, columns).sub_(0.5) if self.noise else torch.full((rows, columns), FILL)

    def vector(self, name: str, start: int, stop: int) -> Tensor:
        return torch.ones(stop - start)


@dataclass(frozen=True, slots=True)
class Bench:
    """A device to time on."""

    device: torch.device
    dtype: str

    def tensor(self, *shape: int) -> Tensor:
        """Noise on a GPU, whose power and so speed depends on it; a constant on a CPU, which does not care."""
        dtype = TORCH_DTYPES[self.dtype]
        if self.device.type == "cpu":
            return torch.full(shape, FILL, dtype=dtype)
        return torch.rand(shape, device=self.device).sub_(0.5).to(dtype)

    def rank(self, head_dim: int = 64) -> Rank:
        weights = Weights(NoiseSource(self.device.type != "cpu"), dtype=self.dtype, device=self.device)
        backend = choose(self.device, TORCH_DTYPES[self.dtype], head_dim)
        return Rank(weights, Cache(1), self.device, backend)

    def copies(self, num_bytes: float) -> int:
        """How many of something this large go round without any staying in a cache."""
        return max(1, min(MAX_COPIES, ceil(COLD_BYTES[self.device.type] / max(num_bytes, 1))))
