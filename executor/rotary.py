"""Rotary: frequencies of rotary positions, θ^(−2i/D), and what a model's scaling makes of them."""

from __future__ import annotations

from math import tau

import torch
from torch import Tensor

from simulator.rope_scaling import RopeScaling


def frequencies(theta: float, head_dim: int, scaling: RopeScaling | None, device: torch.device) -> Tensor:
    """Radians a position, [head_dim / 2] fp64."""
    plain = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim)
    if scaling is None:
        return plain
    stretched = plain / scaling.factor
    if scaling.kind == "linear":
        return stretched
    # turns in the original context: ≥ high keep their frequency, ≤ low are stretched, between them a linear ramp
    turns = scaling.original_max_position_embeddings * plain / tau
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * plain + (1.0 - kept) * stretched
