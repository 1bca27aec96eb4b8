"""Error report: how far the two-level document's own form, a softmax per dimension slice, is from the model it cuts.

It is another model (each head of d dimensions becomes m of d/m), so its error is not rounding. Two controls give the
scale: bf16 inputs and weights (what one accepts) and uniform attention (what ignores the scores altogether).
Weights are seeded, not trained; trained models have sharper attention. Computed in fp64 on one device.

Of every layer, on the exact model's q, k and v: error of o, cosine of each head's o, KL divergence of the attention
rows. Of the whole model run with the form in every layer: error of the last tokens' logits, and how often the most
likely token stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from executor.reference import Attend, Reference, attention_weights, softmax_attention
from simulator.model import Model
from simulator.weight_slice import DimSlice

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""q, k, v, hidden as ``executor.reference.Attend`` takes them."""

Form = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""An ``Attend`` that also returns its attention rows, [copies, heads, S, L]."""


@dataclass(frozen=True, slots=True)
class FormError:
    """One form against exact attention. Errors are of norms; KL in nats, KL(exact ‖ form) averaged over rows."""

    form: str
    relative_error: float
    max_abs_error: float
    head_cosine: tuple[float, ...]
    attention_kl: float
    logits_relative_error: float
    top1_agreement: float


def error_report(model: Model, slices: int, sequences: Sequence[Tensor], *, seed: int = 0) -> tuple[FormError, ...]:
    """``per_slice`` with m = ``slices``, and the controls ``bf16`` and ``uniform``, on ``sequences`` of tokens."""
    recorded: list[Inputs] = []

    def recording(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        recorded.append((q, k, v, hidden))
        return softmax_attention(q, k, v, hidden)

    forms: tuple[tuple[str, Form, str], ...] = (
        ("per_slice", per_slice(model, slices), "fp32"),
        ("bf16", bf16, "bf16"),
        ("uniform", uniform, "fp32"),
    )
    with torch.inference_mode():
        exact = Reference(model, seed=seed, attend=recording).logits(sequences)
        found = []
        for name, form, dtype in forms:
            logits = Reference(model, seed=seed, dtype=dtype, attend=attend_by(form)).logits(sequences)
            found.append(_compare(name, form, recorded, logits, exact))
    return tuple(found)


def attend_by(form: Form) -> Attend:
    """A form as the reference's attention."""
    return lambda q, k, v, hidden: form(q, k, v, hidden)[0]


def per_slice(model: Model, slices: int) -> Form:
    """softmax(Q_j·K_jᵀ/√d_s)·V_j for every slice j, side by side; paired slices of q and k if positions are rotary."""

    def form(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        rows, outputs = [], []
        for index in range(slices):
            keys = DimSlice(model.head_dim, slices, index, paired=model.rope_theta is not None)
            weights = attention_weights(_dims(q, keys), _dims(k, keys), hidden)
            values = _dims(v, DimSlice(model.head_dim, slices, index))
            outputs.append(torch.einsum("hij,jhd->ihd", weights, values))
            rows.append(weights)
        return torch.cat(outputs, dim=-1), torch.stack(rows)

    return form


def bf16(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs, attention rows and result rounded to bf16, sums kept wider, as fused kernels do."""
    q, k, v = (_rounded(x) for x in (q, k, v))
    weights = _rounded(attention_weights(q, k, hidden))
    return _rounded(torch.einsum("hij,jhd->ihd", weights, v)), weights[None]


def uniform(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the values a query sees."""
    seen = (~hidden).to(q.dtype)
    weights = (seen / seen.sum(-1, keepdim=True)).expand(q.shape[1], -1, -1)
    return torch.einsum("hij,jhd->ihd", weights, v), weights[None]


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def _dims(x: Tensor, dims: DimSlice) -> Tensor:
    return torch.cat([x[..., start:stop] for start, stop in dims.runs], dim=-1)


def _compare(name: str, form: Form, recorded: Sequence[Inputs], logits: Tensor, exact: Tensor) -> FormError:
    """Errors over all layers and sequences: ``recorded`` has one entry for each of both."""
    wanted, found, divergences = [], [], []
    for q, k, v, hidden in recorded:
        o, weights = form(q, k, v, hidden)
        wanted.append(softmax_attention(q, k, v, hidden))
        found.append(o)
        divergences.append(divergence(attention_weights(q, k, hidden), weights).flatten())
    o_exact, o_form = torch.cat(wanted), torch.cat(found)
    by_head = functional.cosine_similarity(o_exact.transpose(0, 1).flatten(1), o_form.transpose(0, 1).flatten(1), dim=1)
    return FormError(
        form=name,
        relative_error=_relative(o_form, o_exact),
        max_abs_error=float((o_form - o_exact).abs().max()),
        head_cosine=tuple(by_head.tolist()),
        attention_kl=float(torch.cat(divergences).mean()),
        logits_relative_error=_relative(logits, exact),
        top1_agreement=float((logits.argmax(-1) == exact.argmax(-1)).double().mean()),
    )


def divergence(exact: Tensor, form: Tensor) -> Tensor:
    """KL(exact row ‖ form's row) in nats: [heads, S, L] and [copies, heads, S, L] → [copies, heads, S].

    A weight that the form rounds to zero counts as its smallest number, so that one row cannot make it infinite.
    """
    smallest = torch.finfo(form.dtype).tiny
    logs = exact.clamp_min(smallest).log() - form.clamp_min(smallest).log()
    return (exact * logs).sum(-1)


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
