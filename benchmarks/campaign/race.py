"""Race: candidate plans of one question run against each other, a step each in turn, on a world that is up.

Every round runs every candidate once, in a new order that all ranks draw from the same seed, so that a slow minute of
the machine falls on all of them alike. A step begins when every rank has arrived and slept to a common instant. Decode
steps read caches that were filled beforehand and are set back after each step: a round costs one step a candidate.
A round that began or ended while the machine was not at its usual pace (executor/pace.py) is run again.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from executor.filled_cache import as_found, filled_layers
from executor.generate import agreed, kept_weights, start_together
from executor.pace import Pace, Paces
from executor.progress import State
from executor.session import Generation, Session, prompts_of
from executor.step_timing import KEEP_CACHES
from executor.supervisor import Supervisor
from executor.weights import Weights
from executor.worker import Worker
from executor.world import DistributedTransport
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import Placement
from simulator.program import Program
from simulator.workload import Phase, Sequences, Step

DTYPE = "fp32"
SEED = 0


@dataclass(frozen=True, slots=True)
class Race:
    """One question and the placements that answer it. ``nodes``: every rank's, as lowering takes them."""

    model: Model
    phase: Phase
    tokens: int
    batch: int
    nodes: tuple[int, ...]
    placements: tuple[Placement, ...]

    @property
    def step(self) -> Step:
        """Prefill of ``tokens`` new tokens a sequence, or the decode step after ``tokens`` cached ones."""
        if self.phase == "prefill":
            return Step("prefill", (Sequences(self.batch, 0, self.tokens),))
        return Step("decode", (Sequences(self.batch, self.tokens, 1, self.tokens),))

    def program(self, placement: Placement) -> Program:
        return lower(self.model, self.step, placement, nodes=self.nodes, dtype=DTYPE)


@dataclass(frozen=True, slots=True)
class Runs:
    """One candidate's steps: seconds of each round, and of every rank's operations the median seconds of a span.
    ``again``: rounds of the race that did not count."""

    durations_s: tuple[float, ...]
    spans_s: tuple[tuple[float, ...], ...]
    again: int = 0


@dataclass(frozen=True, slots=True)
class RankRuns:
    """One rank's part: (began, ended) of every round on the machine's clock, and its median spans."""

    steps: tuple[tuple[float, float], ...]
    spans_s: tuple[float, ...]
    again: int


def run_race(world: Supervisor, race: Race, rounds: int, *, paces: Paces = (), limit_s: float = 600.0) -> list[Runs]:
    """Every candidate's runs, ``rounds`` each after one that is not counted. ``paces``: the usual ones of
    the ranks' cores; none: every round counts."""
    answers: list[list[RankRuns]] = world.run(race_rank, race, rounds, paces, limit_s=limit_s)
    return [_runs(ranks) for ranks in zip(*answers, strict=True)]


def _runs(ranks: Sequence[RankRuns]) -> Runs:
    """The steps that the ranks with operations made together."""
    busy = [one for one in ranks if one.spans_s]
    durations = [
        max(ended for _, ended in steps) - min(began for began, _ in steps)
        for steps in zip(*(one.steps for one in busy), strict=True)
    ]
    return Runs(tuple(durations), tuple(one.spans_s for one in ranks), ranks[0].again)


def race_rank(worker: Worker, race: Race, rounds: int, paces: Paces = ()) -> list[RankRuns]:
    """Job: this rank's part of all rounds."""
    world = worker.world
    programs = [race.program(placement) for placement in race.placements]
    world.prepare(programs)
    weights = kept_weights(world, Generation(race.model, tuple(programs), seed=SEED))
    runners = [_Runner(worker, race, program, weights) for program in programs]
    order, generator, pace = list(range(len(runners))), random.Random(SEED), Pace(paces[world.rank] if paces else 0.0)
    kept: list[list[tuple[float, float, list[float]]]] = []
    gc.collect()
    gc.disable()
    try:
        while len(kept) <= rounds:
            generator.shuffle(order)
            worker.progress.step = len(kept)
            pace.wait()
            found = {index: runners[index].step() for index in order}
            if agreed(worker, pace.holds()):
                kept.append([found[index] for index in range(len(runners))])
    finally:
        gc.enable()
    return [_rank_runs(rows, pace.again) for rows in zip(*kept[1:], strict=True)]


def _rank_runs(rows: Sequence[tuple[float, float, list[float]]], again: int) -> RankRuns:
    """Of one candidate."""
    spans = [lengths for _, _, lengths in rows]
    medians = tuple(np.median(spans, axis=0).tolist()) if spans[0] else ()
    return RankRuns(tuple((began_s, ended_s) for began_s, ended_s, _ in rows), medians, again)


class _Runner:
    """One candidate on this rank, ready to step."""

    def __init__(self, worker: Worker, race: Race, program: Program, weights: Weights) -> None:
        self.worker = worker
        generation = Generation(race.model, (program,))
        world = worker.world
        transport = DistributedTransport(world)
        self.session = Session(
            generation, world.rank, transport, worker.progress, device=world.device, weights=weights,
            slowdown=world.slowdown,
        )  # fmt: skip
        self.tokens = torch.cat(prompts_of(generation))
        self.full = filled_layers(program, world.rank, race.model.head_dim) if race.phase == "decode" else {}

    def step(self) -> tuple[float, float, list[float]]:
        """(began, ended, seconds of every operation's span)."""
        if self.full:
            self.session.cache.layers = as_found(self.full)
        self.worker.progress.note(State.WAITING)
        start_together(self.worker)
        began_s = time.perf_counter()
        result = self.session.step(0 if not self.full else KEEP_CACHES, self.tokens)
        return began_s, began_s + result.end_s, [end - start for start, end in result.spans]
