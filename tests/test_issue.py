"""What transfers cost the thread that computes: on CPU ranks it delays the next kernel, on GPUs nothing."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.costs.issue import with_issue
from simulator.host import Host
from simulator.lowering import lower
from simulator.placement import AttentionGrid
from simulator.presets import cluster
from simulator.profile import Profile
from simulator.program import Collective, Recv, Send, Slice
from simulator.workload import prefill_step
from tests.schemes import pooled, tiny_model

GRID = AttentionGrid(heads=(8,), query_blocks=2)


def profile(host: Host | None) -> Profile:
    return Profile(name="a test", gpu=cluster("local-cpu").gpus[0], kernels=(), host=host)


def test_a_rank_pays_once_for_every_transfer_it_issues_and_for_every_byte_it_sends() -> None:
    program = lower(tiny_model(), prefill_step(1, 16), pooled(tiny_model(), 2, GRID), nodes=(0, 0, 0, 0), dtype="fp32")
    alone = [np.ones(len(operations)) for operations in program.ranks]
    host = Host(transfer_issue_s=1e-3, send_issue_s_per_byte=1e-6)
    issued = with_issue(program, cluster("local-cpu"), {"cpu-core": profile(host)}, alone)
    for operations, before, after in zip(program.ranks, alone, issued, strict=True):
        last = max((i for i, op in enumerate(operations) if not isinstance(op, Send | Recv | Collective)), default=0)
        transfers = [op for op in operations[:last] if isinstance(op, Send | Recv)]
        sent = sum(op.num_bytes for op in transfers if isinstance(op, Send))
        assert after.sum() - before.sum() == pytest.approx(len(transfers) * 1e-3 + sent * 1e-6)
        assert (after >= before).all()


def test_operations_without_kernels_delay_the_next_one_too() -> None:
    program = lower(tiny_model(), prefill_step(1, 16), pooled(tiny_model(), 2, GRID), nodes=(0,) * 4, dtype="fp32")
    alone = [np.array([float(not isinstance(op, Slice)) for op in operations]) for operations in program.ranks]
    issued = with_issue(program, cluster("local-cpu"), {"cpu-core": profile(Host(view_s=1e-3))}, alone)
    counted = 0
    for operations, before, after in zip(program.ranks, alone, issued, strict=True):
        computing = [i for i, op in enumerate(operations) if not isinstance(op, Slice | Send | Recv | Collective)]
        views = sum(isinstance(operation, Slice) for operation in operations[: max(computing, default=0)])
        assert after[computing].sum() - before[computing].sum() == pytest.approx(views * 1e-3)
        counted += views
    assert counted > 0


def test_without_a_measured_issue_nothing_changes() -> None:
    program = lower(tiny_model(), prefill_step(1, 16), pooled(tiny_model(), 2, GRID), nodes=(0, 0, 0, 0), dtype="fp32")
    alone = [np.ones(len(operations)) for operations in program.ranks]
    for host in (None, Host()):
        issued = with_issue(program, cluster("local-cpu"), {"cpu-core": profile(host)}, alone)
        assert all(after is before for before, after in zip(alone, issued, strict=True))
