"""Graphs: a rank's decode steps as CUDA graphs, so that a step costs one launch instead of one a kernel.

A program has fixed shapes, so each decode program (placement, batch, context) gets a graph of its own: the first run is
eager, capture follows it outside the timed step, later runs of the same program (repeats) replay. What a step does to
Python state beside its kernels — the caches' lengths, what the transport counts — is noted at capture and put back at
replay. Where capture fails, the rank runs eagerly from then on and says so in one line.

What it leaves out: operations of a graph have no spans of their own; prefill; tokens drawn at random, whose numbers are
made on the host.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from executor.cache import Cache
from executor.operations import Value, forget_angles
from executor.transfers import Issued

LOG = logging.getLogger("attnplan.graphs")

Body = Callable[[Tensor | None], dict[str, Value]]
"""A step: tokens in (on the ranks that embed), the values it keeps out."""
Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]


def cuda_capture(body: Callable[[], None]) -> Replay:
    """Record ``body``'s kernels without running them. Tensors it makes live as long as the graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    replay: Replay = graph.replay
    return replay


@dataclass(slots=True)
class Captured:
    """A step's graph, its input and outputs, and what else it changes."""

    replay: Replay
    tokens: Tensor | None
    kept: dict[str, Value]
    lengths: dict[int, list[int]]
    issued: Issued


@dataclass
class Graphs:
    """The graphs of one rank's session, by program number. ``problem``: why it captures no more."""

    cache: Cache
    capture: Capture = cuda_capture
    captured: dict[int, Captured] = field(default_factory=dict)
    problem: str | None = None

    def replay(self, number: int, tokens: Tensor | None) -> tuple[dict[str, Value], Issued] | None:
        """The step's values and counts, or None if it has no graph."""
        found = self.captured.get(number)
        if found is None:
            return None
        if found.tokens is not None and tokens is not None:
            found.tokens.copy_(tokens)
        found.replay()
        self._set_lengths(found.lengths)
        return found.kept, found.issued

    def record(
        self, number: int, body: Body, tokens: Tensor | None, before: dict[int, list[int]], issued: Issued
    ) -> None:
        """Capture a step that has just run eagerly and found the caches' lengths ``before``."""
        if self.problem is not None or number in self.captured:
            return
        after, static = self.lengths(), None if tokens is None else tokens.clone()
        kept: dict[str, Value] = {}
        self._set_lengths(before)
        forget_angles()  # kernels that make them belong into the graph: a cached tensor could be freed under it
        try:
            replay = self.capture(lambda: kept.update(body(static)))
        except Exception as error:  # whatever keeps a driver, a library or a kernel from being captured
            self.problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
            LOG.warning("decode step %d and later ones run without CUDA graphs: %s", number, self.problem)
        else:
            self.captured[number] = Captured(replay, static, kept, after, copy.copy(issued))
        finally:
            forget_angles()
            self._set_lengths(after)

    def lengths(self) -> dict[int, list[int]]:
        return {layer: list(held.lengths) for layer, held in self.cache.layers.items()}

    def _set_lengths(self, lengths: dict[int, list[int]]) -> None:
        for layer, row in lengths.items():
            self.cache.layers[layer].lengths = list(row)
