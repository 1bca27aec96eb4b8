"""Emulated hosts: network namespaces joined by rate-limited links, so that ranks of one machine sit on several nodes.

    node's namespace:  lo (its bus, tbf at link.bandwidth)    eth0 (NIC out, tbf)
    switch namespace:  bridge ── port0 (node 0's NIC in, tbf), port1 …

Every rate is the cluster file's; latencies are this machine's own (``plan calibrate`` measures them). A node's ranks
have its cores to themselves, and a node of ``slowdown`` s keeps its core s times as long at every compute operation.
Each namespace lives only as long as a process of ours in it, which ends when we do, however we end: the kernel then
removes it and its links. Nothing is set up, and nothing can be sent, outside them.
What it ignores: switches' own limits (oversubscription), several NICs, links between pairs of ranks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from executor.environment import usable_cores
from simulator.cluster import Cluster, Node
from simulator.errors import ExecutionError, SpecError

TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
SUBNET = "10.213.0"  # seen by nobody outside the namespaces
PACKET_S = 1e-4  # a packet's time on a link …
PACKET_BYTES = (1500, 65000)  # … within what networks carry at least, and veth at most
BURST_PACKETS = 2  # what an idle link lets through at once; one alone loses the time by which timers are late
QUEUE_BYTES = 2**28  # far more than senders keep under way: nothing is ever dropped
START_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one rank's process runs: words before its command, its node and interface, its cores (empty: any)."""

    node: int
    command: tuple[str, ...] = ()
    interface: str = ""
    cores: tuple[int, ...] = ()
    slowdown: float = 1.0


def seats_here(size: int) -> tuple[Seat, ...]:
    """Ranks of this machine, each on a core of its own as far as there are enough: left to itself the kernel keeps
    putting a rank that wakes onto the core of the rank that woke it, and two of them then share one core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return tuple(Seat(0, cores=(cores[rank % len(cores)],) if cores else ()) for rank in range(size))


class EmulatedHosts:
    """The namespaces of a cluster while the ``with`` block lasts; ``seats[rank]`` is where each rank belongs."""

    def __init__(self, cluster: Cluster) -> None:
        check(cluster)
        self._holders: list[subprocess.Popen[bytes]] = []
        try:
            self.seats = self._build(cluster)
        except BaseException:
            self.close()
            raise

    def _build(self, cluster: Cluster) -> tuple[Seat, ...]:
        nodes = [node for node in cluster.nodes for _ in range(node.count)]
        spaces = [self._namespace() for _ in nodes]
        several = len(nodes) > 1
        if several:
            switch = self._namespace()
            inside(switch, "ip link add bridge type bridge", "ip link set bridge up")
        cores = node_cores(nodes)
        seats = []
        for number, (node, space) in enumerate(zip(nodes, spaces, strict=True)):
            bus = node.link.bandwidth_bytes_per_s
            inside(space, f"ip link set lo mtu {packet_bytes(bus)} up", limit("lo", bus))
            if several:
                assert node.nics is not None
                plug_in(number, space, switch, node.nics.bandwidth_bytes_per_s)
            for local in range(node.gpus):
                own = cores[number][local % len(cores[number])]
                used = (own,) if node.pinned else cores[number]
                seats.append(Seat(number, enter(space), "eth0" if several else "lo", used, node.slowdown))
        return tuple(seats)

    def _namespace(self) -> int:
        """A process that holds a new network namespace until its stdin, our pipe, closes."""
        holder = subprocess.Popen(["unshare", "--net", "--", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._holders.append(holder)
        until_s = time.monotonic() + START_LIMIT_S
        while holder.poll() is None and time.monotonic() < until_s:
            if namespace_of(holder.pid) not in ("", namespace_of(os.getpid())):
                return holder.pid
            time.sleep(0.002)
        raise ExecutionError("emulated hosts: this kernel gave no network namespace (unshare --net failed)")

    def close(self) -> None:
        """Let go of the namespaces; safe to call twice."""
        for holder in self._holders:
            holder.kill()
        for holder in self._holders:
            holder.wait()
            assert holder.stdin is not None
            holder.stdin.close()
        self._holders.clear()

    def __enter__(self) -> EmulatedHosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check(cluster: Cluster) -> None:
    """SpecError or ExecutionError in one line if this cluster cannot be emulated here."""
    if os.geteuid() != 0:
        raise ExecutionError("emulated hosts: only root may make network namespaces; run as root, or use --on cpu")
    missing = [f"{tool} ({package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise ExecutionError(f"emulated hosts: not found: {', '.join(missing)}; install it, or use --on cpu")
    for index, node in enumerate(cluster.nodes):
        where = f"cluster {cluster.name}: nodes[{index}]"
        if cluster.gpu_named(node.gpu).kind != "cpu":
            raise SpecError(f"{where}.gpu: {node.gpu!r} is no CPU; emulated hosts run on kind: cpu")
        if node.link.kind != "shared_memory":
            raise SpecError(f"{where}.link.kind: {node.link.kind!r}; emulated hosts have a bus: shared_memory")
        if node.nics is not None and node.nics.count != 1:
            raise SpecError(f"{where}.nics.count: {node.nics.count}; an emulated host has 1")
        if node.cores is None:
            raise SpecError(f"{where}.cores: missing; say how many of this machine's {usable_cores()} it has")
    total = sum((node.cores or 0) * node.count for node in cluster.nodes)
    if total > usable_cores():
        raise SpecError(f"cluster {cluster.name}: nodes[].cores: {total} in all; this machine has {usable_cores()}")
    if cluster.fabric.oversubscription > 1:
        raise SpecError(f"cluster {cluster.name}: fabric.oversubscription: emulated hosts share a switch without limit")


def node_cores(nodes: Sequence[Node]) -> list[tuple[int, ...]]:
    """Each node's own cores of this machine, in order."""
    usable = sorted(os.sched_getaffinity(0))
    found, first = [], 0
    for node in nodes:
        found.append(tuple(usable[first : first + (node.cores or 0)]))
        first += node.cores or 0
    return found


