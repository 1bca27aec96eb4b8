"""Question: one phase and prompt length on one cluster, which a space of candidates answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

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

    @property
    def node_gpus(self) -> int:
        return max(node.gpus for node in self.cluster.nodes)

    @cached_property
    def mixed(self) -> bool:
        """Nodes differ in GPU, speed or links."""
        return len(self.orders) > 1
