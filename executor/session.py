"""Session: one rank's part of a generation — its weights, its caches, and step after step of its programs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from executor.attention_backends import Backend, chosen
from executor.cache import Cache
from executor.clock import HostClock, clock_for
from executor.experts import Assignment
from executor.graphs import Graphs
from executor.interpreter import Interpreter, Progress, Schedule, Transport, schedule
from executor.operations import Rank, Value, preload
from executor.sampling import GREEDY, Sampling
from executor.weights import TORCH_DTYPES, SeededSource, Source, Weights
from simulator import program as p
from simulator.errors import ExecutionError
from simulator.model import Model


@dataclass(frozen=True, slots=True)
class Generation:
    """What to run: a prefill program, then one program a decoded token.

    ``prompts``: tokens of every sequence in batch order (None: seeded). ``weights``: a model directory (None: seeded).
    ``sampling``: how tokens are chosen. ``backend``: of attention (None: the first that works). ``graphs``:
    replay decode steps as CUDA graphs (their operations then have no spans). ``keep_logits``: hand them back, with
    every routing (tests).
    """

    model: Model
    programs: tuple[p.Program, ...]
    seed: int = 0
    warm_up: int = 1
    repeats: int = 1
    prompts: tuple[tuple[int, ...], ...] | None = None
    keep_logits: bool = False
    weights: str | None = None
    sampling: Sampling = GREEDY
    backend: str | None = None
    graphs: bool = False

    @property
    def num_ranks(self) -> int:
        """Up to the last rank that does anything: a plan for a part of a cluster starts no more processes."""
        busy = [rank for program in self.programs for rank, operations in enumerate(program.ranks) if operations]
        return max(busy) + 1

    def source(self) -> Source:
        """Where the weights come from; SpecError if the directory is not this model's."""
        if self.weights is None:
            return SeededSource(self.model, self.seed)
        from executor.safetensors_source import SafetensorsSource

        return SafetensorsSource(Path(self.weights), self.model)


def generation(
    model: Model, num_decoded: int, next_program: Callable[[int], p.Program], *, seed: int = 0
) -> Generation:
    """A prefill and ``num_decoded`` decode steps; ``next_program(0)`` is the prefill program."""
    return Generation(model, tuple(next_program(step) for step in range(num_decoded + 1)), seed=seed)


def prompts_of(generation: Generation) -> list[Tensor]:
    """Every sequence's prompt, [length] int64 each."""
    lengths = [group.new for group in generation.programs[0].step.batch for _ in range(group.count)]
    if generation.prompts is not None:
        found = [torch.tensor(prompt, dtype=torch.int64) for prompt in generation.prompts]
        if [len(prompt) for prompt in found] != lengths:
            raise ExecutionError(f"prompts have lengths {[len(prompt) for prompt in found]}; the program {lengths}")
        return found
    generator = torch.Generator().manual_seed(generation.seed)
    return [torch.randint(generation.model.vocab_size, (length,), generator=generator) for length in lengths]


def reads_tokens(program: p.Program, rank: int) -> bool:
    operations = program.ranks[rank] if rank < len(program.ranks) else ()
    return any("tokens" in operation.reads for operation in operations)


def next_tokens_name(program: p.Program, rank: int) -> str:
    return program.next_tokens[rank] if rank < len(program.next_tokens) else ""


def cache_of(programs: Sequence[p.Program], rank: int) -> Cache:
    """Room for what a rank's caches hold after any of the programs."""
    most, held = 0, set[int]()
    for program in programs:
        for shard in program.caches[rank] if rank < len(program.caches) else ():
            sequence = 0
            for group, rows in zip(program.step.batch, shard.rows_per_sequence, strict=True):
                most, last = max(most, rows), sequence + group.count
                held.update((sequence, last - 1) if rows else ())
                sequence = last
    return Cache(programs[0].step.num_sequences, most, range(min(held), max(held) + 1) if held else range(0))


@dataclass
class StepResult:
    """One rank's step: spans in seconds from this rank's start, the next tokens if it has them; if kept, what every
    Sample read and every Route wrote."""

    spans: list[tuple[float, float]]
    end_s: float
    tokens: Tensor | None = None
    logits: list[Tensor] = field(default_factory=list)
    routes: list[Assignment] = field(default_factory=list)


