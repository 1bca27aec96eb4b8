"""Transfers: what a collective computes from all ranks' values, and what a rank has issued.

``combined`` is the meaning of every collective in one place: the replay uses it, and tests hold the real ones to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from simulator.program import Collective, Program, Send


@dataclass
class Issued:
    """What a rank issued in one step. A collective's bytes are nccl-tests' size, counted on every member."""

    messages: int = 0
    bytes_sent: int = 0
    collectives: int = 0
    collective_bytes: int = 0

    def send(self, value: Tensor) -> None:
        self.messages += 1
        self.bytes_sent += value.numel() * value.element_size()

    def collective(self, operation: Collective, value: Tensor) -> None:
        """``value`` is this rank's input, padded to ``shape`` if narrower."""
        factor = len(operation.ranks) if operation.kind == "all_gather" else 1
        self.collectives += 1
        self.collective_bytes += value.numel() * value.element_size() * factor


def planned(program: Program, rank: int) -> Issued:
    """What the program says this rank issues."""
    issued = Issued()
    for operation in program.ranks[rank] if rank < len(program.ranks) else ():
        if isinstance(operation, Send):
            issued.messages += 1
            issued.bytes_sent += operation.num_bytes
        elif isinstance(operation, Collective):
            issued.collectives += 1
            issued.collective_bytes += operation.num_bytes
    return issued


def padded(operation: Collective, value: Tensor) -> Tensor:
    """An all-gather's part, as wide as ``shape``: shards of a vocabulary may differ by a column."""
    missing = operation.shape[-1] - value.shape[-1]
    if operation.kind != "all_gather" or operation.along != "columns" or not missing:
        return value.contiguous()
    return functional.pad(value, (0, missing), value=float("-inf"))


def side_by_side(operation: Collective, gathered: Tensor) -> Tensor:
    """[ranks·T, w] as it lies after an all-gather → as ``along`` says."""
    if operation.along == "rows":
        return gathered
    parts = gathered.view(len(operation.ranks), -1, *gathered.shape[1:])
    return parts.transpose(0, 1).reshape(parts.shape[1], -1)


def combined(operation: Collective, values: Sequence[Tensor], place: int) -> Tensor:
    """What member number ``place`` gets from all members' values."""
    match operation.kind:
        case "all_reduce":
            return _sum(values)
        case "all_gather":
            return side_by_side(operation, torch.cat(list(values)))
        case "reduce_scatter":
            return _sum(values).chunk(len(values))[place].clone()
        case "all_to_all":
            return torch.cat([value.chunk(len(values))[place] for value in values])
        case "broadcast":
            return values[0].clone()


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total
