"""Weight slices: which part of a model's tensor a rank holds.

Rows and columns are ranges, and within them either all features or one dimension slice of every head (two-level
partitioning). A slice of m of a head of d dimensions is d/m wide: contiguous, or *paired*, half of it from each half of
the head, because rotary positions turn dimension i together with i + d/2.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.tile import Span


@dataclass(frozen=True, slots=True)
class DimSlice:
    """Slice ``index`` of ``parts`` of every ``head_dim`` features."""

    head_dim: int
    parts: int
    index: int
    paired: bool = False

    @property
    def width(self) -> int:
        return self.head_dim // self.parts

    @property
    def runs(self) -> tuple[Span, ...]:
        """The head's dimensions it takes: [j·w, (j+1)·w), or paired [j·w/2, (j+1)·w/2) and the same + d/2."""
        if not self.paired:
            return ((self.index * self.width, (self.index + 1) * self.width),)
        half, middle = self.width // 2, self.head_dim // 2
        first = (self.index * half, (self.index + 1) * half)
        return (first, (middle + first[0], middle + first[1]))


@dataclass(frozen=True, slots=True)
class WeightSlice:
    """Rows ``inputs`` × columns ``outputs`` of a model's tensor, e.g. ``layers.3.attention.q``; of both only the
    dimensions that the slices keep (None: all)."""

    name: str
    inputs: Span
    outputs: Span
    input_slice: DimSlice | None = None
    output_slice: DimSlice | None = None

    @property
    def num_inputs(self) -> int:
        return _kept(self.inputs, self.input_slice)

    @property
    def num_outputs(self) -> int:
        return _kept(self.outputs, self.output_slice)

    @property
    def num_parameters(self) -> int:
        return self.num_inputs * self.num_outputs


def _kept(span: Span, dims: DimSlice | None) -> int:
    length = span[1] - span[0]
    return length if dims is None else length // dims.parts
