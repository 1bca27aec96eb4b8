"""Network: messages, collectives and CPU kernels as activities that share a cluster's links, cores and memory.

A message waits its route's latency, then its bytes flow. On nodes of ``cpu`` devices a kernel is core-seconds that
share the node's cores (processor sharing, at most one core each) and, where known, its memory bandwidth; every byte
moved costs core time at both ends. Between a kernel and a message competing for cores, each gets like core shares.
On GPUs whose profile has an ``Interference``, a kernel shares its device with the transfers in flight there, which are
served first; on others, kernels and transfers do not touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from simulator.costs.collective_cost import CollectiveCost
from simulator.fabric.copies import Copies
from simulator.fabric.path import Path
from simulator.fabric.sharing import Sharing, Start
from simulator.fabric.threads import Member, threaded
from simulator.fabric.topology import Resource, Topology
from simulator.host import Host
from simulator.interference import Interference
from simulator.simulation.clock import Action, Clock, picoseconds
from simulator.units import PICOSECONDS_PER_S

TRANSFERS_FIRST = 1e18  # bytes/s at the level of a whole device's kernel: transfers reach their links' rates first


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU whose kernels slow down beside transfers: its resource (capacity: one kernel at full rate) and shares."""

    number: int
    shares: Interference


@dataclass(frozen=True, slots=True)
class Cores:
    """A CPU node's shared resources, by number, and the core time of a byte at one end. ``pinned``: single cores."""

    cores: int
    memory: int | None
    core_s_per_byte: float
    latency_s: float | None
    pinned: tuple[int, ...] = ()
    host: Host = field(default_factory=Host)

    def of(self, local: int) -> tuple[int, ...]:
        """The resources that a second on a core takes from, for the node's rank ``local``."""
        return (self.cores, self.pinned[local % len(self.pinned)]) if self.pinned else (self.cores,)


@dataclass(frozen=True, slots=True)
class CollectiveFlow:
    """A collective ready to start: latency, then ``work`` bytes over ``path`` at no more than its cap of bytes/s."""

    latency_ps: int
    work: float
    path: Path

    @property
    def least_ps(self) -> int:
        """On idle links, less the picoseconds that rounding may give."""
        flowing_s = self.work / self.path.cap if self.work else 0.0
        return max(self.latency_ps + int(flowing_s * PICOSECONDS_PER_S) - 2, 0)


