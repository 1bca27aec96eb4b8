"""Compression report: what packing a generation's messages saves in bytes and costs in logits, on one device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from executor.replay import replay
from executor.session import Generation
from simulator.packing import packed
from simulator.program import Packing, Send


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """Of the prefill: bytes sent point to point plain and packed, and how far its logits move."""

    plain_bytes: int
    packed_bytes: int
    relative_error: float
    max_abs_error: float
    same_tokens: float


def report(generation: Generation, packing: Packing) -> CompressionReport:
    """Replays the prefill both ways. ``relative_error`` is ‖packed − plain‖ / ‖plain‖ of the logits."""
    plain = replace(generation, programs=generation.programs[:1], warm_up=0, repeats=1, keep_logits=True)
    small = replace(plain, programs=(packed(plain.programs[0], packing),))
    theirs, ours = (
        torch.cat([sample for rank in replay(one).logits[0] for sample in rank]).float() for one in (plain, small)
    )
    sent = [
        sum(op.num_bytes for operations in one.programs[0].ranks for op in operations if isinstance(op, Send))
        for one in (plain, small)
    ]
    return CompressionReport(
        sent[0],
        sent[1],
        float((ours - theirs).norm() / theirs.norm()),
        float((ours - theirs).abs().max()),
        float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    )
