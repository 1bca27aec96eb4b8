"""Issue: what transfers cost the thread that computes. A CPU rank hands over what it sends and takes in what has come
on the thread that runs its kernels, where operations that launch none take their time too; a GPU's host runs ahead, so
there it costs nothing. A collective's issue is in its own cost.

A send delays what it sends by a fixed time, which is added to the compute operation before it; its bytes leave while
they are handed over, so their time is added to the operation after it. The time to take a value in is added to the
first operation that reads it; what a forwarded value costs, to the rank's next compute operation. Kernels of ranks that
take turns on a core find the other's data in its caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from simulator.cluster import Cluster
from simulator.host import Host
from simulator.profile import Profile
from simulator.program import Collective, Operation, Program, Recv, Send

Seconds = npt.NDArray[np.float64]


def with_issue(
    program: Program, cluster: Cluster, profiles: Mapping[str, Profile], durations_s: Sequence[Seconds]
) -> tuple[Seconds, ...]:
    """``durations_s`` [rank][operation] with what a rank's thread does besides."""
    places = cluster.rank_nodes()
    shared = ranks_in_turns(program, cluster)
    found = []
    for rank, seconds in enumerate(durations_s):
        profile = profiles.get(places[rank][2].gpu) if len(seconds) else None
        host = None if profile is None else profile.host
        if host is not None and rank in shared and host.turn_share:
            seconds = seconds * (1 + host.turn_share)
        issues = host is not None and (
            host.transfer_issue_s or host.send_issue_s_per_byte or host.receive_s or host.view_s
        )
        slowdown = places[rank][2].slowdown
        found.append(_delayed(program.ranks[rank], seconds, _before(host, slowdown)) if host and issues else seconds)
    return tuple(found)


def _before(host: Host, slowdown: float) -> Host:
    """What becomes ``host``'s transfers when compute is slowed: only kernels and views are slow on such a node."""
    if slowdown == 1.0:
        return host
    names = ("transfer_issue_s", "send_issue_s_per_byte", "receive_s", "receive_s_per_byte")
    return host.model_copy(update={name: getattr(host, name) / slowdown for name in names})


def ranks_in_turns(program: Program, cluster: Cluster) -> frozenset[int]:
    """Ranks that take turns on a core with another one of the program: pinned ranks of one core, or all of a node where
    more of them work than it has cores."""
    users: dict[tuple[int, int], list[int]] = {}
    cores: dict[int, int] = {}
    for rank, (node, local, spec) in enumerate(cluster.rank_nodes()[: len(program.ranks)]):
        if program.ranks[rank] and spec.cores is not None:
            users.setdefault((node, local % spec.cores if spec.pinned else -1), []).append(rank)
            cores[node] = spec.cores
    room = {(node, core): cores[node] if core < 0 else 1 for node, core in users}
    return frozenset(rank for place, ranks in users.items() if len(ranks) > room[place] for rank in ranks)


def _delayed(operations: Sequence[Operation], seconds: Seconds, host: Host) -> Seconds:
    """``seconds`` of one rank with what its thread does between kernels."""
    delayed, next_s, last = seconds.copy(), 0.0, -1
    arriving: dict[str, float] = {}
    for index, operation in enumerate(operations):
        if isinstance(operation, Recv):
            arriving[operation.writes[0]] = host.receive_s + host.receive_s_per_byte * operation.num_bytes
            continue
        taken_s = sum(arriving.pop(name, 0.0) for name in operation.reads)
        if isinstance(operation, Send):
            next_s += taken_s + host.send_issue_s_per_byte * operation.num_bytes
            if taken_s or last < 0:
                next_s += host.transfer_issue_s
            else:
                delayed[last] += host.transfer_issue_s
        elif seconds[index] > 0:
            delayed[index] += next_s + taken_s
            next_s, last = 0.0, index
        elif isinstance(operation, Collective):
            next_s += taken_s
        else:
            next_s += taken_s + host.view_s
    return delayed
