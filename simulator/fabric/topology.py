"""Topology: a cluster's links as numbered resources, and the route of a message over them.

Every resource is one direction of one link (or one shared bus), with a capacity in bytes/s:

    gpu → NVSwitch → gpu                 "switch": a port out and a port in for every GPU
    gpu → gpu                            "pairwise": bandwidth/(gpus−1) for every ordered pair
    gpu → bus → gpu                      "pcie", "shared_memory": one bus a node, both directions together
    gpu → NIC → leaf (→ spine → leaf) → NIC → gpu     between nodes

Between nodes a message leaves by its GPU's own NIC and enters by the receiver's; on different leaves (other rail,
other group of nodes) it crosses the spine. NCCL's PXN would hop over NVLink to the rail's NIC instead: the same NIC
load, an NVLink hop for the spine's. A leaf's uplink is the sum of its NICs over ``oversubscription``.
Latency between nodes: half of each NIC's (so a pair of equal NICs costs one NIC latency) and one ``fabric.latency_s``
for each switch. A message pays for the fabric's longest way whatever its rail: measured latencies are mostly software,
and messages that are alike then stay alike (they start, share and end together). ``hop_s`` counts exactly.
What it ignores: PCIe between GPU and NIC, routing collisions inside the spine, packet overheads.
``graph`` gives the same as a networkx graph, for checks and drawings; routing itself is arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.cluster import Cluster, Fabric, Nics, Node
from simulator.errors import SpecError

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Resource:
    """One direction of one link."""

    name: str
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Route:
    """The resources a message uses, by number, and the time its first byte needs."""

    resources: tuple[int, ...]
    latency_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is: its node's number, its index there, and the node."""

    node: int
    local: int
    spec: Node


@dataclass(frozen=True, slots=True)
class Nic:
    """The NIC a rank uses: its resources, its leaf and its latency."""

    out: int
    into: int
    leaf: tuple[int, ...]
    latency_s: float


