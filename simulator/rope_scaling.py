"""Rope scaling: rotary frequencies stretched for contexts longer than a model was first trained on.

``linear``: every frequency by ``factor`` (Chen et al. 2023, position interpolation). ``llama3``: wavelengths over
original/low by ``factor``, those under original/high not at all, a ramp between (Llama 3.1). It changes
angles, not costs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from simulator.formats.files import Record


class RopeScaling(Record):
    """The last three fields belong to ``llama3``."""

    kind: Literal["linear", "llama3"]
    factor: float = Field(ge=1)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    original_max_position_embeddings: int = Field(default=8192, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> RopeScaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor:g} is not above low_freq_factor {self.low_freq_factor:g}"
            )
        return self
