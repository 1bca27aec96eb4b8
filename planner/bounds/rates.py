"""Rates: vectorised prices of kernels and collectives for the bound; never more than what the simulator charges.

A kernel costs at least what the fastest GPU type of the cluster needs for it, and where it is an operation of its own
at least its launch (attention may be several kernels an operation: none). Collectives inside a node follow the measured
curve, across nodes ``collective_cost``. Rows with a zero dimension are free: nothing is launched for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from simulator.cluster import Cluster
from simulator.costs.collective_cost import Call, InNode, collective_cost
from simulator.costs.collective_curve import collective_seconds
from simulator.costs.cost import PHYSICAL_MODELS, device_of, seconds_of_rows
from simulator.costs.pricing import as_measured, measured_collectives
from simulator.errors import ProfileError
from simulator.fabric.collectives import tree_depth
from simulator.fabric.topology import Topology
from simulator.profile import Profile
from simulator.program import CollectiveKind
from simulator.units import DTYPE_BYTES

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


REMEMBERED = 1024  # rows of a kernel call up to which it is remembered: of so few the call itself is the cost


@dataclass(frozen=True)
class Nics:
    """Of a cluster of several nodes: the fastest NIC, the most that all NICs of a node take in, the least latency."""

    fastest_bytes_per_s: float
    node_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Rates:
    """Prices on a cluster. ``cluster`` is as measured (``simulator.costs.pricing``). ``roofline``: kernels at the floor
    under every prediction (FLOPs and bytes at peak) instead of the prediction itself: lower, and fifty times faster.
    ``thin``: of a pool's query blocks only the last is looked at, of replicas the first and the last: lower again, and
    no larger for a thousand. ``solo``: replicas' own streams and links alone, not their race, which looks at all
    pairs."""

    cluster: Cluster
    profiles: Mapping[str, Profile]
    dtype: str
    topology: Topology
    roofline: bool = False
    thin: bool = False
    solo: bool = False
    collectives: dict[tuple[str, tuple[int, ...]], dict[float, float]] = field(
        default_factory=dict, compare=False, repr=False
    )
    kernels: dict[tuple[str, str, bool, bytes], Array] = field(default_factory=dict, compare=False, repr=False)

    def as_roofline(self) -> Rates:
        """The same with ``roofline`` set."""
        return replace(self, roofline=True)

    def as_thin(self) -> Rates:
        """The same with ``thin`` set."""
        return replace(self, thin=True)

    def as_solo(self) -> Rates:
        """The same with ``solo`` set."""
        return replace(self, solo=True)

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return DTYPE_BYTES[self.dtype]

    @cached_property
    def nics(self) -> Nics:
        """Of the whole cluster. SpecError where a node states none."""
        topology, cluster = self.topology, self.cluster
        by_node: defaultdict[int, set[int]] = defaultdict(set)
        for rank, place in enumerate(topology.places):
            by_node[place.node].add(topology.nic_of(rank).into)
        rate = [resource.bandwidth_bytes_per_s for resource in topology.resources]
        fastest = max(rate[topology.nic_of(rank).out] for rank in range(len(topology.places)))
        latency = min(node.nics.latency_s for node in cluster.nodes if node.nics is not None)
        hosts = [profile.host.transfer_latency_s for profile in self.profiles.values() if profile.host is not None]
        return Nics(
            fastest,
            max(sum(rate[link] for link in links) for links in by_node.values()),
            min([latency + cluster.fabric.latency_s, *(host for host in hosts if host is not None)]),
        )

    @cached_property
    def _measured(self) -> InNode:
        return measured_collectives(self.profiles)

    def gemm(self, m: npt.ArrayLike, n: npt.ArrayLike, k: npt.ArrayLike) -> Array:
        """Seconds of [m, k] @ [k, n]; arguments broadcast."""
        return self._kernel("gemm", m, n, k)

    def prefill(self, columns: tuple[npt.ArrayLike, ...]) -> Array:
        """(batch, seq_q, seq_kv, heads, kv_heads, head_dim, causal, window) → seconds."""
        return self._kernel("attention_prefill", *columns)

    def decode(self, columns: tuple[npt.ArrayLike, ...]) -> Array:
        """(batch, context, heads, kv_heads, head_dim, window) → seconds."""
        return self._kernel("attention_decode", *columns)

    def moe(self, columns: tuple[npt.ArrayLike, ...]) -> Array:
        """(tokens, hidden, inter, topk, experts, tp, ep, alpha, gated) → seconds."""
        return self._kernel("moe", *columns)

    def _kernel(self, name: str, *columns: npt.ArrayLike) -> Array:
        """The distinct rows are priced once; a row whose first columns hold a zero costs nothing."""
        rows = np.empty((*np.broadcast_shapes(*map(np.shape, columns)), len(columns)))
        for index, column in enumerate(columns):
            rows[..., index] = column
        flat = rows.reshape(-1, rows.shape[-1])
        used = (flat[:, : 3 if name != "moe" else 1] > 0).all(axis=1)
        seconds = np.zeros(len(flat))
        if used.any():
            distinct, inverse = distinct_rows(flat[used])
            seconds[used] = self._cheapest(name, distinct)[inverse]
        return seconds.reshape(rows.shape[:-1])

    def _cheapest(self, name: str, rows: Array) -> Array:
        found = []
        for gpu, slowdown in self._devices():
            launch_s = 0.0 if name.startswith("attention") else self.profiles[gpu].host_launch_s
            found.append(np.maximum(self._remembered(gpu, name, rows), launch_s) * slowdown)
        return least(found)

    def _remembered(self, gpu: str, name: str, rows: Array) -> Array:
        """Schemes, micro-batches, phases and buckets ask for the same few products, so a small call is kept."""
        if len(rows) > REMEMBERED:
            return self._on(gpu, name, rows)
        key = gpu, name, self.roofline, rows.tobytes()
        found = self.kernels.get(key)
        if found is None:
            found = self.kernels[key] = self._on(gpu, name, rows)
        return found

    def _on(self, gpu: str, name: str, rows: Array) -> Array:
        """Seconds of kernels on a GPU type."""
        profile = self.profiles[gpu]
        model = profile.model(name, self.dtype)
        if self.roofline:
            shape = PHYSICAL_MODELS[name](rows, model.coefficients, device_of(model, profile.gpu))
            return shape.floor_s * model.bound_share
        return seconds_of_rows(rows, model, profile.gpu)[0]

    def _devices(self) -> list[tuple[str, float]]:
        """(GPU type, the least slowdown of a node of that type)."""
        least: dict[str, float] = {}
        for node in self.cluster.nodes:
            least[node.gpu] = min(least.get(node.gpu, node.slowdown), node.slowdown)
        return sorted(least.items())

    def memory(self, kind: str, num_bytes: npt.ArrayLike) -> Array:
        """Seconds of an element-wise kernel that moves ``num_bytes``; 0 bytes launch nothing."""
        moved = np.asarray(num_bytes, dtype=np.float64)
        found = []
        for gpu, slowdown in self._devices():
            profile = self.profiles[gpu]
            costs = {cost.kind: cost for cost in profile.memory}
            cost = costs.get(kind, costs.get("default"))
            if cost is None:
                raise ProfileError(f"profile {profile.name}: no memory kernel {kind!r} and no 'default'; add one")
            rate = min(cost.bytes_per_s, profile.gpu.memory_bandwidth_bytes_per_s)
            seconds = np.maximum(cost.launch_s + moved / rate, profile.host_launch_s)
            found.append(np.where(moved > 0, seconds, 0.0) * slowdown)
        return least(found)

    def collective(self, kind: CollectiveKind, ranks: tuple[int, ...], num_bytes: Array) -> Array:
        """Seconds of a collective of ``ranks``, alone on its links, for every size."""
        if len(ranks) < 2:
            return np.zeros(len(num_bytes))
        nodes = len({self.topology.places[rank].node for rank in ranks})
        if self.thin and nodes > 1:
            return self.least_across(kind, nodes, num_bytes)
        sizes, inverse = np.unique(num_bytes, return_inverse=True)
        known = self.collectives.setdefault((kind, ranks), {})
        new = [size for size in sizes.tolist() if size not in known]
        if new:
            known.update(zip(new, self._collective(kind, ranks, np.array(new)).tolist(), strict=True))
        return np.array([known[size] for size in sizes.tolist()])[inverse]

    def least_across(self, kind: CollectiveKind, nodes: int, num_bytes: Array) -> Array:
        """Under every algorithm of ``collective_cost``: each node takes in the buffer at least (all-reduce) or what it
        lacks of it, and a tree over the nodes (twice), or all of them in turn, is as many hops one after the other.
        CPU ranks swap at once."""
        reduces, nics = kind == "all_reduce", self.nics
        hops = 2 * tree_depth(nodes) if reduces else nodes - 1
        if any(gpu.kind != "gpu" for gpu in self.cluster.gpus):
            hops = 1
        fluid_s = num_bytes * (1.0 if reduces else (nodes - 1) / nodes) / nics.node_bytes_per_s
        return np.asarray(np.where(num_bytes > 0, hops * nics.latency_s + fluid_s, 0.0))

    def _collective(self, kind: CollectiveKind, ranks: tuple[int, ...], sizes: Array) -> Array:
        """The measured curve inside a node, else ``collective_cost``; nothing is sent of no bytes."""
        curve = self._curve(kind, ranks, sizes)
        if curve is None:
            calls = [Call(kind, "auto", ranks, float(size)) for size in sizes]
            curve = np.array([collective_cost(call, self.topology, self._measured).seconds for call in calls])
        return np.where(sizes > 0, curve, 0.0)

    def _curve(self, kind: CollectiveKind, ranks: tuple[int, ...], sizes: Array) -> Array | None:
        """The measured curve, where all ranks share a node."""
        places = [self.topology.places[rank] for rank in ranks]
        if len({place.node for place in places}) > 1:
            return None
        try:
            return collective_seconds(kind, len(ranks), sizes, self.profiles[places[0].spec.gpu])[0]
        except ProfileError:
            return None


def least(found: list[Array]) -> Array:
    """Element by element; of one array that array itself."""
    return np.asarray(np.minimum.reduce(found)) if len(found) > 1 else found[0]


def make_rates(cluster: Cluster, profiles: Mapping[str, Profile], dtype: str) -> Rates:
    """Rates of a cluster with its links as the profiles measured them."""
    measured = as_measured(cluster, profiles)
    return Rates(measured, profiles, dtype, Topology(measured))


def distinct_rows(rows: Array) -> tuple[Array, Numbers]:
    """(distinct rows, index of each row's copy); by one integer key where the columns' spans allow it."""
    low = rows.min(axis=0)
    spans = (rows.max(axis=0) - low).astype(object) + 1
    total = 1
    for span in spans:
        total *= int(span)
    if total >= 2**62 or (rows != np.rint(rows)).any():
        found, inverse = np.unique(rows, axis=0, return_inverse=True)
        return found, inverse.reshape(-1)
    key = np.zeros(len(rows), dtype=np.int64)
    for column, span in zip((rows - low).astype(np.int64).T, spans, strict=True):
        key = key * int(span) + column
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return rows[first], inverse.reshape(-1)