class Topology:
    """A cluster's resources and routes. ``route`` is cached: the engine asks for every message."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.places = tuple(Place(*row) for row in cluster.rank_nodes())
        self.resources: list[Resource] = []
        self._numbers: dict[str, int] = {}
        self._routes: dict[tuple[int, int], Route] = {}
        self._nics: dict[int, Nic] = {}
        self._leaf_bytes_per_s: dict[tuple[int, ...], float] = {}
        self._uplinks: dict[tuple[int, ...], tuple[int, int]] = {}
        self._switch: dict[tuple[int, int], tuple[int, int]] = {}
        first = 0
        for number, node in enumerate(_nodes(cluster)):
            self._add_ports(number, node)
            self._add_nics(number, node, first, several=_num_nodes(cluster) > 1)
            first += node.gpus
        self._add_spine(cluster.fabric)

    def route(self, source: int, target: int) -> Route:
        """The way from one rank to another; the same rank: nothing."""
        key = (source, target)
        found = self._routes.get(key)
        if found is None:
            found = self._routes[key] = self._find(source, target)
        return found

    def node_of(self, rank: int) -> int:
        return self.places[rank].node

    def nic_of(self, rank: int) -> Nic:
        """The NIC a rank sends and receives by; SpecError where its node has none."""
        nic = self._nics.get(rank)
        if nic is None:
            raise SpecError(
                f"cluster {self.cluster.name}: rank {rank}'s node states no nics; add count and bandwidth_bytes_per_s"
            )
        return nic

    def uplink(self, leaf: tuple[int, ...]) -> tuple[int, int]:
        """The resources (up, down) between a leaf and the spine."""
        return self._uplinks[leaf]

    def ports(self, rank: int, members: Sequence[int]) -> tuple[tuple[int, float], ...]:
        """(resource, share): what a byte that ``rank`` sends *and* one it receives use inside its node, when it
        talks to the ``members`` of its node alike: its two ports; its links to them; the bus, once a byte sent."""
        place, prefix = self.places[rank], f"node {self.places[rank].node}"
        match place.spec.link.kind:
            case "switch":
                return tuple((self._numbers[f"{prefix} gpu {place.local} {way}"], 1.0) for way in ("out", "in"))
            case "pairwise":
                others = [self.places[member].local for member in members if member != rank]
                names = [f"{prefix} gpu {place.local} to {other}" for other in others]
                return tuple((self._numbers[name], 1.0 / len(names)) for name in names)
            case "pcie" | "shared_memory":
                return ((self._numbers[f"{prefix} bus"], 1.0),)

    def resources_of(self, rank: int) -> tuple[int, ...]:
        """All that messages of a rank use, in one order for all ranks: its ports or bus, its NIC, its leaf's uplinks.
        Nothing where links are pairwise: those belong to two ranks."""
        link, nic = self.places[rank].spec.link.kind, self._nics.get(rank)
        if link == "pairwise":
            return ()
        inside = tuple(resource for resource, _ in self.ports(rank, ()))
        if nic is None:
            return inside
        uplinks = self.uplink(nic.leaf) if len(self._leaf_bytes_per_s) > 1 else ()
        return (*inside, nic.out, nic.into, *uplinks)

    def _add(self, name: str, bandwidth_bytes_per_s: float) -> int:
        self._numbers[name] = len(self.resources)
        self.resources.append(Resource(name, bandwidth_bytes_per_s))
        return self._numbers[name]

    def _add_ports(self, number: int, node: Node) -> None:
        rate, gpus = node.link.bandwidth_bytes_per_s, range(node.gpus)
        match node.link.kind:
            case "switch":
                for local in gpus:
                    out = self._add(f"node {number} gpu {local} out", rate)
                    self._switch[number, local] = out, self._add(f"node {number} gpu {local} in", rate)
            case "pairwise":
                for a, b in ((a, b) for a in gpus for b in gpus if a != b):
                    self._add(f"node {number} gpu {a} to {b}", rate / (node.gpus - 1))
            case "pcie" | "shared_memory":
                self._add(f"node {number} bus", rate)

    def _add_nics(self, number: int, node: Node, first_rank: int, *, several: bool) -> None:
        """GPU i uses NIC i·count//gpus; with more NICs than GPUs its own several, as one of their joint rate."""
        if node.nics is None or not several:
            return
        made: dict[int, Nic] = {}
        for local in range(node.gpus):
            index, width = _nic_index(local, node, node.nics)
            if index not in made:
                rate = width * node.nics.bandwidth_bytes_per_s
                leaf = _leaf_of(number, index, self.cluster.fabric)
                names = [f"node {number} nic {index} {way}" for way in ("out", "in")]
                made[index] = Nic(self._add(names[0], rate), self._add(names[1], rate), leaf, node.nics.latency_s)
                self._leaf_bytes_per_s[leaf] = self._leaf_bytes_per_s.get(leaf, 0.0) + rate
            self._nics[first_rank + local] = made[index]

    def _add_spine(self, fabric: Fabric) -> None:
        if len(self._leaf_bytes_per_s) < 2:
            return
        for leaf, rate in self._leaf_bytes_per_s.items():
            up = self._add(f"{_leaf_name(leaf)} up", rate / fabric.oversubscription)
            self._uplinks[leaf] = up, self._add(f"{_leaf_name(leaf)} down", rate / fabric.oversubscription)

    def _find(self, source: int, target: int) -> Route:
        if source == target:
            return Route((), 0.0)
        a, b = self.places[source], self.places[target]
        if a.node == b.node:
            return self._inside(a, b)
        out, into = self.nic_of(source), self.nic_of(target)
        latency_s = (out.latency_s + into.latency_s) / 2 + self._longest_hops * self.cluster.fabric.latency_s
        if out.leaf == into.leaf:
            return Route((out.out, into.into), latency_s)
        middle = (self.uplink(out.leaf)[0], self.uplink(into.leaf)[1])
        return Route((out.out, *middle, into.into), latency_s)

    def hop_s(self, source: int, target: int) -> float:
        """Latency between two ranks, switch by switch: a collective sends along rails where it can."""
        a, b = self.places[source], self.places[target]
        if a.node == b.node:
            return a.spec.link.latency_s
        out, into = self.nic_of(source), self.nic_of(target)
        hops = 1 if out.leaf == into.leaf else 3
        return (out.latency_s + into.latency_s) / 2 + hops * self.cluster.fabric.latency_s

    @property
    def _longest_hops(self) -> int:
        return 3 if len(self._leaf_bytes_per_s) > 1 else 1

    @property
    def never_binding(self) -> frozenset[int]:
        """Uplinks as wide as all NICs below them: those NICs are full first, so no rate ever depends on them."""
        if self.cluster.fabric.oversubscription > 1:
            return frozenset()
        return frozenset(resource for pair in self._uplinks.values() for resource in pair)

    def _inside(self, a: Place, b: Place) -> Route:
        link = a.spec.link
        match link.kind:
            case "switch":
                resources: tuple[int, ...] = self._switch[a.node, a.local][0], self._switch[b.node, b.local][1]
            case "pairwise":
                resources = (self._numbers[f"node {a.node} gpu {a.local} to {b.local}"],)
            case "pcie" | "shared_memory":
                resources = (self._numbers[f"node {a.node} bus"],)
        return Route(resources, link.latency_s)


