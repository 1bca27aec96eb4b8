"""Mixture of experts: routing with capacity, dispatch by expert, grouped feed-forward, gate-weighted combination.

Gates are the softmax over all experts, taken at the top-k and normalised to sum to one. With a capacity, pairs
(token, expert) beyond an expert's slots are dropped, all first choices before all second ones, each in token order:
the same tokens are dropped wherever the program runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from executor.rows import blocks
from simulator.program import Combine, Dispatch, Experts, Route
from simulator.workspace import MAX_SPARE_ROWS

Router = Literal["torch", "triton"]
ROUTER_TOLERANCE = 1e-5  # of gates: fp32 rounding
GROUPED_MM_MULTIPLE = 8  # elements: rows of both matrices start at 16 bytes, which the CUDA kernel asks for in bf16


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


def route(operation: Route, x: Tensor, gate: Tensor, router: Router = "torch") -> Assignment:
    """x [T, hidden] @ gate [hidden, experts] → assignment."""
    logits = (x @ gate).float()
    experts, gates = top_experts(logits, operation.top_k, router)
    slots = slots_of(experts, operation.num_experts)
    if operation.capacity is not None:
        slots = torch.where(slots < operation.capacity, slots, -1)
    return Assignment(experts, gates, slots)


def top_experts(logits: Tensor, top_k: int, router: Router) -> tuple[Tensor, Tensor]:
    """The likeliest experts of each token and their gates, [T, k]."""
    if router == "triton":
        from executor.triton_routing import route as routed

        found, shares, _ = routed(logits, top_k)
        return found, shares
    scores, experts = torch.topk(torch.softmax(logits, dim=-1), top_k, dim=-1)
    return experts, scores / scores.sum(dim=-1, keepdim=True)


_ROUTERS: dict[torch.device, Router] = {}


def router_for(device: torch.device) -> Router:
    """Triton's kernel on a GPU where a real call gives what torch gives, else torch's operators; once a device."""
    if device.type != "cuda":
        return "torch"
    if device not in _ROUTERS:
        logits = torch.randn(37, 6, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            (experts, gates), (ours, shares) = (top_experts(logits, 2, router) for router in ("torch", "triton"))
            same = bool((experts == ours).all()) and bool((gates - shares).abs().max() < ROUTER_TOLERANCE)
        except Exception:  # no triton, no compiler, an old driver: whatever keeps it from running
            same = False
        _ROUTERS[device] = "triton" if same else "torch"
    return _ROUTERS[device]


def slots_of(experts: Tensor, num_experts: int) -> Tensor:
    """[T, k] → each pair's place among its expert's pairs, first choices of all tokens before second ones."""
    flat = experts.t().reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = counts_of(flat, num_experts)
    starts = counts.cumsum(0) - counts
    places = torch.empty_like(flat)
    places[order] = torch.arange(len(flat), device=flat.device) - starts[flat[order]]
    return places.view(experts.shape[1], experts.shape[0]).t()


def counts_of(experts: Tensor, num_experts: int) -> Tensor:
    """How often each expert occurs; ``bincount`` would make the host wait for a GPU."""
    counts = torch.zeros(num_experts, dtype=torch.int64, device=experts.device)
    return counts.scatter_add_(0, experts, torch.ones_like(experts))


def dispatch(operation: Dispatch, x: Tensor, assignment: Assignment) -> Tensor | Ragged:
    """Rows sorted by expert: [held·capacity, hidden] with empty slots zero, or ragged."""
    held = operation.experts[1] - operation.experts[0]
    if operation.capacity is None:
        kept, places, counts = _ragged_places(operation.experts, assignment)
        num_rows = _num_rows(operation, counts)
        tokens = _tokens_by_row(kept, places, num_rows)
        return Ragged(x[tokens.clamp_(max=x.shape[0] - 1)], counts)
    kept, places = _slot_places(operation.experts, operation.capacity, assignment)
    tokens = _tokens_by_row(kept, places, held * operation.capacity)
    empty = tokens == x.shape[0]
    return x[tokens.clamp(max=x.shape[0] - 1)].masked_fill_(empty.unsqueeze(-1), 0)


def combine(operation: Combine, rows: Tensor | Ragged, assignment: Assignment) -> Tensor:
    """Gate-weighted sum over each token's rows at the held experts: [T, hidden]; choice by choice, in fp32."""
    if isinstance(rows, Ragged):
        kept, places, _ = _ragged_places(operation.experts, assignment)
        values = rows.rows
    else:
        assert operation.capacity is not None
        kept, places = _slot_places(operation.experts, operation.capacity, assignment)
        values = rows
    if not values.shape[0]:
        return values.new_zeros((operation.num_tokens, operation.hidden))
    rows_of_pairs, out = torch.where(kept, places, 0), values.new_empty((operation.num_tokens, operation.hidden))
    for tokens in blocks(operation.num_tokens, values.device):
        total = torch.zeros(out[tokens].shape, dtype=torch.float32, device=values.device)
        for choice in range(operation.top_k):
            chosen = values[rows_of_pairs[tokens, choice]] * assignment.gates[tokens, choice, None]
            total += chosen.masked_fill_(~kept[tokens, choice, None], 0)
        out[tokens] = total
    return out


