"""Worker: one rank's process, started by the supervisor: ``python -m executor.worker RANK WORLD DIRECTORY TIMEOUT_S
NODES SLOWDOWN`` (NODES: every rank's, by comma).

It reads jobs from stdin and answers on stdout, both as length-prefixed JSON (``executor.wire``).
A job is the name of a function of the worker and its arguments. When stdin closes, whatever the rank is doing, the
process ends: no orphans.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from executor.progress import ProgressFile, RankReporter, State
from executor.time_slices import ask_for_slices
from executor.wire import decode, encode

PEER_LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "connection refused", "store")
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Worker:
    """What a job gets: its world (``executor.world.World``), where to report, and the run's directory."""

    world: Any
    progress: RankReporter
    directory: Path


@dataclass(frozen=True, slots=True)
class Failure:
    """A job's exception. ``peer``: it only reports that another rank went away."""

    message: str
    details: str
    peer: bool


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes:
    """The next frame's content, or EOFError."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    size = LENGTH.unpack(head)[0]
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def read_jobs(jobs: SimpleQueue[bytes]) -> None:
    """Pass on jobs until the supervisor goes away, then end this process at once."""
    try:
        while True:
            jobs.put(read_frame(sys.stdin.buffer))
    except (EOFError, OSError):
        os._exit(1)


def failure_of(error: BaseException) -> Failure:
    text = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {text[0] if text else ''}"[:500]
    lost = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in PEER_LOST)
    return Failure(message, "".join(traceback.format_exception(error)), lost)


def main() -> None:
    rank, size, directory, timeout_s = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints goes to the log, never between the answers
    jobs: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=read_jobs, args=(jobs,), daemon=True).start()
    progress = RankReporter(ProgressFile(directory / "progress", size), rank)

    ask_for_slices()  # inherited by the threads of torch and gloo
    import torch

    from executor.world import Transport, join_gloo

    torch.set_num_threads(1)
    transport: Transport = "mesh" if sys.argv[7] == "mesh" else "gloo"
    world = join_gloo(rank, size, directory / "store", timeout_s, transport)
    world.nodes = tuple(int(node) for node in sys.argv[5].split(","))
    world.slowdown = float(sys.argv[6])
    progress.note(State.IDLE)
    write_frame(answers, encode("ready"))
    worker = Worker(world, progress, directory)
    while True:
        job = jobs.get()
        progress.note(State.PREPARING)
        try:
            function, arguments = decode(job)
            answer = encode(function(worker, *arguments))
        except Exception as error:
            failure = failure_of(error)
            answer = encode(failure)
            with suppress(OSError):  # the disk is full: the answer says what there was no room for
                sys.stderr.write(failure.details)
                sys.stderr.flush()
        else:
            progress.note(State.IDLE)
        write_frame(answers, answer)


if __name__ == "__main__":
    # by its real name, so that the classes it answers with are known there
    from executor.worker import main as start

    start()
