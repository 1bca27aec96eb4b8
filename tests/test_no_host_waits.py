"""A decode step asks nothing of its device: no value is read back, no shape depends on data, no copy is waited for.

On a GPU each of these would make the host wait inside the step. They show here without one: as operators that the
dispatcher sees, and on the meta device, whose tensors have shapes but no data to read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from executor import experts as moe
from executor import session
from executor.clock import HostClock
from executor.interpreter import Interpreter
from executor.mailboxes import MailboxTransport, Post, Turns
from executor.replay import NoProgress
from executor.sampling import Sampling
from simulator.model import Experts, Model
from simulator.placement import AttentionGrid, Placement
from tests.executor_world import generation_of, replayed
from tests.schemes import context_parallel, joined, pooled, separated, static, tiny_model, two_level

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "is_nonzero", "equal", "unique", "item")
"""Operators whose CUDA kernels copy something back to the host. ``bincount`` reads its largest element."""
DENSE = tiny_model()
EXPERTS = Experts(num_experts=8, top_k=2, intermediate_size=24, capacity_factor=1.0)
CAPPED = tiny_model(experts=EXPERTS)
DROPLESS = tiny_model(experts=EXPERTS.model_copy(update={"capacity_factor": None}))
SLIDING = tiny_model(windows=(5, 0))
CASES = [
    (DENSE, static(DENSE, 3)),
    (DENSE, context_parallel(DENSE, 2, 2)),
    (DENSE, pooled(DENSE, 2, AttentionGrid(heads=(8,), kv_blocks=2))),
    (DENSE, joined(DENSE, 2, AttentionGrid(heads=(3, 5), kv_blocks=2))),
    (DENSE, two_level(DENSE, 2, 2, dim_mode="score_sum")),
    (SLIDING, static(SLIDING, 2)),
    (CAPPED, static(CAPPED, 2)),
    (CAPPED, separated(CAPPED, 2, 2)),
    (DROPLESS, static(DROPLESS, 2)),
    (DROPLESS, separated(DROPLESS, 2, 2, exit="all_reduce_broadcast")),
]


def note(found: list[str], function: Any, args: Any, kwargs: Any) -> None:
    """Add the operator to ``found`` if it would make a host wait."""
    name = function.overloadpacket.__name__
    if name in WAITS or name.startswith("unique"):
        found.append(name)
    devices = {tensor.device.type for tensor in args if isinstance(tensor, torch.Tensor) and tensor.ndim}
    target = (kwargs or {}).get("device")
    if name in ("_to_copy", "copy_") and len(devices | ({torch.device(target).type} if target else set())) > 1:
        found.append(f"{name} between devices")


class Watch(TorchDispatchMode):
    """Notes every operator that would make a host wait."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        note(self.found, function, args, kwargs)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The waits of every step any rank runs."""
    found: list[str] = []
    original: Callable[..., Any] = Interpreter.run

    def watched(*arguments: Any) -> Any:
        with Watch(found):
            return original(*arguments)

    monkeypatch.setattr(Interpreter, "run", watched)
    return found


@pytest.mark.parametrize(("model", "placement"), CASES, ids=lambda value: value.name)
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, top_k=9, top_p=0.9)], ids=["greedy", "drawn"]
)
def test_no_step_reads_anything_back(model: Model, placement: Placement, sampling: Sampling, waits: list[str]) -> None:
    generation = replace(generation_of(model, placement, num_decoded=2), sampling=sampling)
    replayed(generation)
    assert waits == []


def test_the_watch_sees_what_it_looks_for(waits: list[str]) -> None:
    with Watch(waits):
        torch.ones(2).sum().item()
        torch.ones(2).nonzero()
        bool(torch.ones(1) > 0)
        torch.bincount(torch.tensor([1, 2]))
        torch.empty(2, device="meta").copy_(torch.ones(2))
    assert {"_local_scalar_dense", "nonzero", "bincount", "copy_ between devices"} <= set(waits)


@pytest.mark.parametrize("model", [DENSE, SLIDING, CAPPED, DROPLESS], ids=["dense", "sliding", "capped", "dropless"])
def test_a_step_runs_on_tensors_without_data_and_copies_nothing_to_their_device(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU: reading what it holds, or a shape made of it, would raise too."""
    gpu = torch.device("meta")
    monkeypatch.setattr(session, "chosen", lambda *_: "torch_flash")  # probing reads results, before any step
    monkeypatch.setattr(session, "clock_for", lambda _: HostClock())
    monkeypatch.setitem(moe._GROUPED_MM, (gpu, torch.bfloat16), True)
    generation = generation_of(model, static(model, 1), num_decoded=2, dtype="bf16")
    generation = replace(generation, keep_logits=False)
    transport = MailboxTransport(0, Post(), Turns(0))
    found: list[str] = []
    with Watch(found):
        rank = session.Session(generation, 0, transport, NoProgress(), device=gpu)
        tokens: torch.Tensor | None = torch.empty(generation.programs[0].step.num_tokens, dtype=torch.int64, device=gpu)
        found.clear()
        for number in range(3):
            tokens = rank.step(number, tokens).tokens
            assert tokens is not None
            assert (tokens.device, tokens.shape) == (gpu, (4,))
    assert found == []
    assert len(rank.cache.layers) == model.num_layers
