"""All-reduce: between CPU hosts ``auto`` becomes the algorithm that the simulator takes for the fastest.

NCCL picks an algorithm itself, gloo has only its ring. So where ranks of several CPU nodes reduce, the program says
which way, and the executor does as it says: what is predicted is what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from simulator.cluster import Cluster
from simulator.costs.collective_cost import Call, collective_cost
from simulator.costs.pricing import as_measured, measured_collectives
from simulator.fabric.topology import Topology
from simulator.profile import Profile
from simulator.program import Collective, Operation, Program

Algorithm = Literal["ring", "hierarchical"]
ALGORITHMS: tuple[Algorithm, ...] = ("ring", "hierarchical")


def with_algorithms(program: Program, cluster: Cluster, profiles: Mapping[str, Profile]) -> Program:
    """``program`` with every ``auto`` all-reduce over several CPU nodes stated; others as they are."""
    if any(gpu.kind != "cpu" for gpu in cluster.gpus) or cluster.rank_nodes()[-1][0] == 0:
        return program
    topology, in_node = Topology(as_measured(cluster, profiles)), measured_collectives(profiles)

    def stated(operation: Operation) -> Operation:
        if not isinstance(operation, Collective) or (operation.kind, operation.algorithm) != ("all_reduce", "auto"):
            return operation
        if len({topology.node_of(rank) for rank in operation.ranks}) == 1:
            return operation
        costs = [
            (collective_cost(replace(call_of(operation), algorithm=one), topology, in_node).seconds, one)
            for one in ALGORITHMS
        ]
        return replace(operation, algorithm=min(costs)[1])

    return replace(program, ranks=tuple(tuple(map(stated, operations)) for operations in program.ranks))


def call_of(operation: Collective) -> Call:
    return Call(operation.kind, operation.algorithm, operation.ranks, operation.num_bytes)
