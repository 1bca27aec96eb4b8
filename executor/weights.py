"""Weights: every rank's slices of the full model's tensors, so that every placement computes the same function.

Seeded weights are generated in square panels, each from a generator keyed by (seed, tensor, panel): a rank makes
only the panels its slices touch, and any two ranks agree on every element. Matrices are [inputs, outputs], uniform
with variance 1/inputs; norm vectors are 1 plus noise.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from simulator.errors import ExecutionError
from simulator.model import Model
from simulator.program import WeightSlice
from simulator.weight_slice import DimSlice

PANEL = 256  # rows and columns of a generated panel: 256 KiB in fp32
NORM_NOISE = 0.05
BIAS_SCALE = 0.1
TORCH_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
}


class Source(Protocol):
    """Where a model's tensors come from: seeded, a file, or noise for a stopwatch. Values on the CPU in fp32."""

    @property
    def tied_head(self) -> bool:
        """Whether ``lm_head`` is ``embed`` transposed."""

    def matrix(self, part: WeightSlice) -> Tensor:
        """[inputs, outputs]."""

    def vector(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a norm weight, or of a bias (``….bias``)."""


class Weights:
    """Slices of a source's tensors on one device; each is made once."""

    def __init__(self, source: Source, *, dtype: str, device: torch.device) -> None:
        self.source, self.device = source, device
        self.dtype = TORCH_DTYPES[dtype]
        self._matrices: dict[tuple[WeightSlice, ...], Tensor] = {}
        self._stacks: dict[tuple[tuple[WeightSlice, ...], ...], Tensor] = {}
        self._biases: dict[tuple[WeightSlice, ...], Tensor] = {}
        self._vectors: dict[tuple[str, int, int], Tensor] = {}

    def matrix(self, slices: tuple[WeightSlice, ...]) -> Tensor:
        """The slices side by side: [k, n]. A tied head is the embedding it is the transpose of."""
        if len(slices) == 1 and slices[0].name == "lm_head" and self.source.tied_head:
            (part,) = slices
            return self.matrix((replace(part, name="embed", inputs=part.outputs, outputs=part.inputs),)).T
        if slices not in self._matrices:
            parts = [self._part(part) for part in slices]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            self._matrices[slices] = whole.to(self.device, self.dtype)
        return self._matrices[slices]

    def _part(self, part: WeightSlice) -> Tensor:
        whole = self.source.matrix(replace(part, input_slice=None, output_slice=None))
        return dims_of(dims_of(whole, part.input_slice, 0), part.output_slice, 1)

    def vector(self, name: str, start: int, stop: int) -> Tensor:
        key = (name, start, stop)
        if key not in self._vectors:
            self._vectors[key] = self.source.vector(name, start, stop).to(self.device, self.dtype)
        return self._vectors[key]

    def stack(self, slices: tuple[tuple[WeightSlice, ...], ...]) -> Tensor:
        """[len(slices), k, n]: one matrix each, e.g. a rank's experts."""
        if slices not in self._stacks:
            parts = [torch.cat([self.source.matrix(part) for part in one], dim=1) for one in slices]
            self._stacks[slices] = torch.stack(parts).to(self.device, self.dtype)
        return self._stacks[slices]

    def bias(self, slices: tuple[WeightSlice, ...]) -> Tensor:
        """The biases of a Linear's outputs, side by side: [n]."""
        if slices not in self._biases:
            parts = [dims_of(self.vector(f"{part.name}.bias", *part.outputs), part.output_slice, 0) for part in slices]
            self._biases[slices] = torch.cat(parts)
        return self._biases[slices]

    @property
    def num_bytes(self) -> int:
        held = [*self._matrices.values(), *self._stacks.values(), *self._biases.values(), *self._vectors.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def dims_of(tensor: Tensor, dims: DimSlice | None, axis: int) -> Tensor:
    """The features of ``axis`` (whole heads) that a dimension slice keeps."""
    if dims is None:
        return tensor
    heads = tensor.view(*tensor.shape[:axis], -1, dims.head_dim, *tensor.shape[axis + 1 :])
    kept = [heads.narrow(axis + 1, start, stop - start) for start, stop in dims.runs]
    return torch.cat(kept, dim=axis + 1).flatten(axis, axis + 1)


@dataclass(frozen=True, slots=True)
class SeededSource:
    """The endless supply: every element is a function of (seed, tensor, row, column)."""

    model: Model
    seed: int = 0

    @property
    def tied_head(self) -> bool:
        return self.model.tie_word_embeddings

    def matrix(self, part: WeightSlice) -> Tensor:
        """A tied ``lm_head`` is ``embed`` transposed."""
        if part.name == "lm_head" and self.model.tie_word_embeddings:
            return uniform(self.seed, "embed", part.outputs, part.inputs).T * self._scale("embed")
        return uniform(self.seed, part.name, part.inputs, part.outputs) * self._scale(part.name)

    def vector(self, name: str, start: int, stop: int) -> Tensor:
        noise = uniform(self.seed, name, (0, 1), (start, stop))[0]
        return noise * BIAS_SCALE if name.endswith(".bias") else 1 + noise * NORM_NOISE

    def _scale(self, name: str) -> float:
        """√3/√inputs: a uniform [−1, 1) times √3 has variance 1, a sum of ``inputs`` of them then has variance 1."""
        return float((3.0 / num_inputs(self.model, name)) ** 0.5)


def num_inputs(model: Model, name: str) -> int:
    """Rows of the full tensor (the features summed over); for ``embed`` the hidden size, as when tied to the head."""
    parts = name.split(".")
    if parts[-1] == "o":
        return model.num_attention_heads * model.head_dim
    if parts[-1] != "down":
        return model.hidden_size
    if parts[2] == "feed_forward":
        return model.intermediate_size
    if model.experts is None:
        raise ExecutionError(f"weight {name}: the model has no experts")
    return model.experts.shared_intermediate_size if parts[2] == "shared" else model.experts.intermediate_size


def uniform(seed: int, name: str, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Elements [rows) × [columns) of the endless seeded matrix ``name``: uniform in [−1, 1), fp32."""
    found = torch.empty(rows[1] - rows[0], columns[1] - columns[0])
    generator = torch.Generator()
    for i in range(rows[0] // PANEL, -(-rows[1] // PANEL)):
        top, bottom = max(rows[0], i * PANEL), min(rows[1], (i + 1) * PANEL)
        for j in range(columns[0] // PANEL, -(-columns[1] // PANEL)):
            left, right = max(columns[0], j * PANEL), min(columns[1], (j + 1) * PANEL)
            generator.manual_seed(_key(seed, name, i, j))
            panel = torch.rand(PANEL, PANEL, generator=generator)
            cut = panel[top - i * PANEL : bottom - i * PANEL, left - j * PANEL : right - j * PANEL]
            found[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = cut
    return found.mul_(2).sub_(1)


def _key(seed: int, name: str, i: int, j: int) -> int:
    digest = hashlib.blake2b(f"{seed}|{name}|{i}|{j}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
