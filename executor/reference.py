"""Reference: the whole model on one device in plain, eager torch, sharing no code with the interpreter but the weights.

Every sequence's attention is computed alone, in fp64 whatever the program's dtype (weights are rounded to it first),
so that what differs from an executed program is the program's arithmetic and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, pi

import torch
from torch import Tensor
from torch.nn import functional

from executor.weights import SeededSource, Source, Weights
from simulator.model import Model
from simulator.program import WeightSlice
from simulator.rope_scaling import RopeScaling

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""q [S, heads, d], k and v [L, heads, d], keys hidden from each query [S, L] → o [S, heads, d]."""


Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""logits [sequences, vocab] and the position each next token will have → tokens [sequences]."""


def greedy(logits: Tensor, positions: Sequence[int]) -> Tensor:
    return logits.argmax(dim=-1)


def attention_weights(q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d), [heads, S, L]."""
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    weights: Tensor = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return weights


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    return torch.einsum("hij,jhd->ihd", attention_weights(q, k, hidden), v)


@dataclass(frozen=True, slots=True)
class RoutingGroup:
    """Tokens (rows of the packed step) that one rank routes, and an expert's slots for them (None: dropless).

    ``chosen``: the experts [tokens, top_k] another run chose, by layer, for the reference to choose too: in bf16 two
    nearly equal experts may change places, and what comes after is then another function, not a rounding error."""

    tokens: tuple[int, ...]
    capacity: int | None
    chosen: Mapping[int, Tensor] | None = None