class Session:
    """One rank, for the length of a generation."""

    def __init__(
        self,
        generation: Generation,
        rank: int,
        transport: Transport,
        progress: Progress,
        *,
        device: torch.device,
        weights: Weights | None = None,
        slowdown: float = 1.0,
    ) -> None:
        self.generation, self.index, self.device = generation, rank, device
        first = generation.programs[0]
        dtype = first.dtype
        self.backend: Backend = chosen(generation.backend, device, TORCH_DTYPES[dtype], generation.model.head_dim)
        if weights is None:
            weights = Weights(generation.source(), dtype=dtype, device=device)
        self.cache = cache_of(generation.programs, rank)
        self.clock = clock_for(device)
        working = Rank(weights, self.cache, device, self.backend, generation.sampling)
        self.interpreter = Interpreter(working, transport, self.clock, progress, slowdown)
        on_gpu = device.type == "cuda" and generation.sampling.greedy
        self.graphs = Graphs(self.cache) if generation.graphs and on_gpu else None
        self.schedules = [self._schedule(program, weights) for program in generation.programs]

    def _schedule(self, program: p.Program, weights: Weights) -> Schedule:
        operations = program.ranks[self.index] if self.index < len(program.ranks) else ()
        for operation in operations:
            self.interpreter.progress.preparing()
            preload(operation, weights)
        keep = [next_tokens_name(program, self.index)]
        if self.generation.keep_logits:
            keep += [operation.reads[0] for operation in operations if isinstance(operation, p.Sample)]
            keep += [operation.writes[0] for operation in operations if isinstance(operation, p.Route)]
        return schedule(operations, keep)

    @torch.inference_mode()
    def step(self, number: int, tokens: Tensor | None) -> StepResult:
        """Run program ``number``; ``tokens`` are needed by the ranks that embed. Step 0 empties the caches."""
        if number == 0:
            self.cache.clear()
        plan = self.schedules[number]
        given = None if tokens is None else tokens.to(self.device)
        replayable = self.graphs is not None and number > 0
        if replayable and (replayed := self._replay(number, given)):
            return replayed
        before = self.graphs.lengths() if self.graphs else {}
        self.clock.start()
        kept, marks = self.interpreter.run(plan, {} if given is None else {"tokens": given})
        marks.append((self.clock.origin, self.clock.mark()))
        times = self.clock.seconds([mark for pair in marks for mark in pair])
        spans = list(zip(times[0::2], times[1::2], strict=True))
        if replayable and self.graphs is not None:
            self._record(number, given, before)
        return self._result(number, kept, spans[:-1], spans[-1][1])

    def _replay(self, number: int, tokens: Tensor | None) -> StepResult | None:
        """The step as a graph, if it has one."""
        assert self.graphs is not None
        self.clock.start()
        found = self.graphs.replay(number, tokens)
        if found is None:
            return None
        (end_s,) = self.clock.seconds([self.clock.mark()])
        kept, self.interpreter.transport.issued = found
        return self._result(number, kept, [(0.0, 0.0)] * len(self.schedules[number].operations), end_s)

    def _record(self, number: int, tokens: Tensor | None, before: dict[int, list[int]]) -> None:
        assert self.graphs is not None
        issued = copy.copy(self.interpreter.transport.issued)
        silent = replace(self.interpreter, clock=HostClock())

        def body(static: Tensor | None) -> dict[str, Value]:
            return silent.run(self.schedules[number], {} if static is None else {"tokens": static})[0]

        self.graphs.record(number, body, tokens, before, issued)
        self.interpreter.transport.issued = issued

    def _result(
        self, number: int, kept: dict[str, Value], spans: list[tuple[float, float]], end_s: float
    ) -> StepResult:
        following = kept.get(next_tokens_name(self.generation.programs[number], self.index))
        tokens = following if isinstance(following, Tensor) else None
        if not self.generation.keep_logits:
            return StepResult(spans, end_s, tokens)
        operations = self.schedules[number].operations
        routed = [kept[operation.writes[0]] for operation in operations if isinstance(operation, p.Route)]
        routes = [value for value in routed if isinstance(value, Assignment)]
        return StepResult(spans, end_s, tokens, self._logits(operations, kept), routes)

    def _logits(self, operations: Sequence[p.Operation], kept: Mapping[str, object]) -> list[Tensor]:
        """What each Sample read, without the padding of vocabulary shards."""
        found = []
        for operation in operations:
            if isinstance(operation, p.Sample):
                value = kept[operation.reads[0]]
                assert isinstance(value, Tensor)
                rows = value.float()
                found.append(rows[:, torch.isfinite(rows).all(dim=0)] if operation.shards > 1 else rows)
        return found
