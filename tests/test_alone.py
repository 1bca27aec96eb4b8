"""Alone: a rank that plays its step without the others does what it does among them."""

from __future__ import annotations

import pytest
import torch

from calibration.teachers import DENSE, NODES, ROUTED, lectures, placements
from executor.alone import AloneTransport, Noting
from executor.mailboxes import MailboxTransport, Post, Turns
from executor.replay import NoProgress
from executor.session import Generation, Session, StepResult, prompts_of
from executor.step_timing import Played, first_alike
from executor.weights import SeededSource, Weights
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import Placement
from simulator.program import Collective, Recv, Send
from simulator.workload import prefill_step

STEP = prefill_step(2, 48)
DEVICE = torch.device("cpu")
PLANS = [(model, placement) for model in (DENSE, ROUTED) for placement in placements(model, STEP)[1:]]


@pytest.mark.parametrize(("model", "placement"), PLANS, ids=[f"{m.name}-{p.name}" for m, p in PLANS])
def test_a_rank_alone_computes_what_it_computed_among_the_others(model: Model, placement: Placement) -> None:
    program = lower(model, STEP, placement, nodes=NODES, dtype="fp32")
    generation = Generation(model, (program,), keep_logits=True)
    tokens = torch.cat(prompts_of(generation))
    weights = Weights(SeededSource(model), dtype="fp32", device=DEVICE)
    turns, post = Turns(len(NODES)), Post()
    noting = [Noting(MailboxTransport(rank, post, turns)) for rank in range(len(NODES))]
    sessions = [
        Session(generation, rank, noting[rank], NoProgress(), device=DEVICE, weights=weights)
        for rank in range(len(NODES))
    ]
    together: dict[int, StepResult] = {}

    def body(rank: int) -> None:
        together[rank] = sessions[rank].step(0, tokens)

    turns.run([lambda rank=rank: body(rank) for rank in range(len(NODES))])  # type: ignore[misc]
    sampled = 0
    for rank, session in enumerate(sessions):
        for _ in range(2):  # what arrived is as it was, however often it is read
            session.interpreter.transport = AloneTransport(noting[rank].arrivals)
            alone = session.step(0, tokens)
            assert all(torch.equal(one, other) for one, other in zip(alone.logits, together[rank].logits, strict=True))
            sampled += len(alone.logits)
        moves = [op for op in program.ranks[rank] if isinstance(op, Recv | Collective)]
        assert set(noting[rank].arrivals) == set(moves)
    assert sampled >= 2


def test_ranks_are_alike_that_launch_the_same_kernels_unless_tokens_choose_their_experts() -> None:
    programs = {one.name: lower(DENSE, STEP, one, nodes=NODES, dtype="fp32") for one in placements(DENSE, STEP)}
    assert first_alike(programs["tp2"]) == [0, 0, 2, 2]  # the last two have nothing to do
    pool = first_alike(programs["pool2+2"])
    assert pool[:3] == [0, 0, 2]
    routed = lower(ROUTED, STEP, placements(ROUTED, STEP)[1], nodes=NODES, dtype="fp32")
    assert first_alike(routed)[:2] == [0, 1]


def test_every_operation_of_every_rank_is_timed_alone() -> None:
    lecture = next(iter(lectures()))
    weights = [Weights(SeededSource(lecture.model), dtype="fp32", device=DEVICE) for _ in NODES]
    for (step, placement), program in list(zip(lecture.plans, lecture.programs, strict=True))[1:4]:
        played = Played(lecture.model, program, weights, steady=True)
        for _ in range(2):  # a decode step finds its caches as they were
            spans = played.step()
            assert [len(ops) for ops in program.ranks] == [len(seconds) for seconds in spans], (step, placement.name)
            for operations, seconds in zip(program.ranks, spans, strict=True):
                for operation, spent_s in zip(operations, seconds, strict=True):
                    assert spent_s > 0.0 or isinstance(operation, Send | Recv | Collective), operation
