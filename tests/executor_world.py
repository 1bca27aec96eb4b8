"""Running lowered programs and holding them to the one-device reference; one world of processes for all tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from executor.emulated_hosts import Seat, seats_here
from executor.operations import next_places
from executor.reference import Attend, Past, Reference, RoutingGroup
from executor.replay import replay
from executor.runner import Executed, execute
from executor.session import Generation, prompts_of
from executor.supervisor import Supervisor
from executor.transfers import planned
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import Placement
from simulator.program import Program, Sample
from simulator.workload import Sequences, Step
from tests.routing import dropped_by, routing_of

RAGGED = (Sequences(2, 0, 9), Sequences(1, 0, 17), Sequences(1, 0, 6))
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # of the largest logit: issue 2, point 2


def generation_of(
    model: Model,
    placement: Placement,
    *,
    decoder: Placement | None = None,
    batch: Sequence[Sequences] = RAGGED,
    dtype: str = "fp32",
    num_decoded: int = 3,
    world: int = 4,
    nodes: Sequence[int] = (),
) -> Generation:
    """Prefill by ``placement``, then greedy decoding by ``decoder`` (None: the same)."""
    nodes = tuple(nodes) or (0,) * world
    programs = [lower(model, Step("prefill", tuple(batch)), placement, nodes=nodes, dtype=dtype, cache=decoder)]
    for step in range(num_decoded):
        grown = tuple(Sequences(group.count, group.new + step, 1, group.new) for group in batch)
        programs.append(lower(model, Step("decode", grown), decoder or placement, nodes=nodes, dtype=dtype))
    return Generation(model, tuple(programs), warm_up=0, keep_logits=True)


def logits_error(
    generation: Generation,
    logits: list[list[list[Tensor]]],
    dtype: str = "fp32",
    routing: Sequence[RoutingGroup] | None = None,
) -> float:
    """Largest difference of any rank's prefill logits from the reference's, over the reference's largest.

    A rank may hold some sequences only, so each of its rows is compared with the nearest row of the reference.
    """
    reference = Reference(generation.model, dtype=dtype)
    want = reference.logits(prompts_of(generation), routing).float()
    worst = torch.tensor(0.0)
    rows = [row for rank in logits[0] for sample in rank for row in sample]
    assert len(rows) >= len(want)
    for row in rows:
        worst = torch.maximum(worst, (want - row).abs().amax(dim=1).min())
    return float(worst / want.abs().max())


def assert_like_reference(generation: Generation, done: Executed, dtype: str = "fp32") -> None:
    """Prefill logits within tolerance, greedy tokens identical (fp32), transfers exactly as planned."""
    assert logits_error(generation, done.logits, dtype) <= TOLERANCE[dtype]
    if dtype == "fp32":
        reference = Reference(generation.model, dtype=dtype)
        want = reference.generate(prompts_of(generation), len(generation.programs))
        assert [list(tokens) for tokens in done.measurement.generated] == want
    assert_transfers_as_planned(generation, done)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against the reference fed the tokens it generated and the experts it chose, step by step.

    ``error``: largest difference of any logit of any rank and step, over the step's largest logit. ``tokens``: the
    reference's next token of every sequence and step, after the run's. ``same_drops``: whether exactly the pairs of
    token and expert were dropped that the reference drops. ``regrets``: of tokens whose experts are not the
    reference's likeliest, by how much they fall short, over the largest logit of the router."""

    error: float
    tokens: list[list[int]]
    same_drops: bool
    num_drops: int
    regrets: list[float]


def compared(generation: Generation, done: Executed, *, attend: Attend | None = None) -> Comparison:
    """Every step of ``done``, prefill and decode. ``attend``: the attention of a scheme that is another model."""
    reference = Reference(generation.model, dtype=generation.programs[0].dtype, attend=attend)
    new = prompts_of(generation)
    pasts = [Past() for _ in new]
    error, same, drops, tokens = 0.0, True, 0, [list[int]() for _ in new]
    for number, program in enumerate(generation.programs):
        reference.dropped.clear()
        want = reference.step(new, pasts, routing_of(program, done.routes[number])).float()
        dropped = dropped_by(program, done.routes[number])
        same, drops = same and dropped == set(reference.dropped), drops + len(dropped)
        error = max(error, _worst(program, done.logits[number], want))
        for sequence, token in enumerate(want.argmax(dim=-1).tolist()):
            tokens[sequence].append(token)
        new = [torch.tensor([row[number]]) for row in done.measurement.generated]
    return Comparison(error, tokens, same, drops, reference.regrets)


def _worst(program: Program, logits: Sequence[Sequence[Tensor]], want: Tensor) -> float:
    """Largest difference from the logits wanted of the sequences that each rank samples, over the largest."""
    worst, sampled = 0.0, set[int]()
    for operations, values in zip(program.ranks, logits, strict=False):
        samples = [operation for operation in operations if isinstance(operation, Sample)]
        for operation, rows in zip(samples, values, strict=True):
            sequences = [sequence for sequence, _ in next_places(operation)]
            sampled.update(sequences)
            worst = max(worst, float((rows - want[sequences]).abs().max()))
    assert sampled == set(range(len(want)))
    return worst / float(want.abs().max())


def assert_transfers_as_planned(generation: Generation, done: Executed) -> None:
    for step in done.measurement.steps:
        program = generation.programs[step.index]
        for rank in step.ranks:
            plan = planned(program, rank.rank)
            assert (rank.messages, rank.bytes_sent) == (plan.messages, plan.bytes_sent)
            assert (rank.collectives, rank.collective_bytes) == (plan.collectives, plan.collective_bytes)
            operations = program.ranks[rank.rank] if rank.rank < len(program.ranks) else ()
            assert len(rank.spans) == len(operations)


def run_on(world: Supervisor, generation: Generation) -> Executed:
    return execute(generation, world, limit_s=120.0)


def on_nodes(nodes: Sequence[int]) -> tuple[Seat, ...]:
    """Seats of this machine that say they are on those nodes."""
    return tuple(replace(seat, node=node) for seat, node in zip(seats_here(len(nodes)), nodes, strict=True))


def replayed(generation: Generation) -> Executed:
    done = replay(replace(generation, warm_up=0))
    return Executed(done.measurement, done.logits, routes=done.routes)
