"""Runner: runs a generation at a place and brings back its measurement.

run(generation)                       gloo: a process a rank on this machine
run(generation, place="emulated", hosts=cluster)    the same in namespaces with the cluster's link rates
run(generation, place="replay")       one device plays every rank
run_here(generation)                  nccl: called by every process of a torchrun
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from executor.emulated_hosts import EmulatedHosts
from executor.environment import usable_cores
from executor.experts import Assignment
from executor.generate import Answer, generate, lines_path
from executor.progress import ProgressFile, RankProgress, RankReporter, State
from executor.replay import replay
from executor.session import Generation
from executor.supervisor import Supervisor
from executor.worker import Worker
from executor.world import join_nccl
from simulator.cluster import Cluster
from simulator.errors import ExecutionError
from simulator.measurement import Environment, MeasuredStep, Measurement, Place, RankSpans

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_LIMIT_S = 3600.0

OnStep = Callable[[int, int], None]
"""(steps begun, steps in all, warm-up included), called several times a second."""


@dataclass(frozen=True, slots=True)
class Executed:
    """A run's measurement; ``logits[step][rank]`` if they were kept, one tensor a Sample; the seconds that the slowest
    rank took to get ready; ``routes[step][rank]`` if they were kept, one assignment a Route."""

    measurement: Measurement
    logits: list[list[list[Tensor]]]
    prepared_s: float = 0.0
    routes: list[list[list[Assignment]]] = field(default_factory=list)


def run(
    generation: Generation,
    *,
    place: Place = "gloo",
    hosts: Cluster | None = None,
    transport: str = "mesh",
    directory: Path | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    limit_s: float = DEFAULT_LIMIT_S,
    on_step: OnStep | None = None,
) -> Measurement:
    """Run ``generation`` on this machine. ``directory`` keeps each rank's finished steps, readable after a crash;
    ``hosts`` are the nodes and link rates that place ``emulated`` takes on. ``transport``: how processes' values
    travel: ``mesh``, which ranks serve themselves, or ``gloo`` (torch.distributed), which has threads of its own.

    Raises ExecutionError naming the rank and its last operation if a rank dies, or does nothing for ``timeout_s``.
    """
    match place:
        case "replay":
            return replay(generation).measurement
        case "nccl":
            return run_here(generation, directory=directory, timeout_s=timeout_s)
        case "gloo" | "emulated":
            with ExitStack() as stack:
                seats = stack.enter_context(EmulatedHosts(_stated(hosts))).seats if place == "emulated" else ()
                folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attnplan-run-")))
                world = Supervisor(
                    generation.num_ranks, directory=folder, timeout_s=timeout_s, seats=seats, transport=transport
                )
                stack.enter_context(world)
                return execute(generation, world, limit_s=limit_s, on_step=on_step).measurement


def _stated(hosts: Cluster | None) -> Cluster:
    if hosts is None:
        raise ExecutionError("emulated hosts: no cluster says which nodes and link rates to take on")
    return hosts


def execute(
    generation: Generation, world: Supervisor, *, limit_s: float = DEFAULT_LIMIT_S, on_step: OnStep | None = None
) -> Executed:
    """Run on a world that is already up; it may be larger than the programs."""
    if world.size < generation.num_ranks:
        raise ExecutionError(f"the programs need {generation.num_ranks} ranks; the world has {world.size}")
    for rank in range(world.size):
        lines_path(world.directory, rank).unlink(missing_ok=True)
    total = len(generation.programs) * (generation.warm_up + generation.repeats)

    def watch() -> None:
        if on_step is not None:
            on_step(world.progress.read(0).step, total)

    def describe(rank: int, progress: RankProgress) -> str:
        return last_operation(generation, rank, progress)

    answers: list[Answer] = world.run(generate, generation, limit_s=limit_s, describe=describe, watch=watch)
    lines = [read_lines(world.directory, rank) for rank in range(generation.num_ranks)]
    place: Place = "emulated" if any(seat.command for seat in world.seats) else "gloo"
    where = answers[0].environment.model_copy(update={"cores": usable_cores()})  # a rank sees its own only
    measurement = assemble(generation, lines, where, place)
    logits = [list(step) for step in zip(*(answer.logits for answer in answers), strict=True)]
    routes = [list(step) for step in zip(*(answer.routes for answer in answers), strict=True)]
    return Executed(measurement, logits, max(answer.prepared_s for answer in answers), routes)


def run_here(
    generation: Generation, *, directory: Path | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Measurement:
    """One rank of a torchrun world: every process calls this and gets the whole measurement."""
    world = join_nccl(timeout_s)
    if world.size < generation.num_ranks:
        raise ExecutionError(f"the programs need {generation.num_ranks} ranks; torchrun started {world.size}")
    with ExitStack() as stack:
        folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attnplan-run-")))
        folder.mkdir(parents=True, exist_ok=True)
        reporter = RankReporter(ProgressFile(folder / f"progress{world.rank}", 1, create=True), 0)
        try:
            answer = generate(Worker(world, reporter, folder), generation)
            gathered: list[Any] = [None] * world.size
            dist.all_gather_object(gathered, read_lines(folder, world.rank))
        finally:
            dist.destroy_process_group()
    lines = [_from_zero(rows) for rows in gathered[: generation.num_ranks]]
    return assemble(generation, lines, answer.environment, "nccl")


def _from_zero(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hosts' clocks differ: every rank's step starts at 0, as after the barrier it nearly does."""
    return [{**row, "start_s": 0.0, "end_s": row["end_s"] - row["start_s"]} for row in rows]


