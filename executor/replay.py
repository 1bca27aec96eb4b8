"""Replay: every rank's compute operations one after another on one device, with transfers handed over in memory.

It is how one GPU validates a plan for forty: each operation is timed alone on the device, results are those of the
real run, and the transfers' time is left to the model. Spans of one rank follow one another without gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from executor.environment import environment
from executor.experts import Assignment
from executor.mailboxes import MailboxTransport, Post, Turns
from executor.session import Generation, Session, StepResult, prompts_of
from executor.weights import Weights
from simulator import program as p
from simulator.measurement import MeasuredStep, Measurement, RankSpans


@dataclass(frozen=True, slots=True)
class Replayed:
    """A replay's measurement, and the logits and routings of every step (repeat 0) by rank if they were kept."""

    measurement: Measurement
    logits: list[list[list[Tensor]]]
    routes: list[list[list[Assignment]]]


class NoProgress:
    """Nobody watches."""

    def preparing(self) -> None:
        pass

    def running(self, index: int) -> None:
        pass

    def waiting(self, index: int) -> None:
        pass


class Replay:
    """A generation's ranks, all in this process."""

    def __init__(self, generation: Generation, device: torch.device | None = None) -> None:
        self.generation = generation
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = generation.programs[0].dtype
        weights = Weights(generation.source(), dtype=dtype, device=self.device)
        nobody = MailboxTransport(0, Post(), Turns(0))
        self.sessions = [
            Session(generation, rank, nobody, NoProgress(), device=self.device, weights=weights)
            for rank in range(generation.num_ranks)
        ]

    def run(self) -> Replayed:
        """Warm-up, then every repeat of the generation."""
        steps: list[MeasuredStep] = []
        generated: list[tuple[int, ...]] = []
        kept: list[list[StepResult]] = []
        for repeat in range(-self.generation.warm_up, self.generation.repeats):
            tokens = torch.cat(prompts_of(self.generation))
            produced: list[list[int]] = []
            for number in range(len(self.generation.programs)):
                results, measured = self._step(number, max(repeat, 0), tokens)
                tokens = next(result.tokens for result in results if result.tokens is not None)
                produced.append(tokens.tolist())
                if repeat == 0:
                    kept.append(results)
                if repeat >= 0:
                    steps.append(measured)
            generated = list(zip(*produced, strict=True))
        logits, routes = (
            [[one.logits for one in step] for step in kept],
            [[one.routes for one in step] for step in kept],
        )
        return Replayed(self._measurement(steps, generated), logits, routes)

    def _measurement(self, steps: list[MeasuredStep], generated: list[tuple[int, ...]]) -> Measurement:
        return Measurement(
            tag="replayed",
            place="replay",
            environment=environment(self.device, self.sessions[0].backend),
            dtype=self.generation.programs[0].dtype,
            steps=tuple(steps),
            generated=tuple(generated),
        )

    def _step(self, number: int, repeat: int, tokens: Tensor) -> tuple[list[StepResult], MeasuredStep]:
        turns, post = Turns(len(self.sessions)), Post()
        results: list[StepResult | None] = [None] * len(self.sessions)
        transports = [MailboxTransport(rank, post, turns) for rank in range(len(self.sessions))]

        def body(rank: int) -> None:
            self.sessions[rank].interpreter.transport = transports[rank]
            results[rank] = self.sessions[rank].step(number, tokens)

        turns.run([lambda rank=rank: body(rank) for rank in range(len(self.sessions))])  # type: ignore[misc]
        done = [result for result in results if result is not None]
        program = self.generation.programs[number]
        ranks = [_one_after_another(program, rank, result, transports[rank]) for rank, result in enumerate(done)]
        duration_s = max((spans.spans[-1][1] for spans in ranks if spans.spans), default=0.0)
        step = MeasuredStep(
            phase=program.step.phase, index=number, repeat=repeat, duration_s=duration_s, ranks=tuple(ranks)
        )
        return done, step


def _one_after_another(program: p.Program, rank: int, result: StepResult, transport: MailboxTransport) -> RankSpans:
    """The rank's operations at the durations they had, without the turns of others in between."""
    now, spans = 0.0, []
    operations = program.ranks[rank] if rank < len(program.ranks) else ()
    for operation, (start, end) in zip(operations, result.spans, strict=True):
        moves = isinstance(operation, p.Send | p.Recv | p.Collective)
        duration_s = 0.0 if moves else end - start
        spans.append((now, now + duration_s))
        now += duration_s
    issued = transport.issued
    return RankSpans(
        rank=rank,
        spans=tuple(spans),
        messages=issued.messages,
        bytes_sent=issued.bytes_sent,
        collectives=issued.collectives,
        collective_bytes=issued.collective_bytes,
    )


def replay(generation: Generation, device: torch.device | None = None) -> Replayed:
    """Replay ``generation`` on ``device`` (default: CUDA if there is one, else this CPU)."""
    return Replay(generation, device).run()
