"""Question: one phase and prompt length on one cluster, which a space of candidates answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
import numpy.typing as npt

from simulator.cluster import Cluster
from simulator.model import Model
from simulator.workload import Phase, Step, decode_step, prefill_step

ORDERS = 24  # orders of node kinds tried in a mixed cluster


@dataclass(frozen=True)
class Question:
    """One phase and prompt length on one cluster. ``base_gpus`` None: any base. ``fine``: any number of GPUs, not only
    whole nodes and even parts of one, and any number of head groups, not only divisors of the heads.
    ``model_changing``: placements that compute another model (softmax per slice) are allowed."""

    model: Model
    cluster: Cluster
    phase: Phase
    tokens: int
    batch: int
    max_gpus: int
    base_gpus: int | None = None
    fine: bool = False
    model_changing: bool = False

    @cached_property
    def step(self) -> Step:
        return (prefill_step if self.phase == "prefill" else decode_step)(self.batch, self.tokens)

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """Every rank's node."""
        return tuple(node for node, _, _ in self.cluster.rank_nodes())

    @cached_property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        """Ranks in the orders candidates take them: node by node, kinds of node in every order."""
        members: dict[str, list[int]] = {}
        for rank, (_, _, node) in enumerate(self.cluster.rank_nodes()):
            members.setdefault(node.model_copy(update={"count": 1}).model_dump_json(), []).append(rank)
        kinds = list(members.values())
        if len(kinds) > 4:
            kinds = [kinds[0], [rank for kind in kinds[1:] for rank in kind]]
        found = [tuple(rank for kind in kinds for rank in kind) for kinds in permutations(kinds)]
        return tuple(found[:ORDERS])

    @cached_property
    def homes(self) -> npt.NDArray[np.int64]:
        """[order, position] → node."""
        return np.array([[self.nodes[rank] for rank in ranks] for ranks in self.orders], dtype=np.int64)

    @cached_property
    def leaves(self) -> npt.NDArray[np.int64]:
        """[order, position] → the first later position on another node; the number of ranks where there is none."""
        homes, most = self.homes, self.homes.shape[1]
        edges = np.where(homes[:, 1:] != homes[:, :-1], np.arange(1, most), most)
        ends = np.concatenate((edges, np.full((len(homes), 1), most)), axis=1)
        return np.asarray(np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1])

    @cached_property
    def _groups(self) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        return {}

    def tensor_groups(self, order: int, tensor: int) -> list[tuple[int, ...]]:
        """One group of ``tensor`` consecutive ranks of every kind: which devices, on how many nodes."""
        if (order, tensor) not in self._groups:
            ranks, places = self.orders[order], self.cluster.rank_nodes()
            found: dict[tuple[object, ...], tuple[int, ...]] = {}
            for first in range(0, len(ranks) - tensor + 1, tensor):
                group = ranks[first : first + tensor]
                node = places[group[0]][0]
                kind = tuple((places[rank][2].gpu, places[rank][0] - node) for rank in group)
                found.setdefault(kind, group)
            self._groups[order, tensor] = list(found.values())
        return self._groups[order, tensor]

    @property
    def node_gpus(self) -> int:
        return max(node.gpus for node in self.cluster.nodes)

    @cached_property
    def mixed(self) -> bool:
        """Nodes differ in GPU, speed or links."""
        return len(self.orders) > 1
