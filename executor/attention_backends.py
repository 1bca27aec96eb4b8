"""Attention backends: one call with output and log-sum-exp each, and the probe that picks one by a real call.

Every backend is given either no mask, a causal mask on equal query and key lengths, or a dense additive mask.
Layout [B, S, H, D]; KV heads may be fewer than query heads (grouped). lse is [B, H, S] fp32.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from simulator.errors import ExecutionError

Backend = Literal[
    "flash_attn_4", "flash_attn_3", "flash_attn_2", "torch_flash", "torch_cudnn", "triton", "cpu_flash", "math"
]

PROBE_TOLERANCE = 2e-2  # bf16 rounding of outputs of order one
CPU_BACKENDS: tuple[Backend, ...] = ("cpu_flash", "math")


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, backend: Backend, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(q·kᵀ/√D + mask)·v and its log-sum-exp."""
    match backend:
        case "cpu_flash":
            return _cpu_flash(q, k, v, causal, mask)
        case "math":
            return _math(q, k, v, causal, mask)
        case _ if mask is not None:
            return _math(q, k, v, causal, mask)
        case "triton":
            return mapped(q, k, v, causal=causal)
        case "torch_flash" | "torch_cudnn":
            return _torch_cuda(q, k, v, causal, backend)
        case "flash_attn_2":
            return _flash_attn_2(q, k, v, causal)
        case "flash_attn_3":
            o, lse = _module("flash_attn_interface").flash_attn_func(q, k, v, causal=causal, return_attn_probs=True)[:2]
            return o, lse
        case "flash_attn_4":
            o, lse = _module("flash_attn.cute").flash_attn_func(q, k, v, causal=causal, return_lse=True)[:2]
            return o, lse


def mapped(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, serving: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """Triton's kernel: query head h is served by KV head ``serving[h]`` (None: in even groups)."""
    o, lse = _module("executor.triton_attention").attend(q, k, v, causal=causal, serving=serving)
    return o, lse


def _cpu_flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if q.shape[2] != k.shape[2] and not _cpu_groups_heads():
        k, v = _repeat(k, q.shape[2]), _repeat(v, q.shape[2])
    o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.0, causal, attn_mask=mask
    )
    return o.transpose(1, 2), lse


def _math(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in fp32, whole: for masks and head sizes no fused backend takes."""
    k, v = _repeat(k, q.shape[2]), _repeat(v, q.shape[2])
    scores = torch.einsum("bihd,bjhd->bhij", q.float(), k.float()) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(hidden, float("-inf"))
    if mask is not None:
        scores += mask
    lse = torch.logsumexp(scores, dim=-1)
    o = torch.einsum("bhij,bjhd->bihd", torch.exp(scores - lse.unsqueeze(-1)), v.float())
    return o.to(q.dtype), lse


def _torch_cuda(q: Tensor, k: Tensor, v: Tensor, causal: bool, backend: Backend) -> tuple[Tensor, Tensor]:
    k, v = _repeat(k, q.shape[2]), _repeat(v, q.shape[2])
    heads_first = [value.transpose(1, 2) for value in (q, k, v)]
    if backend == "torch_flash":
        found = torch.ops.aten._scaled_dot_product_flash_attention(*heads_first, 0.0, causal)
    else:
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(*heads_first, None, True, 0.0, causal)
    lse = found[1]
    lse = lse.squeeze(-1) if lse.ndim == 4 else lse
    return found[0].transpose(1, 2), lse[:, :, : q.shape[1]]


def _flash_attn_2(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    found = _module("flash_attn").flash_attn_func(q, k, v, causal=causal, return_attn_probs=True)
    return found[0], found[1][:, :, : q.shape[1]]


def _repeat(value: Tensor, heads: int) -> Tensor:
    """KV heads repeated to as many as there are query heads."""
    if value.shape[2] == heads:
        return value
    return value.repeat_interleave(heads // value.shape[2], dim=2)


def _module(name: str) -> Any:
    return importlib.import_module(name)


@lru_cache(maxsize=1)
def _cpu_groups_heads() -> bool:
    """Whether CPU flash maps query head h to KV head h // group itself (seen to work in 2.13)."""
    version = torch.__version__.split("+", maxsplit=1)[0].split(".")
    return (int(version[0]), int(version[1])) >= (2, 13)


@lru_cache(maxsize=64)
def choose(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """The first backend whose result on a small grouped problem is right; ExecutionError if there is none."""
    problems = []
    for backend in CPU_BACKENDS if device.type == "cpu" else get_args(Backend):
        if device.type != "cpu" and backend == "cpu_flash":
            continue
        found = probe(backend, device, dtype, head_dim)
        if found is None:
            return backend
        problems.append(f"{backend}: {found}")
    raise ExecutionError(f"no attention backend for {dtype}, head_dim {head_dim} on {device}: {'; '.join(problems)}")


def chosen(named: str | None, device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """The backend asked for by name if it works here, or ``choose``'s."""
    if named is None:
        return choose(device, dtype, head_dim)
    for backend in get_args(Backend):
        if backend == named:
            if problem := probe(backend, device, dtype, head_dim):
                raise ExecutionError(f"attention backend {named} does not work on {device} in {dtype}: {problem}")
            found: Backend = backend
            return found
    raise ExecutionError(f"attention backend {named!r} is unknown; known: {', '.join(get_args(Backend))}")


def probe(backend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None if the backend works, else why not: a causal square and a longer prefix, two query heads a KV head."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 64, heads, head_dim, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    try:
        for causal in (True, False):
            queries = q if causal else q[:, :7]
            got, got_lse = attend(queries, k, v, causal=causal, backend=backend)
            want, want_lse = _math(queries, k, v, causal, None)
            error = max(
                (got.float() - want.float()).abs().max().item(), (got_lse.float() - want_lse).abs().max().item()
            )
            if not error < PROBE_TOLERANCE:
                return f"wrong by {error:.3g}"
    except (ImportError, RuntimeError, TypeError, AttributeError, NotImplementedError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return None
