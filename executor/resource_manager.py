"""Resource manager at run time: every batch's longest sequence picks its placements, while the ranks stay up.

The decisions are ``simulator.serving.resource_manager.decide``'s, the same function that the simulated requests go
through, fed with a real clock. Groups of processes for every size of the pool are made and used once before the first
batch; weights that a placement has made are kept for the next. What a change costs is measured, batch by batch.

What it ignores: several base groups (one generation runs at a time) and batches formed while one runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from executor.runner import execute
from executor.session import Generation
from executor.supervisor import Supervisor
from executor.worker import Worker
from simulator import program as p
from simulator.errors import ExecutionError, SpecError
from simulator.lowering import lower
from simulator.measurement import Environment
from simulator.model import Model
from simulator.placement import Placement
from simulator.serving.log import PoolChange, ServedBatch, ServedStep
from simulator.serving.pool_policy import PoolRules, policy
from simulator.serving.resource_manager import (
    Activated,
    BatchEnded,
    BatchFormed,
    Decision,
    Released,
    Start,
    Tick,
    decide,
    idle_pool,
)
from simulator.simulation.clock import picoseconds
from simulator.workload import Phase, Sequences, Step


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the plan's policy: from ``min_tokens`` on, this placement, with so many ranks that only attend."""

    phase: Phase
    min_tokens: int
    placement: Placement

    @property
    def pool_gpus(self) -> int:
        return len(self.placement.pool_ranks)


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompt lengths of the sequences, and how many tokens each gets after its first."""

    lengths: tuple[int, ...]
    decoded_tokens: int

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1 or self.decoded_tokens < 0:
            raise SpecError(f"batch: lengths {list(self.lengths)}, {self.decoded_tokens} tokens; need at least 1 and 0")

    @property
    def longest(self) -> int:
        return max(self.lengths)


@dataclass(frozen=True, slots=True)
class Placed:
    """What a batch was given."""

    prefill: Entry
    decode: Entry
    starts: tuple[Start, Start]
    changes: tuple[PoolChange, ...]


def rules_of(entries: Sequence[Entry]) -> PoolRules:
    """The policy of a plan's entries for one base group, with nothing charged for a change: it is measured here."""
    sizes = {}
    for phase in ("prefill", "decode"):
        mine = sorted((entry for entry in entries if entry.phase == phase), key=lambda entry: entry.min_tokens)
        if not mine:
            raise SpecError(f"serving: the plan has no {phase} entry; plan that phase too")
        sizes[phase] = policy((0 if i == 0 else entry.min_tokens, entry.pool_gpus) for i, entry in enumerate(mine))
    largest = max(entry.pool_gpus for entry in entries)
    return PoolRules(pool_gpus=largest, prefill=sizes["prefill"], decode=sizes["decode"])


@dataclass
class ResourceManager:
    """Keeps the pool's state between batches. ``now_s`` is its clock."""

    entries: tuple[Entry, ...]
    rules: PoolRules
    now_s: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self.state, self.origin_s = idle_pool(self.rules), self.now_s()

    def form(self, longest: int) -> Placed:
        """The placements of a batch: its prefill's and, since that is where the keys are left, its decode's."""
        starts: list[Start] = []
        changes: list[PoolChange] = []
        phases: tuple[Phase, Phase] = ("prefill", "decode")
        for phase in phases:
            if starts:
                self.end()
            for decision in self._decide(BatchFormed(self._now_ps(), 0, phase, longest)):
                if isinstance(decision, Start):
                    starts.append(decision)
                else:
                    changes.append(_change(phase, decision))
        if len(starts) != len(phases):  # one group and no other holder of the pool: nothing to wait for
            raise ExecutionError(
                f"resource manager: a batch of {longest} tokens waits for {self.rules.pool_gpus} ranks"
            )
        prefill, decode = (
            self.entry(phase, longest, start.pool_gpus) for phase, start in zip(phases, starts, strict=True)
        )
        return Placed(prefill, decode, (starts[0], starts[1]), tuple(changes))

    def end(self) -> None:
        """The running batch is over."""
        self._decide(BatchEnded(self._now_ps(), 0))

    def release(self) -> tuple[PoolChange, ...]:
        """No more work: what is given back now."""
        return tuple(_change("decode", decision) for decision in self._decide(Tick(self._now_ps())))

    def entry(self, phase: Phase, longest: int, pool_gpus: int) -> Entry:
        """The policy's line for this length if it has that pool, else the nearest one that has."""
        mine = [entry for entry in self.entries if entry.phase == phase]
        below = [entry for entry in mine if entry.min_tokens <= longest] or mine[:1]
        nearest = max(below, key=lambda entry: entry.min_tokens)
        if nearest.pool_gpus == pool_gpus:
            return nearest
        fitting = [entry for entry in mine if entry.pool_gpus == pool_gpus]
        return min(fitting, key=lambda entry: abs(entry.min_tokens - longest))

    def _decide(self, event: BatchFormed | BatchEnded | Tick) -> tuple[Decision, ...]:
        self.state, decisions = decide(self.state, event, self.rules)
        return decisions

    def _now_ps(self) -> int:
        return picoseconds(self.now_s() - self.origin_s)