def _is_held(assignment: Assignment, span: tuple[int, int]) -> Tensor:
    return (assignment.experts >= span[0]) & (assignment.experts < span[1]) & (assignment.slots >= 0)


def _slot_places(span: tuple[int, int], capacity: int, assignment: Assignment) -> tuple[Tensor, Tensor]:
    """Which pairs the held experts keep, and each pair's row of the slot buffer (of the others: any number)."""
    return _is_held(assignment, span), (assignment.experts - span[0]) * capacity + assignment.slots


def _ragged_places(span: tuple[int, int], assignment: Assignment) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs the held experts keep, each pair's row, and the number of rows of each expert."""
    kept, held = _is_held(assignment, span), span[1] - span[0]
    experts = torch.where(kept, assignment.experts - span[0], held)
    counts = counts_of(experts.flatten(), held + 1)[:held]
    starts = torch.cat([counts.cumsum(0) - counts, counts.new_zeros(1)])
    return kept, starts[experts] + assignment.slots, counts


def _tokens_by_row(kept: Tensor, places: Tensor, num_rows: int) -> Tensor:
    """The token whose copy each row is, [num_rows]; the number of tokens where a row is nobody's."""
    num_tokens, top_k = places.shape
    tokens = torch.full((num_rows + 1,), num_tokens, device=places.device)
    numbers = torch.arange(num_tokens, device=places.device).unsqueeze(1).expand(num_tokens, top_k)
    tokens[torch.where(kept, places, num_rows).flatten()] = (
        numbers.flatten()
    )  # the last row takes all that are not kept
    return tokens[:num_rows]


def _num_rows(operation: Dispatch, counts: Tensor) -> int:
    """Rows of a ragged buffer: every pair's where that is exact or small, so that the host need not wait for the
    counts; a long prefill on a rank with few experts does wait, as room for every pair would be many times too much."""
    pairs = operation.num_tokens * operation.top_k
    if operation.experts == (0, operation.num_experts) or pairs <= MAX_SPARE_ROWS:
        return pairs
    return int(counts.sum())


def feed_forward(operation: Experts, rows: Tensor | Ragged, up: Tensor, down: Tensor) -> Tensor | Ragged:
    """up [held, hidden, width (or gate, up: 2·width)], down [held, width, hidden].

    Capacity rows are [peers, held, capacity, hidden]: every expert takes its slots of all peers at once.
    """
    if isinstance(rows, Ragged):
        active = activation(_grouped(rows.rows, up, rows.counts), operation.kind, operation.gated)
        return Ragged(_grouped(active, down, rows.counts), rows.counts)
    held, peers = up.shape[0], operation.peers
    slots = rows.view(peers, held, -1, rows.shape[-1]).transpose(0, 1).reshape(held, -1, rows.shape[-1])
    out = torch.bmm(activation(torch.bmm(slots, up), operation.kind, operation.gated), down)
    return out.view(held, peers, -1, out.shape[-1]).transpose(0, 1).reshape(rows.shape)


def _grouped(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Each expert's rows times its matrix; rows beyond the counts are left as they come."""
    aligned = rows.shape[1] % GROUPED_MM_MULTIPLE == 0 and weights.shape[2] % GROUPED_MM_MULTIPLE == 0
    if rows.shape[0] and aligned and grouped_mm_works(rows.device, rows.dtype):
        return grouped_mm(rows, weights, counts.cumsum(0).to(torch.int32))
    out, first = rows.new_zeros((rows.shape[0], weights.shape[2])), 0
    for weight, count in zip(weights, counts.tolist(), strict=True):  # makes the host wait: the last resort
        torch.mm(rows[first : first + count], weight, out=out[first : first + count])
        first += count
    return out


def grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """torch's grouped GEMM under the name this version has for it; AttributeError without one."""
    call = functional.grouped_mm if hasattr(functional, "grouped_mm") else torch._grouped_mm
    found: Tensor = call(rows, weights, offs=ends)
    return found


_GROUPED_MM: dict[tuple[torch.device, torch.dtype], bool] = {}


def grouped_mm_works(device: torch.device, dtype: torch.dtype) -> bool:
    """By a real call with an empty group, once a device and dtype."""
    if (device, dtype) not in _GROUPED_MM:
        rows, weights = (
            torch.ones(32, 32, device=device, dtype=dtype),
            torch.ones(3, 32, 32, device=device, dtype=dtype),
        )
        offsets = torch.tensor([16, 16, 32], device=device, dtype=torch.int32)
        try:
            found = grouped_mm(rows, weights, offsets)
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
