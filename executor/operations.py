"""Operations: what each compute operation of a program does to its rank's tensors.

The same code runs on gloo ranks, on CUDA ranks, in the one-device replay, and under calibration's stopwatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from executor import attention as attend
from executor import dim_slices
from executor import experts as moe
from executor.attention_backends import Backend
from executor.cache import Cache
from executor.rotary import frequencies
from executor.rows import blocks, join, positions_of, sequences_of, take
from executor.sampling import GREEDY, Sampling, draws
from executor.sampling import sample as sampled
from executor.weights import Weights
from simulator import program as p
from simulator.program import WeightSlice
from simulator.rope_scaling import RopeScaling
from simulator.tile import Batch, Block

Value = Tensor | moe.Assignment | moe.Ragged


@dataclass(frozen=True, slots=True)
class Rank:
    """What a rank computes with."""

    weights: Weights
    cache: Cache
    device: torch.device
    backend: Backend
    sampling: Sampling = GREEDY


def compute(operation: p.Compute, reads: Sequence[Value], rank: Rank) -> tuple[Value, ...]:
    """The values ``operation`` writes, from those it reads."""
    weights = rank.weights
    match operation, reads:
        case p.Linear(), (Tensor() as x,):
            return (linear(operation, x, weights),)
        case p.Norm(), (Tensor() as x,):
            return (rms_norm(x, weights.vector(operation.weight, 0, operation.width), operation.eps),)
        case p.Rope(), (Tensor() as qkv,):
            return rope(operation, qkv, weights)
        case p.Attention(), (Tensor() as q, *kv):
            kv = [dim_slices.padded(operation, *tensors(kv))] if operation.value_dim else kv
            o, lse = attend.attention(operation, q, keys_of(operation, kv, rank.cache, q), rank.backend)
            o = o[..., : operation.value_dim].contiguous() if operation.value_dim else o
            return (o, lse)[: len(operation.writes)]
        case p.Scores(), (Tensor() as q, *kv):
            return (dim_slices.scores(operation, q, keys_of(operation, kv, rank.cache, q)),)
        case p.WeighValues(), (Tensor() as score, *kv):
            return (dim_slices.weigh_values(operation, score, keys_of(operation, kv, rank.cache, score)),)
        case p.MergeAttention(), parts:
            return attend.merge(tensors(parts))[: len(operation.writes)]
        case p.Activation(), (Tensor() as x,):
            return (moe.activation(x, operation.kind, operation.gated),)
        case p.Add(), (Tensor() as x, Tensor() as y):
            return (x + y,)
        case p.Store(), (Tensor() as kv, *_):
            rank.cache.store(operation, kv)
            return ()
        case p.Recall(), _:
            return (rank.cache.recall(operation),)
        case p.Slice(), (Tensor() as x,):
            return (take(x, operation.batch, operation.source, operation.target),)
        case p.Concat(), parts:
            return (join(tensors(parts), operation.batch, operation.parts, operation.target),)
        case p.Embed(), (Tensor() as tokens,):
            return (embed(operation, tokens, weights),)
        case p.Sample(), (Tensor() as logits,):
            return (sample(operation, logits, rank.sampling),)
        case p.Route() | p.Dispatch() | p.Experts() | p.Combine(), _:
            return (routed(operation, reads, weights),)
    raise unreadable(operation, reads)


def routed(operation: p.Route | p.Dispatch | p.Experts | p.Combine, reads: Sequence[Value], weights: Weights) -> Value:
    """The operations of a mixture of experts."""
    match operation, reads:
        case p.Route(), (Tensor() as x,):
            return moe.route(operation, x, weights.matrix((operation.weight,)), moe.router_for(x.device))
        case p.Dispatch(), (Tensor() as x, moe.Assignment() as assignment):
            return moe.dispatch(operation, x, assignment)
        case p.Experts(), (Tensor() | moe.Ragged() as rows, *_):
            return moe.feed_forward(operation, rows, *expert_matrices(operation, weights))
        case p.Combine(), (Tensor() | moe.Ragged() as rows, moe.Assignment() as assignment):
            return moe.combine(operation, rows, assignment)
    raise unreadable(operation, reads)


def unreadable(operation: p.Compute, reads: Sequence[Value]) -> TypeError:
    return TypeError(f"{type(operation).__name__} cannot read {[type(value).__name__ for value in reads]}")


def tensors(values: Sequence[Value]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def linear(operation: p.Linear, x: Tensor, weights: Weights) -> Tensor:
    x = x.flatten(1) if x.ndim > 2 else x
    matrix = weights.matrix(operation.weights)
    return torch.addmm(weights.bias(operation.weights), x, matrix) if operation.bias else x @ matrix


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.device.type != "cpu":
        return functional.rms_norm(x, (x.shape[-1],), weight, eps)
    out = torch.empty(x.shape, dtype=x.dtype)
    for rows in blocks(x.shape[0], x.device):
        out[rows] = functional.rms_norm(x[rows], (x.shape[-1],), weight, eps)
    return out


def embed(operation: p.Embed, tokens: Tensor, weights: Weights) -> Tensor:
    """Rows of this rank's part of the vocabulary; zero for the other tokens."""
    table = weights.matrix((operation.weight,))
    first, last = operation.weight.inputs
    mine = (tokens >= first) & (tokens < last)
    rows = functional.embedding(torch.where(mine, tokens - first, 0), table)
    return rows.masked_fill_(~mine.unsqueeze(-1), 0)


