"""Comparison: one published figure beside the simulated one."""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 0.15


@dataclass(frozen=True, slots=True)
class Comparison:
    """``binding``: everything it rests on is stated by its source, so it must lie within ``MARGIN``."""

    what: str
    unit: str
    measured: float
    simulated: float
    binding: bool = True

    @property
    def error(self) -> float:
        """Simulated over measured, less one."""
        return self.simulated / self.measured - 1

    @property
    def within(self) -> bool:
        return abs(self.error) <= MARGIN
