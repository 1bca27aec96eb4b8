"""Layout of a collective: its ranks node by node, their links, and the bytes that an algorithm lays on them.

What it ignores: see ``collective_cost.py``, whose algorithms are written on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.fabric.topology import Nic, Topology
from simulator.program import CollectiveKind

Algorithm = Literal["ring", "tree", "hierarchical", "switch_tree", "direct", "measured"]
Requested = Literal["auto", "ring", "tree", "hierarchical"]
InNode = Callable[[str, str, float, int], float | None]
"""(gpu name, kind, bytes, gpus) → measured seconds, or None where nobody measured."""


@dataclass(frozen=True, slots=True)
class Call:
    """One collective: what, how, by whom, how much."""

    kind: CollectiveKind
    algorithm: Requested
    ranks: tuple[int, ...]
    num_bytes: float


@dataclass(frozen=True, slots=True)
class CollectiveCost:
    """``latency_s`` before bytes flow, ``fluid_s`` for them when alone, and (resource, bytes) while they do.
    ``messages`` and ``sent_bytes`` are what a rank sends (and receives); the threads of CPU ranks take time for each
    message, which the seconds do not hold for ``unpriced`` of them."""

    algorithm: Algorithm
    latency_s: float
    fluid_s: float
    traffic: tuple[tuple[int, float], ...]
    messages: int = 0
    sent_bytes: float = 0.0
    unpriced: int = 0

    @property
    def seconds(self) -> float:
        return self.latency_s + self.fluid_s


def unmeasured(gpu: str, kind: str, num_bytes: float, gpus: int) -> float | None:
    """``in_node`` where there are no measurements at all."""
    return None


class Layout:
    """The ranks of a call node by node, their NICs, hop latencies, and bytes laid on resources so far."""

    def __init__(self, call: Call, topology: Topology, in_node: InNode) -> None:
        self.call, self.topology, self.in_node = call, topology, in_node
        members: dict[int, list[int]] = {}
        for rank in call.ranks:
            members.setdefault(topology.node_of(rank), []).append(rank)
        self.nodes = tuple(tuple(ranks) for ranks in members.values())
        self.most = max(len(ranks) for ranks in self.nodes)
        self.inner_s = max(topology.places[ranks[0]].spec.link.latency_s for ranks in self.nodes)
        self.outer_s = max((self._hop_s(a, b) for a, b in self.crossings()), default=0.0)
        self.traffic: dict[int, float] = {}

    @property
    def on_cpus(self) -> bool:
        """Whether CPU ranks exchange it (``executor/exchange.py``): a ring, in which two members swap at once."""
        return self.topology.cluster.gpu_named(self.topology.places[self.call.ranks[0]].spec.gpu).kind == "cpu"

    def crossings(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Consecutive nodes of a ring over the nodes."""
        nodes = self.nodes
        return [(nodes[i], nodes[(i + 1) % len(nodes)]) for i in range(len(nodes))] if len(nodes) > 1 else []

    def _hop_s(self, a: Sequence[int], b: Sequence[int]) -> float:
        return self.topology.hop_s(a[0], b[0])

    @property
    def hop_s(self) -> float:
        """A step of a ring is as slow as its slowest hop."""
        return max(self.inner_s if self.most > 1 else 0.0, self.outer_s)

    def measured(self, kind: str, num_bytes: float) -> float | None:
        """Seconds of the slowest node's curve (different GPUs may meet); None if any node has none."""
        slowest = 0.0
        for gpu, gpus in sorted({(self.topology.places[node[0]].spec.gpu, len(node)) for node in self.nodes}):
            seconds = self.in_node(gpu, kind, num_bytes, gpus) if gpus > 1 else 0.0
            if seconds is None:
                return None
            slowest = max(slowest, seconds)
        return slowest

    def load(self, resource: int, num_bytes: float) -> None:
        if num_bytes > 0:
            self.traffic[resource] = self.traffic.get(resource, 0.0) + num_bytes

    def inside(self, num_bytes: Callable[[int], float]) -> float:
        """Every member of a node of g sends and receives ``num_bytes(g)``: seconds of the slowest in-node link."""
        before = dict(self.traffic)
        for node in self.nodes:
            if len(node) > 1:
                for rank in node:
                    for resource, share in self.topology.ports(rank, node):
                        self.load(resource, share * num_bytes(len(node)))
        return self.slowest({r: b - before.get(r, 0.0) for r, b in self.traffic.items()})

    def between(self, num_bytes: float) -> float:
        """Every node sends ``num_bytes`` to the next, spread over its NICs: seconds of the slowest link."""
        added: dict[int, float] = {}
        for senders, receivers in self.crossings():
            outs, ins = self.nics(senders), self.nics(receivers)
            for index, nic in enumerate(outs):
                self._carry(added, nic, ins[index % len(ins)], num_bytes / len(outs))
        for resource, total in added.items():
            self.load(resource, total)
        return self.slowest(added)

    def nics(self, ranks: Sequence[int]) -> list[Nic]:
        """The distinct NICs of these ranks, in their order."""
        return list(dict.fromkeys(self.topology.nic_of(rank) for rank in ranks))

    def _carry(self, added: dict[int, float], out: Nic, into: Nic, num_bytes: float) -> None:
        used = [out.out, into.into]
        if out.leaf != into.leaf:
            used += [self.topology.uplink(out.leaf)[0], self.topology.uplink(into.leaf)[1]]
        for resource in used:
            added[resource] = added.get(resource, 0.0) + num_bytes

    def slowest(self, traffic: dict[int, float]) -> float:
        resources = self.topology.resources
        return max((b / resources[r].bandwidth_bytes_per_s for r, b in traffic.items()), default=0.0)

    def cost(self, algorithm: Algorithm, latency_s: float, fluid_s: float) -> CollectiveCost:
        """Close the account: links cannot carry their bytes in less than ``fluid_s``, so measured times that beat
        the stated bandwidth scale the bytes down (in-network reduction does that for real)."""
        traffic, self.traffic = self.traffic, {}
        ratio = fluid_s / max(self.slowest(traffic), fluid_s) if fluid_s > 0 else 0.0
        return CollectiveCost(
            algorithm, latency_s, fluid_s, tuple((r, b * ratio) for r, b in sorted(traffic.items()) if ratio > 0)
        )
