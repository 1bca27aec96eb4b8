"""Step timing: what operations cost inside a step, on one core of their own.

A kernel repeated in a loop finds its code and half of its data in the nearest caches, and its memory already there. In
a step it follows other kernels. So whole programs are played on one core, one rank after the other, and every compute
operation is timed where it stands. A rank is played alone (executor/alone.py): ranks that take turns in one process
find each other's code in the caches, and small operations then take half of what they take in a process of their own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from executor.alone import AloneTransport, Noting
from executor.bench import COLD_BYTES
from executor.filled_cache import as_found, filled_layers
from executor.interpreter import Transport
from executor.mailboxes import MailboxTransport, Post, Turns
from executor.pace import Pace
from executor.progress import State
from executor.replay import NoProgress
from executor.session import Generation, Session, prompts_of
from executor.weights import SeededSource, Weights
from executor.worker import Worker
from simulator.costs.work import kernels_of
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import Placement
from simulator.program import Experts, Program
from simulator.workload import Step

KEEP_CACHES = -1  # the same (only) program, counted from the end: ``Session.step`` empties caches at 0

Spans = tuple[tuple[float, ...], ...]
"""[rank][operation] seconds."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How steps are timed: ``repeats`` each after one that is not counted, no program begun after ``limit_s``.
    ``usual_s``: the pace (``Pace``) at which a step counts. ``steady``: a decode step follows its like, as in a
    generation; else other data fill the caches before it, as they do before a prefill."""

    limit_s: float
    usual_s: float = 0.0
    repeats: int = 3
    steady: bool = True


def time_steps(
    worker: Worker, model: Model, plans: Sequence[tuple[Step, Placement]], nodes: tuple[int, ...], timing: Timing
) -> list[Spans]:
    """Job: rank 0 plays the fp32 programs of ``plans`` in order, the others rest. Each operation's median seconds.
    Every rank has weights of its own."""
    found: list[Spans] = []
    began_s = time.monotonic()
    num_ranks, pace = len(nodes), Pace(timing.usual_s)
    weights = [Weights(SeededSource(model), dtype="fp32", device=torch.device("cpu")) for _ in range(num_ranks)]
    for number, (step, placement) in enumerate(plans if worker.world.rank == 0 else ()):
        if time.monotonic() - began_s > timing.limit_s:
            break
        worker.progress.note(State.RUNNING, number)
        program = lower(model, step, placement, nodes=nodes, dtype="fp32")
        played = Played(model, program, weights, steady=timing.steady)
        gc.collect()
        gc.disable()
        try:
            played.step()
            rows = [pace.kept(played.step) for _ in range(timing.repeats)]
        finally:
            gc.enable()
        found.append(tuple(tuple(np.median(ranks, axis=0).tolist()) for ranks in zip(*rows, strict=True)))
    return found


def step_core_s(
    worker: Worker, model: Model, plan: tuple[Step, Placement], busy: Sequence[int], timing: Timing
) -> float:
    """Job: core seconds of a step of a one-rank plan on each of the ``busy`` ranks, which all play it at once for
    ``timing.limit_s``; 0 elsewhere. What goes before a step is not counted."""
    worker.progress.note(State.RUNNING)
    played = None
    if worker.world.rank in busy:
        program = lower(model, plan[0], plan[1], nodes=(0,), dtype="fp32")
        weights = Weights(SeededSource(model), dtype="fp32", device=torch.device("cpu"))
        played = Played(model, program, [weights], steady=timing.steady)
        played.step()
    worker.world.barrier()
    began_s, core_s = time.perf_counter(), list[float]()
    while played is not None and (not core_s or time.perf_counter() - began_s < timing.limit_s):
        played.step()
        core_s.append(played.core_s)
    return float(np.median(core_s)) if core_s else 0.0


class Played:
    """One program, all ranks in this process, each ready to step alone. ``core_s``: what the last step took of its
    core. ``steady``: as ``Timing`` says."""

    core_s = 0.0

    def __init__(self, model: Model, program: Program, weights: Sequence[Weights], *, steady: bool) -> None:
        self.generation = Generation(model, (program,))
        self.tokens = torch.cat(prompts_of(self.generation))
        device, nobody = torch.device("cpu"), AloneTransport({})
        self.sessions = [
            Session(self.generation, rank, nobody, NoProgress(), device=device, weights=weights[rank])
            for rank in range(len(program.ranks))
        ]
        decoding = program.step.phase == "decode"
        self.full = [
            filled_layers(program, rank, model.head_dim) if decoding else {} for rank in range(len(program.ranks))
        ]
        self.alike, self.warm = first_alike(program), steady and decoding
        self.others = torch.ones(0 if self.warm else COLD_BYTES["cpu"] // 4)
        self._meet()

    def _meet(self) -> None:
        """One step of all ranks together: what each receives is the same in every step."""
        turns, post = Turns(len(self.sessions)), Post()
        noting = [Noting(MailboxTransport(rank, post, turns)) for rank in range(len(self.sessions))]

        def body(rank: int) -> None:
            self._one(rank, noting[rank])

        turns.run([partial(body, rank) for rank in range(len(self.sessions))])
        self.alone = [AloneTransport(transport.arrivals) for transport in noting]

    def step(self) -> list[list[float]]:
        """Seconds of every rank's operations, one rank after the other; of ranks that are alike the first one's."""
        self.core_s, found = 0.0, list[list[float]]()
        for rank, transport in enumerate(self.alone):
            if self.alike[rank] < rank:
                found.append(found[self.alike[rank]])
                continue
            if self.warm:
                self._one(rank, transport)
            else:
                self.others.add_(1.0)
            began_s = time.process_time()
            found.append(self._one(rank, transport))
            self.core_s += time.process_time() - began_s
        return found

    def _one(self, rank: int, transport: Transport) -> list[float]:
        session = self.sessions[rank]
        session.interpreter.transport = transport
        if self.full[rank]:
            session.cache.layers = as_found(self.full[rank])
        result = session.step(KEEP_CACHES if self.full[rank] else 0, self.tokens)
        return [end - start for start, end in result.spans]


def first_alike(program: Program) -> list[int]:
    """By rank: the first that launches the same kernels in the same order; itself where tokens choose their experts."""
    found: dict[tuple[object, ...], int] = {}
    first = []
    for rank, operations in enumerate(program.ranks):
        kernels = tuple([(type(one), kernels_of(one, program.dtype)) for one in operations])
        own = rank if any(isinstance(one, Experts) for one in operations) else -1
        first.append(found.setdefault((own, kernels), rank))
    return first