def last_operation(generation: Generation, rank: int, progress: RankProgress) -> str:
    """``last operation 17 (Attention, layer 0, micro-batch 1) of decode step 3``."""
    if progress.state not in (State.RUNNING, State.WAITING):
        return f"it was {progress.state.name.lower()}"
    number = progress.step % len(generation.programs)
    program = generation.programs[number]
    operations = program.ranks[rank] if rank < len(program.ranks) else ()
    step = "prefill" if number == 0 else f"decode step {number}"
    if progress.index >= len(operations):
        return f"last seen at the start of {step}"
    operation = operations[progress.index]
    where = f"layer {operation.layer}, micro-batch {operation.micro_batch}"
    waiting = "waiting in " if progress.state == State.WAITING else ""
    return f"{waiting}operation {progress.index} ({type(operation).__name__}, {where}) of {step}"


def read_lines(directory: Path, rank: int) -> list[dict[str, Any]]:
    """A rank's finished steps; a last line cut short by a crash is left out."""
    path = lines_path(directory, rank)
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def assemble(
    generation: Generation, lines: Sequence[Sequence[dict[str, Any]]], environment: Environment, place: Place
) -> Measurement:
    """The measurement of all steps that every rank finished."""
    num_steps = min(len(rows) for rows in lines)
    steps = [_measured(generation, [rows[number] for rows in lines]) for number in range(num_steps)]
    first = [[row for row in rows if row["repeat"] == 0 and row["tokens"] is not None] for rows in lines]
    generated = _tokens(generation, [row for rows in first for row in rows])
    return Measurement(
        tag="emulated" if place == "emulated" else "measured",
        place=place,
        environment=environment,
        dtype=generation.programs[0].dtype,
        steps=tuple(steps),
        generated=generated,
    )


def _measured(generation: Generation, rows: list[dict[str, Any]]) -> MeasuredStep:
    origin_s = min(row["start_s"] for row in rows)
    program = generation.programs[rows[0]["index"]]
    busy = [rank for rank in range(len(rows)) if rank < len(program.ranks) and program.ranks[rank]]
    begun_s = min(rows[rank]["start_s"] for rank in busy)  # on a core that others share, a rank begins after them
    return MeasuredStep(
        phase=program.step.phase,
        index=rows[0]["index"],
        repeat=rows[0]["repeat"],
        duration_s=max(rows[rank]["end_s"] for rank in busy) - begun_s,
        ranks=tuple(_spans(rank, row, row["start_s"] - origin_s) for rank, row in enumerate(rows)),
    )


def _spans(rank: int, row: dict[str, Any], offset_s: float) -> RankSpans:
    return RankSpans(
        rank=rank,
        spans=tuple((start + offset_s, end + offset_s) for start, end in row["spans"]),
        messages=row["messages"],
        bytes_sent=row["bytes_sent"],
        collectives=row["collectives"],
        collective_bytes=row["collective_bytes"],
    )


def _tokens(generation: Generation, rows: list[dict[str, Any]]) -> tuple[tuple[int, ...], ...]:
    """Tokens of every sequence over the steps, from any rank that had them."""
    by_step = {row["index"]: row["tokens"] for row in rows}
    steps = [by_step[number] for number in range(len(generation.programs)) if number in by_step]
    return tuple(zip(*steps, strict=True))


def partial(generation: Generation, directory: Path, environment: Environment) -> Measurement:
    """What an interrupted run had finished: the steps that every rank has on disk."""
    lines = [read_lines(directory, rank) for rank in range(generation.num_ranks)]
    return assemble(generation, lines, environment, "gloo")
