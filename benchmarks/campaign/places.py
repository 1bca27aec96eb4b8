"""Places: the emulated clusters of the campaign. Four ranks on this machine's two cores each."""

from __future__ import annotations

from simulator.cluster import Cluster, Gpu, Nics, Node, NodeLink

BUS_BYTES_PER_S = 1e9  # below what loopback does here, so that the stated rate is the real one
SLOWDOWN = 2.0
RANK = Gpu(
    name="cpu-core",
    kind="cpu",
    compute_flop_per_s=50e9,
    memory_bandwidth_bytes_per_s=10e9,
    memory_bytes=2**31,
    num_sms=1,
    source="assumed; calibration measures it",
)


def host(ranks: int, cores: int, nic_bytes_per_s: float, slowdown: float = 1.0) -> Node:
    """Latencies are placeholders that calibration replaces."""
    return Node(
        gpu=RANK.name,
        gpus=ranks,
        cores=cores,
        link=NodeLink(kind="shared_memory", bandwidth_bytes_per_s=BUS_BYTES_PER_S, latency_s=1e-4),
        nics=Nics(count=1, bandwidth_bytes_per_s=nic_bytes_per_s, latency_s=1e-4),
        slowdown=slowdown,
        pinned=True,
    )


def cluster(name: str, *nodes: Node) -> Cluster:
    return Cluster(name=name, gpus=(RANK,), nodes=nodes)


PLACES = {  # in the order in which a campaign visits them: a sitting that is cut short has the first
    place.name: place
    for place in (
        cluster("one-host", host(4, 2, BUS_BYTES_PER_S)),
        cluster("two-hosts", host(2, 1, BUS_BYTES_PER_S), host(2, 1, BUS_BYTES_PER_S)),
        cluster("slow-rank", host(3, 1, BUS_BYTES_PER_S), host(1, 1, BUS_BYTES_PER_S, SLOWDOWN)),
        cluster("two-hosts-10to1", host(2, 1, BUS_BYTES_PER_S / 10), host(2, 1, BUS_BYTES_PER_S / 10)),
    )
}