def plug_in(number: int, space: int, switch: int, bytes_per_s: float) -> None:
    """Join a node's namespace to the switch by a cable limited both ways."""
    port, mtu = f"port{number}", packet_bytes(bytes_per_s)
    inside(
        switch,
        f"ip link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {space}",
        f"ip link set {port} master bridge up",
        limit(port, bytes_per_s),
    )
    inside(
        space,
        f"ip addr add {SUBNET}.{number + 1}/24 dev eth0",
        "ip link set eth0 up",
        limit("eth0", bytes_per_s),
    )


def packet_bytes(bytes_per_s: float) -> int:
    """The largest packet of a link of this rate."""
    return max(PACKET_BYTES[0], min(PACKET_BYTES[1], round(PACKET_S * bytes_per_s)))


def limit(device: str, bytes_per_s: float) -> str:
    """The tc command for a token bucket of this rate on what leaves ``device`` ("bps" is bytes to tc). A deeper one
    would let a step's messages through in no time after every rest."""
    burst = BURST_PACKETS * packet_bytes(bytes_per_s)
    return f"tc qdisc replace dev {device} root tbf rate {round(bytes_per_s)}bps burst {burst} limit {QUEUE_BYTES}"


def enter(space: int) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{space}/ns/net", "--")


def inside(space: int, *commands: str) -> None:
    """Run commands in a namespace; ExecutionError with what the tool said."""
    for command in commands:
        done = subprocess.run([*enter(space), *command.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExecutionError(f"emulated hosts: {command}: {' '.join(done.stderr.split())[:200]}")


def namespace_of(pid: int) -> str:
    """The identity of a process's network namespace; empty if it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""