@dataclass
class Past:
    """Keys and values of one sequence, by layer: [length, kv_heads, head_dim]."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def length(self, layer: int) -> int:
        return len(self.layers[layer][0]) if layer in self.layers else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        if layer in self.layers:
            k, v = (torch.cat(pair) for pair in zip(self.layers[layer], (k, v), strict=True))
        self.layers[layer] = (k, v)
        return k, v


class Reference:
    """A model computed whole. ``precision`` is the dtype it computes in; weights are those of ``dtype``, from
    ``source`` (None: seeded). ``attend`` computes attention in another way (None: as it is defined).

    ``dropped``: every (layer, row of the packed step, expert) that found its expert full, in the order met.
    ``regrets``: of every token whose experts were chosen for it and are not its likeliest, by how much the least of
    them falls short of the last it would have chosen, in logits, over the largest logit of its router."""

    def __init__(
        self,
        model: Model,
        *,
        seed: int = 0,
        dtype: str = "fp32",
        precision: torch.dtype = torch.float64,
        attend: Attend | None = None,
        source: Source | None = None,
    ) -> None:
        self.model, self.precision = model, precision
        self.attend = softmax_attention if attend is None else attend
        source = SeededSource(model, seed) if source is None else source
        self.weights = Weights(source, dtype=dtype, device=torch.device("cpu"))
        self.dropped: list[tuple[int, int, int]] = []
        self.regrets: list[float] = []

    def logits(self, sequences: Sequence[Tensor], routing: Sequence[RoutingGroup] | None = None) -> Tensor:
        """Logits of each sequence's last token, [sequences, vocab]. ``routing`` None: every token routed together."""
        return self.step(sequences, [Past() for _ in sequences], routing)

    def generate(
        self,
        sequences: Sequence[Tensor],
        num_tokens: int,
        *,
        routing: Sequence[Sequence[RoutingGroup] | None] | None = None,
        choose: Choose = greedy,
    ) -> list[list[int]]:
        """Tokens of every sequence: the prompts, then one token of each at a time. ``routing``: of each step."""
        pasts, new = [Past() for _ in sequences], list(sequences)
        generated: list[list[int]] = [[] for _ in sequences]
        for number in range(num_tokens):
            logits = self.step(new, pasts, None if routing is None else routing[number])
            best = choose(logits, [len(tokens) + number for tokens in sequences])
            new = list(best.split(1))  # type: ignore[no-untyped-call]
            for tokens, token in zip(generated, best.tolist(), strict=True):
                tokens.append(token)
        return generated

    def step(
        self, new: Sequence[Tensor], pasts: Sequence[Past], routing: Sequence[RoutingGroup] | None = None
    ) -> Tensor:
        """Logits of each sequence's last new token; the new tokens' keys are added to ``pasts``."""
        model, lengths = self.model, [len(tokens) for tokens in new]
        hidden = self._matrix("embed", model.vocab_size, model.hidden_size)[torch.cat(list(new))]
        for layer in range(model.num_layers):
            normed = self._norm(hidden, f"layers.{layer}.attention_norm")
            parts = zip(torch.split(normed, lengths), pasts, strict=True)
            hidden = hidden + torch.cat([self._attention(layer, part, past) for part, past in parts])
            normed = self._norm(hidden, f"layers.{layer}.feed_forward_norm")
            hidden = hidden + self._feed_forward(layer, normed, routing)
        last = hidden[torch.tensor(lengths).cumsum(0) - 1]
        return self._norm(last, "final_norm") @ self._head()

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        return self.weights.matrix((WeightSlice(name, (0, rows), (0, columns)),)).to(self.precision)

    def _head(self) -> Tensor:
        model = self.model
        if model.tie_word_embeddings:
            return self._matrix("embed", model.vocab_size, model.hidden_size).T
        return self._matrix("lm_head", model.hidden_size, model.vocab_size)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights.vector(name, 0, x.shape[-1]).to(self.precision)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.model.rms_norm_eps) * weight

    def _project(self, layer: int, which: str, heads: int, x: Tensor) -> Tensor:
        """[S, hidden] → [S, heads, head_dim]."""
        model, name = self.model, f"layers.{layer}.attention.{which}"
        width = heads * model.head_dim
        projected = x @ self._matrix(name, model.hidden_size, width)
        if model.qkv_bias:
            projected = projected + self.weights.vector(f"{name}.bias", 0, width).to(self.precision)
        return projected.reshape(len(x), heads, model.head_dim)

    def _attention(self, layer: int, x: Tensor, past: Past) -> Tensor:
        """New tokens of one sequence against all of it, the score matrix formed at once."""
        model = self.model
        q = self._project(layer, "q", model.num_attention_heads, x)
        k, v = (self._project(layer, which, model.num_key_value_heads, x) for which in ("k", "v"))
        if model.qk_norm:
            q = self._norm(q, f"layers.{layer}.attention.q_norm")
            k = self._norm(k, f"layers.{layer}.attention.k_norm")
        start = past.length(layer)
        q, k = self._rotate(q, start), self._rotate(k, start)
        k, v = past.append(layer, k, v)
        serving = torch.arange(model.num_attention_heads) // model.heads_per_kv_head
        hidden = torch.zeros(len(k) - start, len(k), dtype=torch.bool)
        if model.causal:
            distance = torch.arange(start, len(k))[:, None] - torch.arange(len(k))[None, :]
            hidden = distance < 0
            if window := model.layers[layer].window:
                hidden |= distance >= window
        attended = self.attend(q, k[:, serving], v[:, serving], hidden).flatten(1)
        return attended @ self._matrix(f"layers.{layer}.attention.o", attended.shape[1], model.hidden_size)

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        """x·cos + rotate_half(x)·sin with positions start, start + 1, …"""
        theta, size = self.model.rope_theta, x.shape[-1]
        if theta is None:
            return x
        frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
        frequencies = torch.tensor([_stretched(float(one), self.model.rope_scaling) for one in frequencies]).double()
        angles = torch.outer(torch.arange(start, start + len(x), dtype=torch.float64), frequencies)
        angles = torch.cat([angles, angles], dim=-1)[:, None].to(self.precision)
        turned = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1)
        return x * angles.cos() + turned * angles.sin()

    def _feed_forward(self, layer: int, x: Tensor, routing: Sequence[RoutingGroup] | None) -> Tensor:
        model, experts = self.model, self.model.experts
        if not model.layers[layer].routed:
            return self._mlp(f"layers.{layer}.feed_forward", model.intermediate_size, x)
        assert experts is not None
        if routing is None:
            routing = [RoutingGroup(tuple(range(len(x))), self._capacity(len(x)))]
        out = torch.zeros_like(x)
        for group in routing:
            rows = torch.tensor(group.tokens)
            out[rows] = self._routed(layer, x[rows], group)
        if experts.shared_intermediate_size:
            out = out + self._mlp(f"layers.{layer}.shared", experts.shared_intermediate_size, x)
        return out

    def _capacity(self, num_tokens: int) -> int | None:
        experts = self.model.experts
        if experts is None or experts.capacity_factor is None:
            return None
        return min(num_tokens, ceil(experts.capacity_factor * num_tokens * experts.top_k / experts.num_experts))

    def _routed(self, layer: int, x: Tensor, group: RoutingGroup) -> Tensor:
        """Token by token, first choices first; a full expert drops the token."""
        experts = self.model.experts
        assert experts is not None
        logits = x @ self._matrix(f"layers.{layer}.router", x.shape[1], experts.num_experts)
        best, chosen = logits.topk(experts.top_k, dim=-1)
        if group.chosen is not None:
            chosen = group.chosen[layer]
            short = best[:, -1] - logits.gather(1, chosen).amin(dim=1)
            self.regrets += (short[short > 0] / logits.abs().max()).tolist()
        gates = logits.softmax(-1).gather(1, chosen)
        gates = gates / gates.sum(-1, keepdim=True)
        used = [0] * experts.num_experts
        out = torch.zeros_like(x)
        for choice in range(experts.top_k):
            for token in range(len(x)):
                expert = int(chosen[token, choice])
                if group.capacity is not None and used[expert] >= group.capacity:
                    self.dropped.append((layer, group.tokens[token], expert))
                    continue
                used[expert] += 1
                fed = self._mlp(f"layers.{layer}.experts.{expert}", experts.intermediate_size, x[token : token + 1])
                out[token] += gates[token, choice] * fed[0]
        return out

    def _mlp(self, name: str, width: int, x: Tensor) -> Tensor:
        model = self.model
        act = functional.gelu if model.hidden_act == "gelu" else functional.silu
        up = x @ self._matrix(f"{name}.up", model.hidden_size, width)
        if model.gated:
            up = act(x @ self._matrix(f"{name}.gate", model.hidden_size, width)) * up
        else:
            up = act(up)
        return up @ self._matrix(f"{name}.down", width, model.hidden_size)


def _stretched(frequency: float, scaling: RopeScaling | None) -> float:
    """A rotary frequency as the model's scaling leaves it, by wavelength."""
    if scaling is None:
        return frequency
    wavelength, context = 2 * pi / frequency, scaling.original_max_position_embeddings
    if scaling.kind == "linear" or wavelength > context / scaling.low_freq_factor:
        return frequency / scaling.factor
    if wavelength < context / scaling.high_freq_factor:
        return frequency
    ramp = context / wavelength - scaling.low_freq_factor
    ramp /= scaling.high_freq_factor - scaling.low_freq_factor
    return (1 - ramp) * frequency / scaling.factor + ramp * frequency
