"""Compression: values packed for the wire, and DDP communication hooks that send packed gradients. Off by default.

int8 with a scale a group, or the largest values with their places (``simulator.packing`` has the sizes). Gradients keep
what a step lost and add it to the next (error feedback: Seide et al. 2014; Karimireddy et al. 2019), so that training
converges as without. Activations have no next step: what they lose is lost, and ``loss_of`` says how much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simulator.packing import GROUP, kept_values, packed_bytes
from simulator.program import Packing

LEVELS = 127


def pack(value: Tensor, packing: Packing) -> Tensor:
    """Any shape, floating point → bytes [n] (int8)."""
    flat = value.reshape(-1).float()
    if packing == "topk":
        _, places = torch.topk(flat.abs(), kept_values(len(flat)), sorted=False)
        return torch.cat([flat[places].view(torch.int8), places.to(torch.int32).view(torch.int8)])
    groups = torch.nn.functional.pad(flat, (0, -len(flat) % GROUP)).view(-1, GROUP)
    scales = groups.abs().amax(dim=1, keepdim=True) / LEVELS
    levels = torch.round(groups / torch.where(scales > 0, scales, 1.0)).to(torch.int8)
    return torch.cat([levels.view(-1)[: len(flat)], scales.view(-1).view(torch.int8)])


def unpack(payload: Tensor, packing: Packing, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What ``pack`` kept of a value of ``shape``."""
    size = prod(shape)
    if packing == "topk":
        kept = 4 * kept_values(size)
        found = torch.zeros(size, device=payload.device)
        found[_words(payload[kept:], torch.int32).long()] = _words(payload[:kept], torch.float32)
        return found.to(dtype).view(shape)
    levels = torch.nn.functional.pad(payload[:size].float(), (0, -size % GROUP)).view(-1, GROUP)
    whole = levels * _words(payload[size:], torch.float32).unsqueeze(1)
    return whole.view(-1)[:size].to(dtype).view(shape)


def _words(payload: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as words; copied, as they may start anywhere."""
    return payload.clone().view(dtype)


@dataclass(slots=True)
class Loss:
    """What packing cost and saved, added up."""

    raw_bytes: int = 0
    packed_bytes: int = 0
    squared_error: float = 0.0
    squared_values: float = 0.0

    @property
    def relative_error(self) -> float:
        """‖lost‖ / ‖values‖."""
        return float((self.squared_error / self.squared_values) ** 0.5) if self.squared_values else 0.0


def loss_of(value: Tensor, packing: Packing) -> Loss:
    """Of one value."""
    kept = unpack(pack(value, packing), packing, tuple(value.shape), torch.float32)
    lost, size = value.float() - kept, value.numel()
    return Loss(
        size * value.element_size(),
        packed_bytes(packing, size),
        float(lost.pow(2).sum()),
        float(value.float().pow(2).sum()),
    )


@dataclass(slots=True)
class GradientPacking:
    """The state of ``packed_gradients`` on one rank; ``loss`` is of all buckets so far, before feedback mends it."""

    packing: Packing
    group: dist.ProcessGroup | None = None
    feedback: bool = True
    residuals: dict[int, Tensor] = field(default_factory=dict)
    loss: Loss = field(default_factory=Loss)


def packed_gradients(state: GradientPacking, bucket: Any) -> torch.futures.Future[Tensor]:
    """A DDP communication hook (``model.register_comm_hook(state, packed_gradients)``): every rank's packed bucket to
    all, unpacked and averaged there. A ring all-reduce would send 2·(n − 1)/n of the raw bytes, this n − 1 payloads."""
    gradient, index = bucket.buffer(), bucket.index()
    residual = state.residuals.get(index)
    whole = gradient if residual is None or residual.shape != gradient.shape else gradient + residual
    payload, shape = pack(whole, state.packing), tuple(gradient.shape)
    lost = whole - unpack(payload, state.packing, shape, gradient.dtype)
    if state.feedback:
        state.residuals[index] = lost
    state.loss.raw_bytes += gradient.numel() * gradient.element_size()
    state.loss.packed_bytes += payload.numel()
    state.loss.squared_error += float(lost.float().pow(2).sum())
    state.loss.squared_values += float(whole.float().pow(2).sum())
    size = dist.get_world_size(state.group)
    gathered = payload.new_empty(size * payload.numel())
    work: Any = dist.all_gather_into_tensor(gathered, payload, group=state.group, async_op=True)

    def average(_: torch.futures.Future[Any]) -> Tensor:
        parts = [unpack(part, state.packing, shape, torch.float32) for part in gathered.chunk(size)]
        return (torch.stack(parts).sum(dim=0) / size).to(gradient.dtype)

    found: torch.futures.Future[Tensor] = work.get_future().then(average)
    return found


packed_gradients.__annotations__.clear()  # DDP compares them as objects; here they are text
