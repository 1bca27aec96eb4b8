"""What the transports need of a program, and mailboxes that wait in vain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from executor.mailboxes import Turns
from executor.progress import RankProgress, State
from executor.replay import replay
from executor.runner import last_operation
from executor.session import prompts_of
from executor.supervisor import Supervisor
from executor.worker import Worker
from executor.world import DistributedTransport, check_order, collective_groups, message_pairs
from simulator import program as p
from simulator.errors import ExecutionError
from simulator.placement import AttentionGrid
from tests.executor_world import generation_of
from tests.schemes import pooled, static, tiny_model

MODEL = tiny_model()
PLACEMENT = pooled(MODEL, 2, AttentionGrid(heads=(8,), query_blocks=2), micro_batches=2)
GENERATION = generation_of(MODEL, PLACEMENT, num_decoded=1)


def without(program: p.Program, rank: int, index: int) -> p.Program:
    ranks = list(program.ranks)
    ranks[rank] = ranks[rank][:index] + ranks[rank][index + 1 :]
    return replace(program, ranks=tuple(ranks))


def first_send(program: p.Program, rank: int) -> int:
    return next(i for i, operation in enumerate(program.ranks[rank]) if isinstance(operation, p.Send))


def test_lowered_messages_are_in_the_order_nccl_needs() -> None:
    for program in GENERATION.programs:
        check_order(program)


def test_messages_out_of_order_are_refused_with_the_pair() -> None:
    program = GENERATION.programs[0]
    with pytest.raises(ExecutionError, match="from rank 0 to rank"):
        check_order(without(program, 0, first_send(program, 0)))


def test_groups_and_pairs_are_the_same_on_every_rank() -> None:
    programs = generation_of(MODEL, static(MODEL, 2, 2)).programs
    assert collective_groups(programs) == [(0, 1), (2, 3)]
    assert message_pairs(GENERATION.programs) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0), (3, 1)]


def test_a_message_nobody_sends_is_a_deadlock_with_names() -> None:
    program = GENERATION.programs[0]
    broken = replace(GENERATION, programs=(without(program, 0, first_send(program, 0)),))
    with pytest.raises(ExecutionError, match=r"deadlock: .*rank \d waits for tag \d+ from rank 0"):
        replay(broken)


def test_turns_hand_on_an_exception() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Turns(2).run([lambda: None, fail])


def test_the_last_operation_in_words() -> None:
    index = first_send(GENERATION.programs[1], 0)
    operation = GENERATION.programs[1].ranks[0][index]
    words = last_operation(GENERATION, 0, RankProgress(0, 0, State.WAITING, 1, index))
    where = f"(Send, layer {operation.layer}, micro-batch {operation.micro_batch})"
    assert words == f"waiting in operation {index} {where} of decode step 1"
    assert last_operation(GENERATION, 0, RankProgress(0, 0, State.PREPARING, 0, 0)) == "it was preparing"


def test_prompts_must_have_the_lengths_the_program_was_lowered_for() -> None:
    with pytest.raises(ExecutionError, match=r"lengths \[1\]; the program \[9, 9, 17, 6\]"):
        prompts_of(replace(GENERATION, prompts=((3,),)))
    same = prompts_of(GENERATION)
    assert [len(prompt) for prompt in same] == [9, 9, 17, 6]
    assert all(bool((a == b).all()) for a, b in zip(same, prompts_of(GENERATION), strict=True))


SUMMED = 2**16  # elements: far beyond what goes whole to every member


def sum_and_message(worker: Worker) -> tuple[float, float]:
    """Job: an all-reduce of four ranks whose value rank 0 reads last, and only after a message that rank 1 sends once
    it has read the sum; ranks 2 and 3 never read theirs."""
    rank, transport = worker.world.rank, DistributedTransport(worker.world)
    place = {"layer": 0, "micro_batch": 0}
    total = p.Collective(
        reads=("x",), writes=("y",), kind="all_reduce", ranks=(0, 1, 2, 3), tag=1, num_bytes=4 * SUMMED,
        shape=(SUMMED, 1), dtype="fp32", algorithm="auto", **place,
    )  # fmt: skip
    send = p.Send(reads=("m",), writes=(), to=0, tag=2, num_bytes=4, **place)
    recv = p.Recv(reads=(), writes=("m",), source=1, tag=2, num_bytes=4, shape=(1, 1), dtype="fp32", **place)
    transport.begin((recv,) if rank == 0 else ())
    pending = transport.collective(total, torch.full((SUMMED, 1), float(rank)))
    found = (0.0, 0.0)
    if rank == 1:
        transport.send(send, pending.wait()[:1])
    if rank == 0:
        message = transport.receive(recv).wait()
        found = (float(message.sum()), float(pending.wait().mean()))
    transport.finish()
    return found


def test_a_sum_comes_about_whoever_reads_it_and_when(world: Supervisor) -> None:
    for _ in range(3):  # what nobody read must not be left for the next step
        assert world.run(sum_and_message, limit_s=30.0)[0] == (6.0, 6.0)  # 0 + 1 + 2 + 3
