"""World: the ranks of a run and how their transfers travel — between processes over gloo, or over a mesh of connections
(``mesh``) that they met for over gloo; between GPUs over NCCL.

Sends never wait, and a value is waited for only when it is read. NCCL has no tags: messages between two ranks pair by
order, which ``check_order`` asserts, and every direction of a pair has a communicator of its own so that a send can
never queue behind a receive of the same pair.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from executor import exchange, mesh
from executor.transfers import Issued, padded, side_by_side
from executor.two_levels import TwoLevelAllReduce, levels_of
from executor.weights import TORCH_DTYPES, Weights
from simulator import program as p
from simulator.errors import ExecutionError

Transport = Literal["mesh", "gloo"]
BARRIERS = 2  # the mesh's channel for them
LOOPBACK = {"Linux": "lo", "Darwin": "lo0"}


@dataclass
class World:
    """This process's place among the ranks; sub-groups are made once and kept. ``nodes``: every rank's (empty: one);
    ``slowdown``: this rank keeps its core so many times as long at a compute operation (emulated hosts)."""

    rank: int
    size: int
    backend: Literal["gloo", "nccl"]
    device: torch.device
    nodes: tuple[int, ...] = ()
    slowdown: float = 1.0
    groups: dict[tuple[int, ...], dist.ProcessGroup | None] = field(default_factory=dict)
    lanes: dict[tuple[int, int], dist.ProcessGroup | None] = field(default_factory=dict)
    weights: tuple[tuple[Any, ...], Weights] | None = None  # of the model that ran last
    mesh: mesh.Mesh | None = None  # between CPU ranks

    def prepare(self, programs: Sequence[p.Program]) -> None:
        """Make every group the programs need. All ranks call this with the same programs."""
        for ranks in collective_groups(programs):
            self.meet(ranks)
        if self.backend == "nccl":
            for program in programs:
                check_order(program)
            for pair in message_pairs(programs):
                if pair not in self.lanes:
                    self.lanes[pair] = dist.new_group(list(pair), backend="nccl")

    def meet(self, ranks: tuple[int, ...]) -> None:
        """Make the groups a collective of ``ranks`` may need, once; a mesh needs none. All ranks of the world call this
        alike."""
        levels = levels_of(ranks, self.nodes)
        for part in (ranks, *(levels.groups if levels else ())) if self.mesh is None else ():
            if part not in self.groups and len(part) > 1:
                self.groups[part] = dist.new_group(list(part), backend=self.backend)

    def two_levels(self, operation: p.Collective) -> tuple[dist.ProcessGroup, dist.ProcessGroup] | None:
        """This rank's group inside its node and across nodes, where the program asks for a hierarchical all-reduce and
        its ranks allow one. ``auto`` is the library's own way: gloo's ring; NCCL chooses itself."""
        levels = levels_of(operation.ranks, self.nodes)
        if operation.kind != "all_reduce" or operation.algorithm != "hierarchical" or levels is None:
            return None
        inside, across = (
            self.groups[next(ranks for ranks in part if self.rank in ranks)] for part in (levels.inside, levels.across)
        )
        assert inside is not None
        assert across is not None
        return inside, across

    def barrier(self) -> None:
        if self.mesh is not None:
            self.mesh.barrier(BARRIERS)
        else:
            dist.barrier()


def join_gloo(rank: int, size: int, store: Path, timeout_s: float, transport: Transport = "mesh") -> World:
    """Join the processes of this machine that meet at the file ``store``."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK.get(os.uname().sysname, "lo"))
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
    )
    connected = mesh.join(rank, size, agree) if transport == "mesh" else None
    return World(rank, size, "gloo", torch.device("cpu"), mesh=connected)


def agree(numbers: list[int]) -> list[list[int]]:
    """Every rank's numbers, by rank."""
    mine = torch.tensor(numbers, dtype=torch.int64)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return [one.tolist() for one in found]


def join_nccl(timeout_s: float) -> World:
    """Join the processes torchrun started, one a GPU."""
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise ExecutionError(f"nccl: {', '.join(missing)} not set; start with torchrun --nproc-per-node=GPUS")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", timeout=timedelta(seconds=timeout_s), device_id=device)
    return World(dist.get_rank(), dist.get_world_size(), "nccl", device)


def collective_groups(programs: Sequence[p.Program]) -> list[tuple[int, ...]]:
    """Distinct rank groups of all collectives, in an order every rank agrees on."""
    found = {
        operation.ranks
        for program in programs
        for operations in program.ranks
        for operation in operations
        if isinstance(operation, p.Collective)
    }
    return sorted(found)


def message_pairs(programs: Sequence[p.Program]) -> list[tuple[int, int]]:
    """Distinct (sender, receiver) pairs, sorted."""
    found = {
        (rank, operation.to)
        for program in programs
        for rank, operations in enumerate(program.ranks)
        for operation in operations
        if isinstance(operation, p.Send)
    }
    return sorted(found)


