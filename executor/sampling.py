"""Sampling: from logits to the next token, greedily or at random, the same wherever the program runs.

The random number of a token is a hash of (seed, sequence, position), never a generator's state, so it does not depend
on which rank samples, in which micro-batch, or what was sampled before. A token is then drawn by inverting the
cumulative distribution over the tokens in descending order of probability: temperature first, then top-k, then top-p
(the smallest set whose probability reaches p), as in Hugging Face's and vLLM's samplers. Ranks that gather the same
logits draw the same token. Two placements do too unless their rounding (1e-6) falls on either side of the drawn number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simulator.errors import SpecError

DRAWN_BITS = 53  # of a float64's mantissa


@dataclass(frozen=True, slots=True)
class Sampling:
    """``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 leave every token in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < 1e3:
            raise SpecError(f"sampling: temperature {self.temperature} is not in [0, 1000); 0 is greedy")
        if self.top_k < 0:
            raise SpecError(f"sampling: top_k {self.top_k} is negative; 0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise SpecError(f"sampling: top_p {self.top_p} is not in (0, 1]; 1 keeps every token")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling()


def drawn(seed: int, sequence: int, position: int) -> float:
    """The uniform number in [0, 1) of a sequence's token at ``position``."""
    digest = hashlib.blake2b(f"{seed}|{sequence}|{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> (64 - DRAWN_BITS)) / float(1 << DRAWN_BITS)


def draws(sampling: Sampling, places: Iterable[tuple[int, int]], device: torch.device) -> Tensor:
    """The numbers of (sequence, position) pairs, [rows, 1] fp64, put on the device without waiting for it."""
    numbers = torch.tensor([[drawn(sampling.seed, *place)] for place in places], dtype=torch.float64)
    if device.type == "cuda":
        return numbers.pin_memory().to(device, non_blocking=True)
    return numbers


def sample(logits: Tensor, sampling: Sampling, numbers: Tensor) -> Tensor:
    """logits [rows, vocab] (−inf: not a token) and ``draws``' numbers [rows, 1] → tokens [rows]."""
    if sampling.greedy:
        return logits.argmax(dim=-1)
    scores = logits.to(torch.float64) / sampling.temperature
    ordered, tokens = torch.sort(scores, dim=-1, descending=True, stable=True)
    if 0 < sampling.top_k < ordered.shape[-1]:
        ordered, tokens = ordered[:, : sampling.top_k], tokens[:, : sampling.top_k]
    shares = torch.softmax(ordered, dim=-1)
    reached = shares.cumsum(dim=-1)
    kept = reached - shares < sampling.top_p  # a token stays if those before it do not reach p yet
    shares = torch.where(kept, shares, 0.0)
    cumulative = shares.cumsum(dim=-1)
    number = numbers * cumulative[:, -1:]
    place = (cumulative <= number).sum(dim=-1, keepdim=True).clamp_(max=ordered.shape[-1] - 1)
    return tokens.gather(1, place).squeeze(1)


def chooser(sampling: Sampling) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """What the one-device reference does with its logits [sequences, vocab] and the positions to come."""

    def choose(logits: Tensor, positions: Sequence[int]) -> Tensor:
        return sample(logits, sampling, draws(sampling, enumerate(positions), logits.device))

    return choose
