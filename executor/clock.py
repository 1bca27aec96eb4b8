"""Clocks: how a rank marks time without making its device wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

Mark = float | torch.cuda.Event


class Clock(Protocol):
    """``mark`` is cheap and never waits; ``seconds`` is called after the step and may."""

    @property
    def origin(self) -> Mark: ...

    def start(self) -> None:
        """A step begins: marks are read relative to now."""

    def mark(self) -> Mark: ...

    def beginning(self) -> Mark:
        """Of the operation that comes next."""

    def seconds(self, marks: Sequence[Mark]) -> list[float]: ...


@dataclass
class HostClock:
    """``perf_counter``: right where operations run on the calling thread (CPU). There what lies between two operations
    is the second one's: the thread that computes is the one that gets there."""

    origin: float = field(default_factory=time.perf_counter)
    latest: float = 0.0

    def start(self) -> None:
        self.origin = self.latest = time.perf_counter()

    def mark(self) -> float:
        self.latest = time.perf_counter()
        return self.latest

    def beginning(self) -> float:
        return self.latest

    def seconds(self, marks: Sequence[Mark]) -> list[float]:
        return [mark - self.origin for mark in marks if isinstance(mark, float)]


class CudaClock:
    """CUDA events on the current stream, so that spans are the device's and the host runs ahead."""

    def __init__(self) -> None:
        self.origin = _event()
        self.start()

    def start(self) -> None:
        self.origin = self.mark()

    def mark(self) -> torch.cuda.Event:
        event = _event()
        event.record()
        return event

    def beginning(self) -> torch.cuda.Event:
        return self.mark()

    def seconds(self, marks: Sequence[Mark]) -> list[float]:
        torch.cuda.synchronize()
        events = [mark for mark in marks if isinstance(mark, torch.cuda.Event)]
        return [self.origin.elapsed_time(event) / 1e3 for event in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def clock_for(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else HostClock()
