"""Threads: CPU ranks serve their own transfers, so a collective keeps its members' threads busy as well as its links.

Alone it takes its seconds and, for messages whose price is not in them, two threads' time. Beside kernels, or other
ranks of a collective, on the same cores it shares those, as a kernel does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.costs.collective_cost import CollectiveCost
from simulator.fabric.topology import Resource
from simulator.host import Host


@dataclass(frozen=True, slots=True)
class Member:
    """A CPU rank: its node's host and the resources that a second of its thread takes from."""

    host: Host
    resources: tuple[int, ...]

    @property
    def message_s(self) -> float:
        """What the threads at both ends take for a small message."""
        measured = self.host.collective_message_s
        return self.host.transfer_issue_s + self.host.receive_s if measured is None else measured

    def seconds(self, cost: CollectiveCost) -> float:
        """Of this member's thread: as many messages come in as go out."""
        per_byte = self.host.collective_s_per_byte or self.host.send_issue_s_per_byte + self.host.receive_s_per_byte
        return cost.messages * self.message_s + cost.sent_bytes * per_byte


@dataclass(frozen=True, slots=True)
class Threaded:
    """A collective as work of ``alone_s`` seconds at a rate of at most 1; ``weights``: units of resources a second;
    ``share``: its rate when its busiest thread gets as much of a core as a kernel."""

    alone_s: float
    weights: dict[int, float]
    share: float


def threaded(cost: CollectiveCost, members: Sequence[Member], resources: Sequence[Resource]) -> Threaded | None:
    """None where nobody measured what messages cost threads. A measured collective was as fast on these very cores,
    so at that rate they are full at the most."""
    seconds = [member.seconds(cost) for member in members]
    if not any(seconds):
        return None
    alone_s = cost.seconds + cost.unpriced * max(member.message_s for member in members)
    weights = {resource: num_bytes / alone_s for resource, num_bytes in cost.traffic}
    for member, thread_s in zip(members, seconds, strict=True):
        for resource in member.resources:
            weights[resource] = weights.get(resource, 0.0) + thread_s / alone_s
    if cost.algorithm == "measured":
        weights = _at_most_full(weights, resources)
    return Threaded(alone_s, weights, alone_s / max(seconds))


def _at_most_full(weights: Mapping[int, float], resources: Sequence[Resource]) -> dict[int, float]:
    return {number: min(weight, resources[number].bandwidth_bytes_per_s) for number, weight in weights.items()}