def _nodes(cluster: Cluster) -> list[Node]:
    return [node for node in cluster.nodes for _ in range(node.count)]


def _num_nodes(cluster: Cluster) -> int:
    return sum(node.count for node in cluster.nodes)


def _nic_index(local: int, node: Node, nics: Nics) -> tuple[int, int]:
    """(first NIC, how many) of a node's GPU number ``local``."""
    index = local * nics.count // node.gpus
    return index, max((local + 1) * nics.count // node.gpus - index, 1) if nics.count > node.gpus else 1


def _leaf_of(node: int, nic: int, fabric: Fabric) -> tuple[int, ...]:
    group = node // fabric.nodes_per_leaf if fabric.nodes_per_leaf else 0
    return (group, nic) if fabric.rails else (group,)


def _leaf_name(leaf: tuple[int, ...]) -> str:
    return "leaf " + ".".join(str(part) for part in leaf)


def graph(topology: Topology) -> nx.DiGraph[Any]:
    """The cluster as a directed graph; edges carry ``resource`` (or None), ``bandwidth_bytes_per_s``, ``latency_s``.

    Vertices: ``gpu R``, ``node N switch``, ``node N nic I out|in``, ``leaf L``, ``spine``; added in sorted order. A
    route is a shortest path that passes through no other GPU.
    """
    import networkx as nx

    edges: dict[tuple[str, str], tuple[int | None, float]] = {}
    for rank, place in enumerate(topology.places):
        _inside_edges(topology, rank, place, edges)
        if rank in topology._nics:
            _outside_edges(topology, rank, edges)
    result: nx.DiGraph[Any] = nx.DiGraph()
    result.add_nodes_from(sorted({vertex for edge in edges for vertex in edge}))
    for (a, b), (resource, latency_s) in sorted(edges.items(), key=lambda item: item[0]):
        rate = None if resource is None else topology.resources[resource].bandwidth_bytes_per_s
        result.add_edge(a, b, resource=resource, bandwidth_bytes_per_s=rate, latency_s=latency_s)
    return result


def _inside_edges(
    topology: Topology, rank: int, place: Place, edges: dict[tuple[str, str], tuple[int | None, float]]
) -> None:
    link, me = place.spec.link, f"gpu {rank}"
    first = rank - place.local
    match link.kind:
        case "switch":
            (out, _), (into, _) = topology.ports(rank, ())
            edges[me, f"node {place.node} switch"] = (out, link.latency_s / 2)
            edges[f"node {place.node} switch", me] = (into, link.latency_s / 2)
        case "pairwise":
            for other in range(first, first + place.spec.gpus):
                if other != rank:
                    edges[me, f"gpu {other}"] = (topology.route(rank, other).resources[0], link.latency_s)
        case "pcie" | "shared_memory":
            ends = f"node {place.node} bus in", f"node {place.node} bus out"
            edges[me, ends[0]] = (None, 0.0)
            edges[ends] = (topology.ports(rank, ())[0][0], link.latency_s)
            edges[ends[1], me] = (None, 0.0)


def _outside_edges(topology: Topology, rank: int, edges: dict[tuple[str, str], tuple[int | None, float]]) -> None:
    nic, hop_s = topology.nic_of(rank), topology.cluster.fabric.latency_s
    out, into = topology.resources[nic.out].name, topology.resources[nic.into].name
    leaf = _leaf_name(nic.leaf)
    edges[f"gpu {rank}", out] = edges[into, f"gpu {rank}"] = (None, 0.0)
    edges[out, leaf] = (nic.out, nic.latency_s / 2)
    edges[leaf, into] = (nic.into, nic.latency_s / 2 + hop_s)
    if nic.leaf in topology._uplinks:
        up, down = topology.uplink(nic.leaf)
        edges[leaf, "spine"] = (up, hop_s)
        edges["spine", leaf] = (down, hop_s)
