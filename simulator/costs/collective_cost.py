"""Collective cost: a collective of given ranks on a topology, as latency and bytes on every resource.

The closed forms of ``collectives.py`` with α and β read off the topology. The bytes of each algorithm are laid on
the links it uses, so a collective competes with everything else for them; alone it takes latency + fluid seconds:

    ring          one ring through all nodes, rotated over their NICs: p·(ring traffic); slowest link counts
    tree          NCCL's: a chain inside each node, two binary trees over the nodes
    hierarchical  reduce-scatter in the node, ring over the nodes for each shard, all-gather in the node
    auto          the fastest of those; inside one node the measured curve where there is one

``in_node`` gives measured seconds of a collective inside one node, or None: it then replaces the in-node links' α-β
time (also the in-node phases of algorithms across nodes). Between nodes bytes spread evenly over a node's NICs.
What it ignores: protocol switches (LL, LL128), NVLink SHARP, channels fewer than NICs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.fabric.collectives import best_chunks, tree_depth, tree_volume
from simulator.fabric.topology import Nic, Topology
from simulator.program import CollectiveKind

Algorithm = Literal["ring", "tree", "hierarchical", "direct", "measured"]
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
    """``latency_s`` before bytes flow, ``fluid_s`` for them when alone, and (resource, bytes) while they do."""

    algorithm: Algorithm
    latency_s: float
    fluid_s: float
    traffic: tuple[tuple[int, float], ...]

    @property
    def seconds(self) -> float:
        return self.latency_s + self.fluid_s


def unmeasured(gpu: str, kind: str, num_bytes: float, gpus: int) -> float | None:
    """``in_node`` where there are no measurements at all."""
    return None


def collective_cost(call: Call, topology: Topology, in_node: InNode = unmeasured) -> CollectiveCost:
    """The requested algorithm, or for ``auto`` the measured curve inside a node, else the fastest."""
    if len(call.ranks) < 2:
        return CollectiveCost("direct", 0.0, 0.0, ())
    layout = _Layout(call, topology, in_node)
    if call.algorithm == "auto" and len(layout.nodes) == 1:
        measured = layout.measured(call.kind, call.num_bytes)
        if measured is not None:
            return _measured(layout, measured)
    choices = [build(layout) for build in _builders(call)]
    return min(choices, key=lambda cost: cost.seconds)


def _builders(call: Call) -> list[Callable[[_Layout], CollectiveCost]]:
    """Candidates for a call; all-to-all is sent directly, and only all-reduce and broadcast have trees."""
    match call.kind, call.algorithm:
        case "all_to_all", _:
            return [_direct]
        case "broadcast", "auto":
            return [_chain, _binomial]
        case "broadcast", "tree":
            return [_binomial]
        case "broadcast", _:
            return [_chain]
        case "all_reduce", "auto":
            return [_ring, _tree, _hierarchical]
        case "all_reduce", "tree":
            return [_tree]
        case _, "hierarchical":
            return [_hierarchical]
        case _, "auto":
            return [_ring, _hierarchical]
        case _:
            return [_ring]


class _Layout:
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


def _ring_share(call: Call) -> tuple[int, float]:
    """(steps, times the buffer that a rank sends) of a ring: all-reduce 2(p−1) steps, the halves p−1."""
    rounds = (2 if call.kind == "all_reduce" else 1) * (len(call.ranks) - 1)
    return rounds, rounds / len(call.ranks)


def _measured(layout: _Layout, seconds: float) -> CollectiveCost:
    """All of the measured time is fluid; the bytes are the ring's (direct exchange moves as many)."""
    _, share = _ring_share(layout.call)
    layout.inside(lambda g: share * layout.call.num_bytes)
    return layout.cost("measured", 0.0, seconds)


def _ring(layout: _Layout) -> CollectiveCost:
    """2(p−1)α + 2(p−1)/p·S/β (half for reduce-scatter and all-gather), β the slowest link of the ring.

    A node is entered and left once; turned over all starting points, of the g members' hops (g−1)/g stay inside.
    A measured curve of g GPUs gives the in-node rate: its time scaled from (g−1)/g to (p−1)/p of the buffer.
    """
    call, num_nodes = layout.call, len(layout.nodes)
    steps, share = _ring_share(call)
    volume = share * call.num_bytes
    inner_s = layout.inside(lambda g: volume if num_nodes == 1 else volume * (g - 1) / g)
    outer_s = layout.between(volume)
    if num_nodes > 1 and layout.most > 1:
        measured = layout.measured(call.kind, call.num_bytes)
        if measured is not None:
            here, whole = (layout.most - 1) / layout.most, (len(call.ranks) - 1) / len(call.ranks)
            inner_s = measured * whole / here
    return layout.cost("ring", steps * layout.hop_s, max(inner_s, outer_s))


