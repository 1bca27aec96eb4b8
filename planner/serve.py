"""Serve: a short list of batches of different lengths through a plan, placements switching as its policy says.

Requests come from a trace or are drawn (seeded) from the workload the plan was made for; each batch takes the next
few, as many as the plan's prefill entries were made for. The ranks are processes on this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planner.execution import SEED, Candidate, RunOptions, checkable, inputs, matching_tokens, place_of, placement_of
from simulator.allocation import Allocation, Choice, digest
from simulator.errors import SpecError
from simulator.formats.trace import Request, read_requests
from simulator.serving.log import ServedBatch, ServingLog
from simulator.serving.sampling import sample_lengths
from simulator.workload import Phase, Workload

if TYPE_CHECKING:
    from executor.resource_manager import Batch, Entry

MAX_BATCHES = 1000


@dataclass(frozen=True, slots=True)
class Traffic:
    """How many batches, from which trace (None: the plan's workload), and new tokens a sequence after its first."""

    batches: int
    decoded_tokens: int
    requests: Path | None = None
    seed: int = SEED

    def __post_init__(self) -> None:
        if not 1 <= self.batches <= MAX_BATCHES:
            raise SpecError(f"--batches {self.batches} is not between 1 and {MAX_BATCHES}")


@dataclass(frozen=True, slots=True)
class Served:
    """The log, and how many generated tokens equal the reference's (None: not checked)."""

    log: ServingLog
    matching_tokens: int | None


def serve(
    allocation: Allocation,
    traffic: Traffic,
    options: RunOptions,
    *,
    candidate: Candidate = "chosen",
    on_batch: Callable[[int, int], None] | None = None,
) -> Served:
    """Run every batch; SpecError if a length has no entry, ExecutionError naming the rank and operation that failed."""
    from executor.resource_manager import ResourceManager, Serving, rules_of
    from executor.sampling import Sampling
    from executor.supervisor import Supervisor

    found = inputs(allocation)
    if place_of(options.on, found.cluster) != "gloo":
        raise SpecError("--batches: serving runs on CPU ranks of one machine; give --on cpu")
    batches = batches_of(allocation, found.workload, traffic)
    entries = entries_of(allocation, candidate, batches)
    size = max(max(entry.placement.ranks) for entry in entries) + 1
    nodes = tuple(node for node, _, _ in found.cluster.rank_nodes())
    done: list[ServedBatch] = []
    matching = 0 if checkable(found.model, options) else None
    sampling = options.sampling or Sampling()
    settings: dict[str, object] = {"seed": SEED, "weights": options.weights, "sampling": sampling}
    settings |= {"backend": options.backend, "graphs": options.graphs}
    with Supervisor(size, directory=options.directory, timeout_s=options.timeout_s) as world:
        manager = ResourceManager(entries, rules_of(entries))
        serving = Serving(found.model, manager, world, nodes, allocation.dtype, settings, options.limit_s)
        warm_s = serving.warm()
        for generation, batch in serving.run(batches):
            done.append(batch)
            if matching is not None:
                matching += matching_tokens(generation, batch.generated)
            if on_batch is not None:
                on_batch(len(done), len(batches))
    log = ServingLog(
        allocation=digest(allocation),
        environment=serving.environment,
        dtype=allocation.dtype,
        warm_s=warm_s,
        batches=tuple(done),
    )
    return Served(log, matching)


def batches_of(allocation: Allocation, workload: Workload, traffic: Traffic) -> tuple[Batch, ...]:
    """The next requests in their order, as many at once as the plan's prefill entries were made for."""
    from executor.resource_manager import Batch

    sizes = [choice.batch for choice in allocation.policy if choice.phase == "prefill"]
    if not sizes:
        raise SpecError(f"{allocation.name}: has no prefill entry to serve")
    needed = traffic.batches * min(sizes)
    if traffic.requests is None:
        lengths = drawn_lengths(workload, needed, traffic.seed)
    else:
        lengths = tuple(request.prompt_tokens for request in _first(traffic.requests, needed))
    rows = [lengths[start : start + min(sizes)] for start in range(0, needed, min(sizes))]
    return tuple(Batch(row, traffic.decoded_tokens) for row in rows)


def _first(path: Path, needed: int) -> tuple[Request, ...]:
    found = read_requests(path)
    if len(found) < needed:
        raise SpecError(f"{path}: has {len(found)} requests; --batches needs {needed}")
    return found[:needed]


def drawn_lengths(workload: Workload, num: int, seed: int) -> tuple[int, ...]:
    """Prompt lengths by the buckets' shares, log-uniform inside each."""
    random = np.random.default_rng(seed)
    chosen = random.choice(len(workload.buckets), size=num, p=[bucket.share for bucket in workload.buckets])
    return tuple(int(sample_lengths(workload.buckets[i], 1, random, "log_uniform")[0]) for i in chosen)


def entries_of(allocation: Allocation, candidate: Candidate, batches: tuple[Batch, ...]) -> tuple[Entry, ...]:
    """The policy as the manager reads it. Every batch must lie in a bucket of both phases."""
    from executor.resource_manager import Entry

    for batch in batches:
        bucket(allocation, "prefill", batch.longest)
        bucket(allocation, "decode", batch.longest)
    return tuple(
        Entry(choice.phase, choice.min_tokens, placement_of(choice, candidate))
        for choice in sorted(allocation.policy, key=lambda choice: (choice.phase, choice.min_tokens))
    )


def bucket(allocation: Allocation, phase: Phase, tokens: int) -> Choice:
    try:
        return allocation.choice(phase, tokens)
    except LookupError as error:
        raise SpecError(f"a request of {tokens} tokens: {error}; plan for a workload that has it") from error
