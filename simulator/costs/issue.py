"""Issue: what transfers cost the thread that computes. A CPU rank issues its transfers and wakes from waiting for
them on the thread that runs its kernels, where operations that launch none take their time too; a GPU's host runs
ahead, so there it costs nothing. A collective's issue is in its measured curve.

The time is added to the rank's next compute operation, whose start it delays.
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
    """``durations_s`` [rank][operation] with the issue of the transfers before each compute operation."""
    places = cluster.rank_nodes()
    found = []
    for rank, seconds in enumerate(durations_s):
        profile = profiles.get(places[rank][2].gpu) if len(seconds) else None
        host = None if profile is None else profile.host
        issues = host is not None and (host.transfer_issue_s or host.send_issue_s_per_byte or host.view_s)
        found.append(_delayed(program.ranks[rank], seconds, host) if host and issues else seconds)
    return tuple(found)


def _delayed(operations: Sequence[Operation], seconds: Seconds, host: Host) -> Seconds:
    delayed, waiting_s = seconds.copy(), 0.0
    for index, operation in enumerate(operations):
        if isinstance(operation, Send):
            waiting_s += host.transfer_issue_s + host.send_issue_s_per_byte * operation.num_bytes
        elif isinstance(operation, Recv):
            waiting_s += host.transfer_issue_s
        elif seconds[index] > 0:
            delayed[index] += waiting_s
            waiting_s = 0.0
        elif not isinstance(operation, Collective):
            waiting_s += host.view_s
    return delayed