def sample(operation: p.Sample, logits: Tensor, sampling: Sampling = GREEDY) -> Tensor:
    """The next token of every row, as a vocabulary entry."""
    if sampling.greedy:
        best = logits.argmax(dim=-1)
        return best if operation.shards == 1 else _entry(operation, logits.shape[1] // operation.shards, best)
    if operation.shards > 1:
        width = logits.shape[1] // operation.shards
        columns = torch.arange(logits.shape[1], device=logits.device)
        real = torch.where(columns % width < _shard_size(operation, columns // width), 0, 1)
        logits = logits[:, torch.argsort(real, stable=True)[: operation.vocab]]  # without the padding, in order
    numbers = draws(sampling, next_places(operation), logits.device)
    return sampled(logits, sampling, numbers)


def next_places(operation: p.Sample) -> list[tuple[int, int]]:
    """(sequence of the batch, position of the token to come) of every row."""
    found, sequence = [], 0
    for group, spans in zip(operation.batch, operation.block, strict=True):
        found += [(sequence + i, stop) for i in range(group.count) for _, stop in spans]
        sequence += group.count
    return found


def _shard_size(operation: p.Sample, shard: Tensor) -> Tensor:
    """Columns of a shard that are tokens: ``even_split``, on the device."""
    base, extra = divmod(operation.vocab, operation.shards)
    return torch.where(shard < extra, base + 1, base)


def _entry(operation: p.Sample, width: int, column: Tensor) -> Tensor:
    """Column of the padded shards → vocabulary entry."""
    base, extra = divmod(operation.vocab, operation.shards)
    shard = column // width
    return shard * base + shard.clamp(max=extra) + column % width


def rope(operation: p.Rope, qkv: Tensor, weights: Weights) -> tuple[Tensor, ...]:
    """q [T, heads, D] and kv [T, 2, kv_heads, D] (or k and v): views of one tensor (``qkv`` if it only splits)."""
    heads, kv_heads, size = operation.heads, operation.kv_heads, operation.head_dim
    packed = qkv.view(-1, heads + 2 * kv_heads, size)
    if operation.theta is not None or operation.qk_norm:
        parts = [packed[:, : heads + kv_heads], packed[:, heads + kv_heads :]]
        if operation.qk_norm:
            names = [f"layers.{operation.layer}.attention.{which}_norm" for which in ("q", "k")]
            q_weight, k_weight = (weights.vector(name, 0, size) for name in names)
            q = rms_norm(packed[:, :heads], q_weight, operation.eps)
            k = rms_norm(packed[:, heads : heads + kv_heads], k_weight, operation.eps)
            parts[0] = torch.cat([q, k], dim=1)
        packed = _rotated(operation, parts[0], parts[1])
    if len(operation.writes) == 3:
        return packed[:, :heads], packed[:, heads : heads + kv_heads], packed[:, heads + kv_heads :]
    return packed[:, :heads], packed[:, heads:].view(-1, 2, kv_heads, size)


def _rotated(operation: p.Rope, qk: Tensor, v: Tensor) -> Tensor:
    """[T, heads + 2·kv_heads, D]: q and k with the two halves of D rotated as pairs, v as it is."""
    rotated = torch.empty((qk.shape[0], qk.shape[1] + v.shape[1], qk.shape[2]), dtype=qk.dtype, device=qk.device)
    rotated[:, qk.shape[1] :] = v
    if operation.theta is None:
        rotated[:, : qk.shape[1]] = qk
        return rotated
    half, whole = qk.shape[2] // 2, qk.shape[2] * operation.slices
    cos, sin = _angles(operation.batch, operation.block, operation.theta, operation.scaling, whole, qk.device)
    if operation.slices > 1:
        cos, sin = (table.narrow(-1, operation.slice_index * half, half) for table in (cos, sin))
    left, right, out = qk[..., :half], qk[..., half:], rotated[:, : qk.shape[1]]
    for rows in blocks(qk.shape[0], qk.device):
        out[rows, :, :half] = (left[rows] * cos[rows]).sub_(right[rows] * sin[rows])
        out[rows, :, half:] = (right[rows] * cos[rows]).add_(left[rows] * sin[rows])
    return rotated


@lru_cache(maxsize=64)
def _angles(
    batch: Batch, block: Block, theta: float, scaling: RopeScaling | None, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of position × frequency, [T, 1, D/2] fp32."""
    turning, positions = frequencies(theta, head_dim, scaling, device), positions_of(batch, block, device)
    cos, sin = (torch.empty((len(positions), 1, head_dim // 2), device=device) for _ in range(2))
    for rows in blocks(len(positions), device):
        angles = positions[rows].to(torch.float64)[:, None, None] * turning
        cos[rows], sin[rows] = angles.cos(), angles.sin()
    return cos, sin


def forget_angles() -> None:
    """Make them anew when they are next needed."""
    _angles.cache_clear()


def keys_of(
    operation: p.Attention | p.Scores | p.WeighValues, reads: Sequence[Value], cache: Cache, q: Tensor
) -> list[Tensor]:
    """Every segment's keys and values, [count, rows, 2, kv_heads, D] views."""
    kv_heads = operation.kv_heads[1] - operation.kv_heads[0]
    value = reads[0] if reads else None
    found, row, sequence = [], 0, 0
    for segment in operation.segments:
        keys: Tensor | None
        if isinstance(value, Tensor):
            rows = value.narrow(0, row, segment.count * segment.kv_rows)
            keys = sequences_of(rows, segment.count) if segment.kv_rows else None
        else:
            keys = cache.rows(operation.layer, sequence, segment.count, segment.kv_rows)
        found.append(q.new_empty((segment.count, 0, 2, kv_heads, operation.head_dim)) if keys is None else keys)
        row += segment.count * segment.kv_rows
        sequence += segment.count
    return found


def expert_slices(operation: p.Experts, expert: int) -> tuple[tuple[WeightSlice, ...], tuple[WeightSlice, ...]]:
    """(gate and up, or up alone) and (down,) of one expert, cut to the rank's part of its width."""
    name, hidden, width = f"layers.{operation.layer}.experts.{expert}", (0, operation.hidden), operation.intermediate
    inputs = ("gate", "up") if operation.gated else ("up",)
    down = WeightSlice(f"{name}.down", width, hidden)
    return tuple(WeightSlice(f"{name}.{which}", hidden, width) for which in inputs), (down,)


def expert_matrices(operation: p.Experts, weights: Weights) -> tuple[Tensor, Tensor]:
    """[held, hidden, width or 2·width] and [held, width, hidden] of the held experts, stacked once."""
    slices = [expert_slices(operation, expert) for expert in range(*operation.experts)]
    return weights.stack(tuple(pair[0] for pair in slices)), weights.stack(tuple(pair[1] for pair in slices))


def preload(operation: p.Operation, weights: Weights) -> None:
    """Make the weights ``operation`` reads."""
    match operation:
        case p.Linear():
            weights.matrix(operation.weights)
            if operation.bias:
                weights.bias(operation.weights)
        case p.Norm():
            weights.vector(operation.weight, 0, operation.width)
        case p.Embed() | p.Route():
            moe.router_for(weights.matrix((operation.weight,)).device)
        case p.Experts():
            up, _ = expert_matrices(operation, weights)
            moe.grouped_mm_works(up.device, up.dtype)
        case _:
            pass