def _tree(layout: _Layout) -> CollectiveCost:
    """Nodes as ranks of a two-tree: d·S through each node's NICs; inside, a chain: S up and S down each port.

    One node: a two-tree over its GPUs. Latency: up and down, ⌈log₂G⌉ hops between and g−1 inside (NCCL's chain).
    """
    call, num_nodes = layout.call, len(layout.nodes)
    if num_nodes == 1:
        ranks = len(call.ranks)
        fluid_s = layout.inside(lambda g: tree_volume(g) * call.num_bytes)
        return layout.cost("tree", 2 * tree_depth(ranks) * layout.inner_s, fluid_s)
    inner_s = layout.inside(lambda g: tree_volume(g) * call.num_bytes)
    outer_s = layout.between(tree_volume(num_nodes) * call.num_bytes)
    measured = layout.measured(call.kind, call.num_bytes) if layout.most > 1 else None
    if measured is not None:  # the curve's rate: it moved 2(g−1)/g of the buffer through each port
        inner_s = measured * tree_volume(layout.most) / (2 * (layout.most - 1) / layout.most)
    hops_s = tree_depth(num_nodes) * layout.outer_s + (layout.most - 1) * layout.inner_s
    return layout.cost("tree", 2 * hops_s, max(inner_s, outer_s))


def _hierarchical(layout: _Layout) -> CollectiveCost:
    """In node (g−1)/g·S, between nodes (G−1)/G·S over all a node's NICs; an all-reduce does both twice.

    Phases follow one another, so their times add. Inside one node, or one GPU a node, this is the ring.
    """
    call, num_nodes = layout.call, len(layout.nodes)
    if num_nodes == 1 or layout.most == 1:
        return _ring(layout)
    times = 2 if call.kind == "all_reduce" else 1
    inner_s = layout.inside(lambda g: times * (g - 1) / g * call.num_bytes)
    latency_s = times * (layout.most - 1) * layout.inner_s
    halves = [layout.measured(kind, call.num_bytes) for kind in _halves(call.kind)]
    seconds = [half for half in halves if half is not None]
    if len(seconds) == len(halves):
        inner_s, latency_s = sum(seconds), 0.0
    outer_s = layout.between(times * (num_nodes - 1) / num_nodes * call.num_bytes)
    latency_s += times * (num_nodes - 1) * layout.outer_s
    return layout.cost("hierarchical", latency_s, inner_s + outer_s)


def _halves(kind: CollectiveKind) -> tuple[CollectiveKind, ...]:
    return ("reduce_scatter", "all_gather") if kind == "all_reduce" else (kind,)


def _direct(layout: _Layout) -> CollectiveCost:
    """α + bytes/β: every rank sends S/p to every other at once; peers in its node by its ports, the rest by its NIC."""
    call, topology, num = layout.call, layout.topology, len(layout.call.ranks)
    part = call.num_bytes / num
    inner_s = layout.inside(lambda g: (g - 1) * part)
    for node in layout.nodes if len(layout.nodes) > 1 else ():
        for rank in node:
            nic = topology.nic_of(rank)
            layout.load(nic.out, (num - len(node)) * part)
            layout.load(nic.into, (num - len(node)) * part)
            crossing = _ranks_on_other_leaves(layout, node, nic) * part
            if crossing:
                up, down = topology.uplink(nic.leaf)
                layout.load(up, crossing)
                layout.load(down, crossing)
    return layout.cost("direct", layout.hop_s, max(inner_s, layout.slowest(layout.traffic)))


def _ranks_on_other_leaves(layout: _Layout, node: Sequence[int], nic: Nic) -> int:
    """How many ranks of other nodes hang on another leaf than ``nic``."""
    return sum(
        sum(layout.topology.nic_of(rank).leaf != nic.leaf for rank in other)
        for other in layout.nodes
        if other is not node
    )


def _chain(layout: _Layout) -> CollectiveCost:
    """(p−2+c)(α + M/(cβ)) with the best c; β the slowest link, each node entered once over all its NICs."""
    ranks, num_bytes = len(layout.call.ranks), layout.call.num_bytes
    message_s = max(layout.inside(lambda g: num_bytes), layout.between(num_bytes))
    alpha_s = layout.hop_s
    if alpha_s == 0:
        return layout.cost("ring", 0.0, message_s)
    chunks = best_chunks(ranks, message_s, alpha_s)
    whole_s = (ranks - 2 + chunks) * (alpha_s + message_s / chunks)
    return layout.cost("ring", whole_s - message_s, message_s)


def _binomial(layout: _Layout) -> CollectiveCost:
    """⌈log₂p⌉(α + M/β): nodes first, then inside; each round sends the message whole."""
    call, num_nodes = layout.call, len(layout.nodes)
    outer_s = layout.between(call.num_bytes) * tree_depth(num_nodes)
    inner_s = layout.inside(lambda g: call.num_bytes) * tree_depth(layout.most)
    latency_s = tree_depth(num_nodes) * layout.outer_s + tree_depth(layout.most) * layout.inner_s
    return layout.cost("tree", latency_s, outer_s + inner_s)
