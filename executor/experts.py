"""Mixture of experts: routing with capacity, dispatch by expert, grouped feed-forward, gate-weighted combination.

Gates are the softmax over all experts, taken at the top-k and normalised to sum to one. With a capacity, pairs
(token, expert) beyond an expert's slots are dropped, all first choices before all second ones, each in token order:
the same tokens are dropped wherever the program runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from simulator.program import Combine, Dispatch, Experts, Route


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where each token goes: expert, gate and slot inside the expert, all [T, top_k]; slot −1 is dropped."""

    experts: Tensor
    gates: Tensor
    slots: Tensor


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of the held experts one after another, dropless: ``counts[e]`` rows of the e-th held expert."""

    rows: Tensor
    counts: Tensor


def route(operation: Route, x: Tensor, gate: Tensor) -> Assignment:
    """x [T, hidden] @ gate [hidden, experts] → assignment."""
    scores = torch.softmax((x @ gate).float(), dim=-1)
    gates, experts = torch.topk(scores, operation.top_k, dim=-1)
    gates = gates / gates.sum(dim=-1, keepdim=True)
    slots = slots_of(experts, operation.num_experts)
    if operation.capacity is not None:
        slots = torch.where(slots < operation.capacity, slots, -1)
    return Assignment(experts, gates, slots)


def slots_of(experts: Tensor, num_experts: int) -> Tensor:
    """[T, k] → each pair's place among its expert's pairs, first choices of all tokens before second ones."""
    flat = experts.t().reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_experts)
    starts = counts.cumsum(0) - counts
    places = torch.empty_like(flat)
    places[order] = torch.arange(len(flat), device=flat.device) - starts[flat[order]]
    return places.view(experts.shape[1], experts.shape[0]).t()


def dispatch(operation: Dispatch, x: Tensor, assignment: Assignment) -> Tensor | Ragged:
    """Rows sorted by expert: [held·capacity, hidden] with empty slots zero, or ragged."""
    held = operation.experts[1] - operation.experts[0]
    if operation.capacity is None:
        tokens, rows, counts = _ragged_places(operation.experts, assignment)
        gathered = torch.empty((len(rows), x.shape[1]), dtype=x.dtype, device=x.device)
        gathered[rows] = x[tokens]
        return Ragged(gathered, counts)
    slots = torch.zeros((held * operation.capacity, x.shape[1]), dtype=x.dtype, device=x.device)
    tokens, _, rows = _slot_places(operation.experts, operation.capacity, assignment)
    slots[rows] = x[tokens]
    return slots


def combine(operation: Combine, rows: Tensor | Ragged, assignment: Assignment) -> Tensor:
    """Gate-weighted sum over each token's rows at the held experts: [T, hidden]."""
    if isinstance(rows, Ragged):
        tokens, places, _ = _ragged_places(operation.experts, assignment)
        held = _is_held(assignment, operation.experts)
        gates, values = assignment.gates[held], rows.rows[places]
    else:
        assert operation.capacity is not None
        tokens, choices, places = _slot_places(operation.experts, operation.capacity, assignment)
        gates, values = assignment.gates[tokens, choices], rows[places]
    total = torch.zeros((operation.num_tokens, operation.hidden), dtype=torch.float32, device=values.device)
    total.index_add_(0, tokens, values * gates.unsqueeze(-1))
    return total.to(values.dtype)


def _is_held(assignment: Assignment, span: tuple[int, int]) -> Tensor:
    return (assignment.experts >= span[0]) & (assignment.experts < span[1]) & (assignment.slots >= 0)


def _slot_places(span: tuple[int, int], capacity: int, assignment: Assignment) -> tuple[Tensor, Tensor, Tensor]:
    """Kept pairs of the held experts: (token, choice, row of the slot buffer)."""
    tokens, choices = _is_held(assignment, span).nonzero(as_tuple=True)
    experts = assignment.experts[tokens, choices] - span[0]
    return tokens, choices, experts * capacity + assignment.slots[tokens, choices]


def _ragged_places(span: tuple[int, int], assignment: Assignment) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of the held experts: (token, row), and the number of rows of each."""
    held = _is_held(assignment, span)
    tokens, choices = held.nonzero(as_tuple=True)
    experts = assignment.experts[tokens, choices] - span[0]
    counts = torch.bincount(experts, minlength=span[1] - span[0])
    starts = counts.cumsum(0) - counts
    return tokens, starts[experts] + assignment.slots[tokens, choices], counts


def feed_forward(operation: Experts, rows: Tensor | Ragged, up: Tensor, down: Tensor) -> Tensor | Ragged:
    """up [held, hidden, width (or gate, up: 2·width)], down [held, width, hidden].

    Capacity rows are [peers, held, capacity, hidden]: every expert takes its slots of all peers at once.
    """
    if isinstance(rows, Ragged):
        hidden = _grouped(rows.rows, up, rows.counts)
        return Ragged(_grouped(activation(hidden, operation.kind, operation.gated), down, rows.counts), rows.counts)
    held, peers = up.shape[0], operation.peers
    slots = rows.view(peers, held, -1, rows.shape[-1]).transpose(0, 1).reshape(held, -1, rows.shape[-1])
    out = torch.bmm(activation(torch.bmm(slots, up), operation.kind, operation.gated), down)
    return out.view(held, peers, -1, out.shape[-1]).transpose(0, 1).reshape(rows.shape)


def _grouped(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Each expert's rows times its matrix."""
    if rows.shape[0] and _grouped_mm_works(rows.device, rows.dtype):
        return functional.grouped_mm(rows, weights, offs=counts.cumsum(0).to(torch.int32))
    parts = torch.split(rows, counts.tolist())
    return torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)])


_GROUPED_MM: dict[tuple[torch.device, torch.dtype], bool] = {}


def _grouped_mm_works(device: torch.device, dtype: torch.dtype) -> bool:
    """By a real call with an empty group, once a device and dtype."""
    if (device, dtype) not in _GROUPED_MM:
        rows, weights = (
            torch.ones(32, 32, device=device, dtype=dtype),
            torch.ones(3, 32, 32, device=device, dtype=dtype),
        )
        offsets = torch.tensor([16, 16, 32], device=device, dtype=torch.int32)
        try:
            found = functional.grouped_mm(rows, weights, offs=offsets)
            _GROUPED_MM[device, dtype] = bool((found == 32).all())
        except (AttributeError, RuntimeError, NotImplementedError):
            _GROUPED_MM[device, dtype] = False
    return _GROUPED_MM[device, dtype]


def activation(x: Tensor, kind: str, gated: bool) -> Tensor:
    """gelu (exact) or silu of x, or of its first half times its second."""
    if gated:
        gate, up = x.chunk(2, dim=-1)
        return (functional.gelu(gate) if kind == "gelu" else functional.silu(gate)).mul_(up)
    return functional.gelu(x) if kind == "gelu" else functional.silu(x)