def check_order(program: p.Program) -> None:
    """Assert that every pair's sends and receives come in the same order of tags, as NCCL needs."""
    sends: dict[tuple[int, int], list[int]] = {}
    receives: dict[tuple[int, int], list[int]] = {}
    for rank, operations in enumerate(program.ranks):
        for operation in operations:
            if isinstance(operation, p.Send):
                sends.setdefault((rank, operation.to), []).append(operation.tag)
            elif isinstance(operation, p.Recv):
                receives.setdefault((operation.source, rank), []).append(operation.tag)
    for pair in sorted({*sends, *receives}):
        if sends.get(pair, []) != receives.get(pair, []):
            raise ExecutionError(
                f"messages from rank {pair[0]} to rank {pair[1]} are sent as tags {sends.get(pair, [])[:8]}… but "
                f"received as {receives.get(pair, [])[:8]}…; NCCL pairs them by order"
            )


@dataclass
class _Arriving:
    """A transfer of torch.distributed under way and the value it fills."""

    work: dist.Work | TwoLevelAllReduce | None
    value: Tensor
    operation: p.Recv | p.Collective

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        if isinstance(self.operation, p.Collective) and self.operation.kind == "all_gather":
            return side_by_side(self.operation, self.value)
        return self.value


@dataclass(frozen=True, slots=True)
class _OnMesh:
    """A transfer of the mesh under way."""

    wait: Callable[[], Tensor]


class DistributedTransport:
    """One rank's transfers: through the mesh if its world has one, else through torch.distributed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.issued = Issued()
        self._sends: list[tuple[dist.Work, Tensor]] = []

    def begin(self, operations: Sequence[p.Operation]) -> None:
        self.issued = Issued()

    def send(self, operation: p.Send, value: Tensor) -> None:
        self.issued.send(value)
        value = value.contiguous()
        if self.world.mesh is not None:
            self.world.mesh.send(operation.to, exchange.MESSAGES, operation.tag, value)
            return
        lane = self.world.lanes.get((self.world.rank, operation.to))
        self._sends = [(sent, kept) for sent, kept in self._sends if not sent.is_completed()]
        work = dist.isend(value, operation.to, group=lane, tag=operation.tag)
        if work is not None:
            self._sends.append((work, value))

    def receive(self, operation: p.Recv) -> _Arriving | _OnMesh:
        if self.world.mesh is not None:
            self.world.mesh.post(operation.source, exchange.MESSAGES, operation.tag, operation.num_bytes)
            return _OnMesh(partial(exchange.message, self.world.mesh, operation))
        value = torch.empty(operation.shape, dtype=TORCH_DTYPES[operation.dtype], device=self.world.device)
        lane = self.world.lanes.get((operation.source, self.world.rank))
        work = dist.irecv(value, operation.source, group=lane, tag=operation.tag)
        return _Arriving(work, value, operation)

    def collective(self, operation: p.Collective, value: Tensor | None) -> _Arriving | _OnMesh:
        if value is None:
            assert operation.kind == "broadcast", f"{operation.kind} needs a value on every rank"
            value = torch.empty(operation.shape, dtype=TORCH_DTYPES[operation.dtype], device=self.world.device)
        value = padded(operation, value)
        self.issued.collective(operation, value)
        if len(operation.ranks) == 1:
            return _Arriving(None, value, operation)
        if self.world.mesh is not None:
            on_mesh = self.world.mesh
            return _OnMesh(partial(on_mesh.result, exchange.begin(on_mesh, operation, value, self.world.nodes)))
        return self._issue(operation, value)

    def _issue(self, operation: p.Collective, value: Tensor) -> _Arriving:
        """Portable calls only: equal parts, into tensors."""
        group, num_ranks = self.world.groups[operation.ranks], len(operation.ranks)
        out = value
        match operation.kind:
            case "all_reduce":
                levels = self.world.two_levels(operation)
                if levels is not None:
                    return _Arriving(TwoLevelAllReduce(value, *levels), out, operation)
                work = dist.all_reduce(value, group=group, async_op=True)
            case "broadcast":
                work = dist.broadcast(value, src=operation.ranks[0], group=group, async_op=True)
            case "all_gather":
                out = value.new_empty((num_ranks * value.shape[0], *value.shape[1:]))
                work = dist.all_gather_into_tensor(out, value, group=group, async_op=True)
            case "reduce_scatter":
                out = value.new_empty((value.shape[0] // num_ranks, *value.shape[1:]))
                work = dist.reduce_scatter_tensor(out, value, group=group, async_op=True)
            case "all_to_all":
                out = torch.empty_like(value)
                work = dist.all_to_all_single(out, value, group=group, async_op=True)
        return _Arriving(work, out, operation)

    def finish(self) -> None:
        if self.world.mesh is not None:
            self.world.mesh.finish()
        for work, _ in self._sends:
            work.wait()
        self._sends.clear()
