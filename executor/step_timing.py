"""Step timing: what operations cost inside a step, on one core of their own.

A kernel repeated in a loop finds its code and half of its data in the nearest caches, and its memory already there. In
a step it follows other kernels. So whole programs are played on one core, all ranks taking turns and handing values
over in memory, and every compute operation is timed where it stands.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from executor.bench import COLD_BYTES
from executor.filled_cache import as_found, filled_layers
from executor.mailboxes import MailboxTransport, Post, Turns
from executor.pace import Pace
from executor.progress import State
from executor.replay import NoProgress
from executor.session import Generation, Session, prompts_of
from executor.weights import SeededSource, Weights
from executor.worker import Worker
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import Placement
from simulator.program import Program
from simulator.workload import Step

REPEATS = 3
KEEP_CACHES = -1  # the same (only) program, counted from the end: ``Session.step`` empties caches at 0

Spans = tuple[tuple[float, ...], ...]
"""[rank][operation] seconds."""


def time_steps(
    worker: Worker,
    model: Model,
    plans: Sequence[tuple[Step, Placement]],
    nodes: tuple[int, ...],
    limit_s: float,
    usual_s: float = 0.0,
    repeats: int = REPEATS,
) -> list[Spans]:
    """Job: rank 0 plays the fp32 programs of ``plans`` in order until ``limit_s`` is over; the others rest. Each
    operation's median seconds of ``repeats`` steps after one that is not counted. Every rank has weights of its own,
    and before a step other data fill the caches. ``usual_s``: the pace (``Pace``) at which a step counts."""
    found: list[Spans] = []
    began_s = time.monotonic()
    num_ranks, pace = len(nodes), Pace(usual_s)
    weights = [Weights(SeededSource(model), dtype="fp32", device=torch.device("cpu")) for _ in range(num_ranks)]
    for number, (step, placement) in enumerate(plans if worker.world.rank == 0 else ()):
        if time.monotonic() - began_s > limit_s:
            break
        worker.progress.note(State.RUNNING, number)
        program = lower(model, step, placement, nodes=nodes, dtype="fp32")
        played = Played(model, program, weights)
        gc.collect()
        gc.disable()
        try:
            played.step()
            rows = [pace.kept(played.step) for _ in range(repeats)]
        finally:
            gc.enable()
        found.append(tuple(tuple(np.median(ranks, axis=0).tolist()) for ranks in zip(*rows, strict=True)))
    return found


def step_core_s(
    worker: Worker, model: Model, plan: tuple[Step, Placement], busy: Sequence[int], duration_s: float
) -> float:
    """Job: core seconds of a step of a one-rank plan on each of the ``busy`` ranks, which all play it at once for
    ``duration_s``; 0 elsewhere. What empties their caches between steps is not counted."""
    worker.progress.note(State.RUNNING)
    played = None
    if worker.world.rank in busy:
        program = lower(model, plan[0], plan[1], nodes=(0,), dtype="fp32")
        played = Played(model, program, [Weights(SeededSource(model), dtype="fp32", device=torch.device("cpu"))])
        played.step()
    worker.world.barrier()
    began_s, core_s = time.perf_counter(), list[float]()
    while played is not None and (not core_s or time.perf_counter() - began_s < duration_s):
        played.step()
        core_s.append(played.core_s)
    return float(np.median(core_s)) if core_s else 0.0


class Played:
    """One program, all ranks in this process, ready to step. ``core_s``: what the last step took of its core."""

    core_s = 0.0

    def __init__(self, model: Model, program: Program, weights: Sequence[Weights]) -> None:
        self.generation = Generation(model, (program,))
        self.tokens = torch.cat(prompts_of(self.generation))
        device, nobody = torch.device("cpu"), MailboxTransport(0, Post(), Turns(0))
        self.sessions = [
            Session(self.generation, rank, nobody, NoProgress(), device=device, weights=weights[rank])
            for rank in range(len(program.ranks))
        ]
        decoding = program.step.phase == "decode"
        self.full = [
            filled_layers(program, rank, model.head_dim) if decoding else {} for rank in range(len(program.ranks))
        ]

    def step(self) -> list[list[float]]:
        """Seconds of every rank's operations."""
        torch.ones(COLD_BYTES["cpu"] // 4).sum()
        turns, post = Turns(len(self.sessions)), Post()
        found: list[list[float]] = [[] for _ in self.sessions]

        def body(rank: int) -> None:
            found[rank] = self._one(rank, MailboxTransport(rank, post, turns))

        began_s = time.process_time()
        turns.run([lambda rank=rank: body(rank) for rank in range(len(self.sessions))])  # type: ignore[misc]
        self.core_s = time.process_time() - began_s
        return found

    def _one(self, rank: int, transport: MailboxTransport) -> list[float]:
        session = self.sessions[rank]
        session.interpreter.transport = transport
        tokens: Tensor = self.tokens
        if self.full[rank]:
            session.cache.layers = as_found(self.full[rank])
        result = session.step(KEEP_CACHES if self.full[rank] else 0, tokens)
        return [end - start for start, end in result.spans]
