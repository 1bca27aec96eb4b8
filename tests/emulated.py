"""Clusters of emulated hosts for tests, and whether this machine can have them."""

from __future__ import annotations

import os
import shutil

import pytest

from executor.emulated_hosts import TOOLS
from executor.environment import usable_cores
from simulator.cluster import Cluster, Gpu, Nics, Node, NodeLink

NEEDED = "needs root, iproute2 and util-linux, and two cores"
possible = os.geteuid() == 0 and all(map(shutil.which, TOOLS)) and usable_cores() >= 2
needs_namespaces = pytest.mark.skipif(not possible, reason=f"emulated hosts: {NEEDED}")


def emulated(bus_bytes_per_s: float, nic_bytes_per_s: float, *, slowdowns: tuple[float, ...] = (1.0, 1.0)) -> Cluster:
    """A node of two ranks and one core for each slowdown."""
    gpu = Gpu(
        name="cpu-core", kind="cpu", compute_flop_per_s=50e9, memory_bandwidth_bytes_per_s=10e9,
        memory_bytes=2**31, num_sms=1, source="a test",
    )  # fmt: skip
    link = NodeLink(kind="shared_memory", bandwidth_bytes_per_s=bus_bytes_per_s, latency_s=1e-4)
    nics = Nics(count=1, bandwidth_bytes_per_s=nic_bytes_per_s, latency_s=1e-4)
    nodes = tuple(Node(gpu="cpu-core", gpus=2, cores=1, link=link, nics=nics, slowdown=s) for s in slowdowns)
    return Cluster(name="emulated", gpus=(gpu,), nodes=nodes)