def _change(phase: Phase, decision: Decision) -> PoolChange:
    before = decision.before_gpus if isinstance(decision, Activated | Released) else 0
    after = decision.after_gpus if isinstance(decision, Activated | Released) else 0
    return PoolChange(phase=phase, what=type(decision).__name__.lower(), before_gpus=before, after_gpus=after)


def warm(worker: Worker, programs: tuple[p.Program, ...]) -> float:
    """A job of every rank: make the programs' groups and use each once. Seconds it took."""
    began_s, world = time.perf_counter(), worker.world
    world.prepare(programs)
    one = torch.ones(1, device=world.device)
    for ranks, group in (*sorted(world.groups.items()), *sorted(world.lanes.items())):
        if world.rank in ranks and group is not None:
            dist.all_reduce(one, group=group)
    world.barrier()
    return time.perf_counter() - began_s


@dataclass
class Serving:
    """A model served by a world that is up."""

    model: Model
    manager: ResourceManager
    world: Supervisor
    nodes: tuple[int, ...]
    dtype: str
    options: dict[str, object] = field(default_factory=dict)
    limit_s: float = 300.0
    environment: Environment | None = None

    def warm(self, longest: int = 64) -> float:
        """Make and use the groups of every placement of the policy; seconds on the slowest rank."""
        batch = Batch((min(longest, 64),) * 8, 1)
        made: list[p.Program] = []
        for prefill in self.manager.entries:
            for decode in self.manager.entries:
                if (prefill.phase, decode.phase) == ("prefill", "decode"):
                    made += self.programs(batch, prefill.placement, decode.placement)
        return float(max(self.world.run(warm, tuple(dict.fromkeys(made)), limit_s=self.limit_s)))

    def programs(self, batch: Batch, prefill: Placement, decode: Placement) -> tuple[p.Program, ...]:
        """The prefill of a ragged batch and one program a decoded token."""
        prompts = tuple(Sequences(1, 0, length) for length in batch.lengths)
        step = Step("prefill", prompts)
        made = [lower(self.model, step, prefill, nodes=self.nodes, dtype=self.dtype, cache=decode)]
        for number in range(batch.decoded_tokens):
            grown = tuple(Sequences(1, length + number, 1, length) for length in batch.lengths)
            made.append(lower(self.model, Step("decode", grown), decode, nodes=self.nodes, dtype=self.dtype))
        return tuple(made)

    def run(self, batches: Sequence[Batch]) -> Iterator[tuple[Generation, ServedBatch]]:
        """Serve one batch after another."""
        for number, batch in enumerate(batches):
            placed = self.manager.form(batch.longest)
            made = self.programs(batch, placed.prefill.placement, placed.decode.placement)
            generation = Generation(self.model, made, warm_up=0, **self.options)  # type: ignore[arg-type]
            done = execute(generation, self.world, limit_s=self.limit_s)
            self.manager.end()
            measured = done.measurement
            self.environment = measured.environment
            steps = tuple(
                ServedStep(
                    phase=step.phase, duration_s=step.duration_s, bytes_sent=sum(r.bytes_sent for r in step.ranks)
                )
                for step in measured.steps
            )
            yield (
                generation,
                ServedBatch(
                    number=number,
                    lengths=batch.lengths,
                    prefill_placement=placed.prefill.placement.name,
                    decode_placement=placed.decode.placement.name,
                    prefill_pool_gpus=placed.starts[0].pool_gpus,
                    decode_pool_gpus=placed.starts[1].pool_gpus,
                    wanted_gpus=(placed.starts[0].want_gpus, placed.starts[1].want_gpus),
                    changes=placed.changes,
                    switch_s=done.prepared_s,
                    steps=steps,
                    generated=measured.generated,
                ),
            )