class Network:
    """What the engine's transfers and CPU kernels run on. ``resources``: links first, then cores and memory."""

    def __init__(
        self,
        clock: Clock,
        topology: Topology,
        hosts: Mapping[str, Host],
        interference: Mapping[str, Interference] | None = None,
        *,
        copies: Copies | None = None,
        record_load: bool = False,
    ) -> None:
        self.clock, self.topology, self.copies = clock, topology, copies
        self.resources = list(topology.resources)
        self.cores = self._add_cores(hosts)
        dearest = max((node.core_s_per_byte for node in self.cores.values()), default=0.0)
        self._share = 1.0 / dearest if dearest > 0 else 1.0  # a message's rate at the level of one core
        self.devices = self._add_devices(interference or {})
        if self.devices:
            self._share = TRANSFERS_FIRST
        capacities = [resource.bandwidth_bytes_per_s for resource in self.resources]
        self.sharing = Sharing(clock, capacities, unlimited=topology.never_binding, record_load=record_load)
        self._ways: dict[tuple[int, int], _Way] = {}
        self._starting: dict[int, list[Start]] = {}
        self._kernels: dict[tuple[int, float], Path] = {}

    def _add_cores(self, hosts: Mapping[str, Host]) -> dict[int, Cores]:
        kinds = {gpu.name: gpu.kind for gpu in self.topology.cluster.gpus}
        cores: dict[int, Cores] = {}
        for place in self.topology.places:
            if place.node in cores or kinds[place.spec.gpu] != "cpu":
                continue
            host = hosts.get(place.spec.gpu, Host())
            capacity = host.core_capacity or float(place.spec.cores or place.spec.gpus)
            number = self._add(f"node {place.node} cores", capacity)
            rate = host.memory_bandwidth_bytes_per_s
            memory = None if rate is None else self._add(f"node {place.node} memory", rate)
            pinned = tuple(
                self._add(f"node {place.node} core {core}", 1.0)
                for core in range(place.spec.cores or 0 if place.spec.pinned else 0)
            )
            per_byte, latency_s = host.transfer_core_s_per_byte, host.transfer_latency_s
            cores[place.node] = Cores(number, memory, per_byte, latency_s, pinned, host)
        return cores

    def _add_devices(self, interference: Mapping[str, Interference]) -> dict[int, Device]:
        return {
            rank: Device(self._add(f"node {place.node} gpu {place.local} device", 1.0), interference[place.spec.gpu])
            for rank, place in enumerate(self.topology.places)
            if place.spec.gpu in interference and place.node not in self.cores
        }

    def _add(self, name: str, capacity: float) -> int:
        self.resources.append(Resource(name, capacity))
        return len(self.resources) - 1

    def message(self, source: int, target: int, num_bytes: float, done: Action) -> None:
        """``done`` once ``num_bytes`` have gone from one rank to another."""
        way = self._ways.get((source, target)) or self._way(source, target)
        if num_bytes and way.path.resources:
            self._start_in(way.latency_ps, (float(num_bytes), way.path, done))
        else:
            self.clock.after(way.latency_ps, done)

    def least_ps(self, source: int, target: int, num_bytes: float) -> int:
        """Of a message on idle links, less the picoseconds that rounding may give."""
        way = self._ways.get((source, target)) or self._way(source, target)
        if not num_bytes or not way.path.resources:
            return way.latency_ps
        return max(way.latency_ps + int(num_bytes / self.sharing.rate_alone(way.path) * PICOSECONDS_PER_S) - 2, 0)

    def _start_in(self, delay_ps: int, activity: Start) -> None:
        """Start in ``delay_ps``; one event for all that start at the same instant."""
        due_ps = self.clock.now_ps + delay_ps
        starting = self._starting.get(due_ps)
        if starting is None:
            self._starting[due_ps] = [activity]
            self.clock.after(delay_ps, self._start_due)
        else:
            starting.append(activity)

    def _start_due(self) -> None:
        self.sharing.start_all(self._starting.pop(self.clock.now_ps))

    def _way(self, source: int, target: int) -> _Way:
        way = self._ways[source, target] = self._find_way(source, target)
        return way

    def _find_way(self, source: int, target: int) -> _Way:
        """The route, with the cores at both ends: a byte costs its sender's and its receiver's core time."""
        route = self.topology.route(source, target)
        latency_s, weights = route.latency_s, dict.fromkeys(route.resources, 1.0)
        if not self.cores and not self.devices and self.copies is None:
            return _Way(self.sharing.path(weights, share=self._share), picoseconds(latency_s))
        dearest = 0.0
        for rank in (source, target) if source != target else ():
            node = self.cores.get(self.topology.node_of(rank))
            if node is None:
                continue
            if node.core_s_per_byte > 0:
                for resource in node.of(self.topology.places[rank].local):
                    weights[resource] = weights.get(resource, 0.0) + node.core_s_per_byte
                dearest = max(dearest, node.core_s_per_byte)
            if node.latency_s is not None:
                latency_s = node.latency_s
        if route.resources:
            fastest = min(self.resources[r].bandwidth_bytes_per_s for r in route.resources)
            for rank in (source, target):
                self._occupy(weights, rank, "message_share", fastest)
        if self.copies is not None:
            weights = self.copies.of_message(weights)
        cap = 1.0 / dearest if dearest > 0 else float("inf")
        return _Way(self.sharing.path(weights, cap=cap, share=self._share), picoseconds(latency_s))

    def _occupy(self, weights: dict[int, float], rank: int, share: str, rate: float) -> None:
        """A transfer of ``rate`` takes its share of a rank's device."""
        device = self.devices.get(rank)
        taken = getattr(device.shares, share) if device is not None else 0.0
        if device is not None and taken > 0:
            weights[device.number] = weights.get(device.number, 0.0) + taken / rate

    def collective_flow(self, cost: CollectiveCost, ranks: Sequence[int] = (), groups: int = 1) -> CollectiveFlow:
        """A collective as one activity: its busiest link's bytes, at most as fast as it runs alone. ``groups``: it and
        its like in other blocks, of a folded program."""
        if not cost.traffic:
            return CollectiveFlow(picoseconds(cost.seconds), 0.0, Path((), ()))
        members = [
            Member(node.host, node.of(self.topology.places[rank].local))
            for rank in ranks
            if (node := self.cores.get(self.topology.node_of(rank))) is not None
        ]
        on_threads = threaded(cost, members, self.resources)
        if on_threads is not None:
            path = self.sharing.path(on_threads.weights, cap=1.0, share=on_threads.share)
            return CollectiveFlow(0, on_threads.alone_s, path)
        work = max(num_bytes for _, num_bytes in cost.traffic)
        weights = {resource: num_bytes / work for resource, num_bytes in cost.traffic}
        rate = work / cost.fluid_s
        for node in self.cores.values():
            if node.core_s_per_byte > 0:
                self._charge(node, weights, at_most=rate if cost.algorithm == "measured" else None)
        for rank in ranks:
            self._occupy(weights, rank, "collective_share", rate)
        if self.copies is not None:
            weights = self.copies.of_collective(weights, groups)
        path = self.sharing.path(weights, cap=rate, share=self._share)
        return CollectiveFlow(picoseconds(cost.latency_s), work, path)

    def collective(self, flow: CollectiveFlow, done: Action) -> None:
        """``done`` once the latency has passed and the bytes have flowed."""
        if not flow.work:
            self.clock.after(flow.latency_ps, done)
            return
        if flow.latency_ps:
            self._start_in(flow.latency_ps, (flow.work, flow.path, done))
        else:
            self.sharing.start(flow.work, flow.path, done)

    def _charge(self, node: Cores, weights: dict[int, float], at_most: float | None) -> None:
        """Core time of the bytes on a node's links: both ends on its bus, one on its NICs and ports. A measured rate
        (``at_most``) was reached on these very cores, so at that rate they are full at the most."""
        name = self.resources[node.cores].name.removesuffix("cores")
        total = 0.0
        for resource, weight in weights.items():
            if self.resources[resource].name.startswith(name):
                total += weight * (2 if self.resources[resource].name.endswith("bus") else 1)
        core_s = total * node.core_s_per_byte
        if at_most is not None:
            core_s = min(core_s, self.resources[node.cores].bandwidth_bytes_per_s / at_most)
        if core_s > 0:
            weights[node.cores] = core_s
            weights |= dict.fromkeys(node.pinned, core_s / max(len(node.pinned), 1))

    def kernel(self, rank: int, seconds: float, moved_bytes: float, done: Action) -> None:
        """A kernel that takes ``seconds`` on a core, or a device, of its own."""
        if seconds <= 0:
            self.clock.after(0, done)
            return
        node = self.cores.get(self.topology.node_of(rank))
        intensity = moved_bytes / seconds if node is not None and node.memory is not None else 0.0
        path = self._kernels.get((rank, intensity))
        if path is None:
            path = self._kernels[rank, intensity] = self._kernel_path(rank, node, intensity)
        self.sharing.start(seconds, path, done)

    def _kernel_path(self, rank: int, node: Cores | None, intensity: float) -> Path:
        """Its device, or a core of its node and ``intensity`` bytes of memory traffic a second."""
        if node is None:
            return self.sharing.path({self.devices[rank].number: 1.0}, cap=1.0)
        weights = dict.fromkeys(node.of(self.topology.places[rank].local), 1.0)
        if node.memory is not None and intensity > 0:
            weights[node.memory] = intensity
        return self.sharing.path(weights, cap=1.0)


@dataclass(frozen=True, slots=True)
class _Way:
    """A cached route as an activity's resources."""

    path: Path
    latency_ps: int
