"""Generate: the job every rank runs: warm-up, then repeats of prefill and decode, spans on disk after each step."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor

from executor.environment import environment
from executor.experts import Assignment
from executor.progress import State
from executor.session import Generation, Session, StepResult, next_tokens_name, prompts_of, reads_tokens
from executor.transfers import Issued
from executor.weights import Weights
from executor.worker import Worker
from executor.world import DistributedTransport, World
from simulator.errors import ExecutionError
from simulator.measurement import Environment

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HEAD_START_S = 1e-3  # from the agreement on an instant to that instant: longer than a wake-up takes
FROM_FIRST, TO_FIRST = 3, 4  # the mesh's channels for what rank 0 tells, and is told


@dataclass
class Answer:
    """What a rank hands back: its environment, how long it got ready for the first step (groups, weights), and its
    logits and routings of each step of the first repeat if kept."""

    environment: Environment
    prepared_s: float = 0.0
    logits: list[list[Tensor]] = field(default_factory=list)
    routes: list[list[Assignment]] = field(default_factory=list)


def lines_path(directory: Path, rank: int) -> Path:
    return directory / f"rank{rank}.jsonl"


@contextmanager
def finished_steps(path: Path) -> Iterator[TextIO]:
    """The file that takes a line a finished step; ExecutionError when the disk is full, whatever was written before."""
    try:
        with path.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise ExecutionError(f"{path}: {error.strerror}; free some space, or set TMPDIR to where there is") from error


def generate(worker: Worker, generation: Generation) -> Answer:
    """Run the whole generation on this rank."""
    world, began_s = worker.world, time.perf_counter()
    world.prepare(generation.programs)
    transport = DistributedTransport(world)
    session = Session(
        generation,
        world.rank,
        transport,
        worker.progress,
        device=world.device,
        weights=kept_weights(world, generation),
        slowdown=world.slowdown,
    )
    answer = Answer(environment(world.device, session.backend), time.perf_counter() - began_s)
    prompts = torch.cat(prompts_of(generation))
    with finished_steps(lines_path(worker.directory, world.rank)) as file:
        for repeat in range(-generation.warm_up, generation.repeats):
            tokens: Tensor | None = prompts
            for number in range(len(generation.programs)):
                worker.progress.step = (repeat + generation.warm_up) * len(generation.programs) + number
                start_s, result = step_together(worker, session, number, tokens)
                tokens = hand_over(worker, generation, number, result.tokens)
                if repeat >= 0:
                    _write(file, repeat, number, start_s, result, transport.issued)
                if repeat == 0 and generation.keep_logits:
                    answer.logits.append(result.logits)
                    answer.routes.append(result.routes)
    return answer


def kept_weights(world: World, generation: Generation) -> Weights:
    """The slices this rank made for the same model before, so that a change of placement makes only those it lacks."""
    key = (generation.model, generation.weights, generation.seed, generation.programs[0].dtype)
    if world.weights is None or world.weights[0] != key:
        world.weights = (key, Weights(generation.source(), dtype=key[-1], device=world.device))
    return world.weights[1]


def start_together(worker: Worker) -> None:
    """Return on all ranks of this machine at one instant, however differently a barrier lets them go."""
    worker.world.barrier()
    if worker.world.backend == "gloo":
        instant = told_by_first(worker, time.perf_counter() + HEAD_START_S)
        time.sleep(max(0.0, instant - time.perf_counter()))


def told_by_first(worker: Worker, number: float) -> float:
    """Rank 0's ``number``, on every rank (CPU ranks)."""
    world = worker.world
    value = torch.tensor([number], dtype=torch.float64)
    if world.mesh is None:
        dist.broadcast(value, src=0)
    elif world.rank == 0:
        for other in range(1, world.size):
            world.mesh.send(other, FROM_FIRST, 0, value)
    else:
        value = world.mesh.receive(0, FROM_FIRST, 0).view(torch.float64)
    return float(value[0])


def agreed(worker: Worker, here: bool) -> bool:
    """Whether it is so on every rank (CPU ranks)."""
    world = worker.world
    value = torch.tensor([float(here)], dtype=torch.float64)
    if world.mesh is None:
        dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return bool(value[0])
    if world.rank:
        world.mesh.send(0, TO_FIRST, 0, value)
        return bool(told_by_first(worker, 0.0))
    others = [world.mesh.receive(other, TO_FIRST, 0).view(torch.float64) for other in range(1, world.size)]
    return bool(told_by_first(worker, min(float(one[0]) for one in (value, *others))))


def step_together(worker: Worker, session: Session, number: int, tokens: Tensor | None) -> tuple[float, StepResult]:
    """All ranks start together; (start on the monotonic clock, result)."""
    worker.progress.note(State.WAITING)
    start_together(worker)
    start_s = time.perf_counter()
    return start_s, session.step(number, tokens)


def hand_over(worker: Worker, generation: Generation, number: int, tokens: Tensor | None) -> Tensor | None:
    """The next tokens, where the next program reads them: a program leaves them on the ranks that embed in it, so
    only a change of placement needs them sent (outside any step)."""
    if number + 1 == len(generation.programs):
        return None
    program, following = generation.programs[number], generation.programs[number + 1]
    world = worker.world
    holders = [rank for rank in range(world.size) if next_tokens_name(program, rank)]
    readers = [rank for rank in range(world.size) if reads_tokens(following, rank)]
    if set(readers) <= set(holders):
        return tokens
    if tokens is None:
        tokens = torch.empty(following.step.num_tokens, dtype=torch.int64, device=world.device)
    worker.progress.note(State.WAITING)
    dist.broadcast(tokens, src=holders[0])
    return tokens


def _write(file: TextIO, repeat: int, number: int, start_s: float, result: StepResult, issued: Issued) -> None:
    line: dict[str, Any] = {
        "repeat": repeat,
        "index": number,
        "start_s": start_s,
        "end_s": start_s + result.end_s,
        "spans": [[round(start, 9), round(end, 9)] for start, end in result.spans],
        "messages": issued.messages,
        "bytes_sent": issued.bytes_sent,
        "collectives": issued.collectives,
        "collective_bytes": issued.collective_bytes,
        "tokens": None if result.tokens is None else result.tokens.tolist(),
    }
    file.write(json.dumps(line) + "\n")
    file.flush()
