"""Compression: what packing keeps, packed programs on real processes, packed gradients in real DDP."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

from executor.compression import GradientPacking, Loss, loss_of, pack, packed_gradients, unpack
from executor.compression_report import report
from executor.supervisor import Supervisor
from executor.worker import Worker
from simulator.packing import GROUP, kept_values, packed, packed_bytes
from simulator.placement import AttentionGrid
from simulator.program import Packing, Program, Send
from simulator.simulation.engine import run as simulated
from tests.executor_world import assert_transfers_as_planned, generation_of, logits_error, run_on
from tests.hand_made import cluster, durations
from tests.schemes import context_parallel, pooled, tiny_model

KINDS: tuple[Packing, ...] = ("int8", "topk")
MODEL = tiny_model()


@pytest.mark.parametrize("packing", KINDS)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_a_payload_has_the_bytes_it_is_said_to_have(packing: Packing, rows: int, columns: int) -> None:
    value = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    payload = pack(value, packing)
    assert payload.dtype == torch.int8
    assert payload.numel() == packed_bytes(packing, rows * columns)
    assert unpack(payload, packing, (rows, columns), torch.float32).shape == value.shape


def test_int8_is_right_to_half_a_step_of_its_group() -> None:
    value = (
        torch.randn(5, GROUP, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 1e3, 0, 5])[:, None]
    )
    found = unpack(pack(value, "int8"), "int8", tuple(value.shape), torch.float32)
    steps = value.abs().amax(dim=1, keepdim=True) / 127
    assert ((found - value).abs() <= 0.5001 * steps).all()
    assert torch.equal(found[3], torch.zeros(GROUP))


def test_topk_keeps_the_largest_and_nothing_else() -> None:
    value = torch.tensor([0.1, -5.0, 0.2, 3.0, -0.3, 0.0, 0.4, 0.5] * 2)
    assert kept_values(16) == 2
    found = unpack(pack(value, "topk"), "topk", (16,), torch.float32)
    assert found.tolist() == [0, -5.0, 0, 0, 0, 0, 0, 0] * 2
    # of 2·(0.01 + 25 + 0.04 + 9 + 0.09 + 0.16 + 0.25) all but 2·25 is lost
    assert loss_of(value, "topk").relative_error == pytest.approx((9.55 / 34.55) ** 0.5, rel=1e-6)


def sent(program: Program) -> int:
    return sum(op.num_bytes for operations in program.ranks for op in operations if isinstance(op, Send))


@pytest.mark.parametrize("packing", KINDS)
def test_packed_programs_run_move_what_they_plan_and_lose_a_little(world: Supervisor, packing: Packing) -> None:
    for placement in (pooled(MODEL, 2, AttentionGrid(heads=(8,), query_blocks=2)), context_parallel(MODEL, 2, 2)):
        plain = generation_of(MODEL, placement, num_decoded=1)
        generation = replace(plain, programs=tuple(packed(program, packing) for program in plain.programs))
        done = run_on(world, generation)
        assert_transfers_as_planned(generation, done)
        shrunk = sent(generation.programs[0]) / sent(plain.programs[0])
        error = logits_error(generation, done.logits)
        if packing == "int8":  # (1 + 4/128)/4 of fp32, but for small messages
            assert 0.25 < shrunk < 0.32
            assert 1e-5 < error < 0.03
        else:
            assert 0.25 <= shrunk < 0.32  # an eighth of the values, of 8 bytes each
            assert error > 0.03  # most of an activation matters: reported, not hidden


def test_the_report_says_what_packing_saves_and_loses() -> None:
    generation = generation_of(MODEL, context_parallel(MODEL, 2, 2), num_decoded=0)
    found = report(generation, "int8")
    assert found.plain_bytes == sent(generation.programs[0])
    assert found.packed_bytes < 0.32 * found.plain_bytes
    assert 0 < found.relative_error < 0.03
    assert found.same_tokens == 1.0
    assert report(generation, "topk").relative_error > found.relative_error


def test_the_simulator_plays_a_packed_program_faster() -> None:
    plain = generation_of(MODEL, pooled(MODEL, 2, AttentionGrid(heads=(8,), query_blocks=2)), num_decoded=0).programs[0]
    machine = cluster(gpus=4, link=1e6)
    times = [simulated(one, machine, durations(one, 1e-6)).duration_s for one in (plain, packed(plain, "int8"))]
    assert times[1] < 0.7 * times[0]  # messages take a quarter, the all-reduces as long as before


def test_small_and_whole_number_messages_travel_as_they_are() -> None:
    program = generation_of(MODEL, context_parallel(MODEL, 1, 4), num_decoded=1).programs[1]
    tokens = [op for operations in packed(program, "int8").ranks for op in operations if isinstance(op, Send)]
    assert tokens
    assert {op.packing for op in tokens} == {"none"}


def train(worker: Worker, packing: str | None, feedback: bool) -> tuple[float, Loss | None]:
    """Forty steps of a small regression under DDP; the mean loss of all ranks after them, and what packing did."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    parallel = DistributedDataParallel(model)
    state = GradientPacking(packing, feedback=feedback) if packing else None  # type: ignore[arg-type]
    if state is not None:
        parallel.register_comm_hook(state, packed_gradients)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(worker.world.rank)
    x = torch.randn(64, 16, generator=generator)
    y = torch.sin(x.sum(dim=1, keepdim=True))
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(parallel(x), y).backward()
        optimizer.step()
    loss = torch.nn.functional.mse_loss(parallel(x), y).detach()
    dist.all_reduce(loss)
    return float(loss) / worker.world.size, None if state is None else state.loss


def test_packed_gradients_save_bytes_and_training_converges_as_without(world: Supervisor) -> None:
    plain, _ = world.run(train, None, True, limit_s=60.0)[0]
    final = {}
    for packing, feedback in (("int8", True), ("topk", True), ("topk", False)):
        mean, loss = world.run(train, packing, feedback, limit_s=60.0)[0]
        assert isinstance(loss, Loss)
        assert loss.packed_bytes < 0.3 * loss.raw_bytes
        assert 0 < loss.relative_error < (0.02 if packing == "int8" else 1.0)
        final[packing, feedback] = mean / plain
    print(final)
    assert final["int8", True] < 1.02
    assert final["topk", True] < 1.15
