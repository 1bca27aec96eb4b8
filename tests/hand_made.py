"""Small programs and clusters written by hand, with round numbers: 1 GB/s links, no latency unless asked for."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cluster import Cluster, Fabric, Gpu, Nics, Node, NodeLink
from simulator.program import Add, Collective, CollectiveKind, Operation, Program, Recv, Send
from simulator.workload import prefill_step

GPU = Gpu(
    name="gpu",
    compute_flop_per_s=1e12,
    memory_bandwidth_bytes_per_s=1e12,
    memory_bytes=10**9,
    num_sms=1,
    source="round numbers",
)
CPU = GPU.model_copy(update={"name": "cpu", "kind": "cpu"})


def cluster(
    gpus: int = 4,
    nodes: int = 1,
    *,
    link: float = 1e9,
    latency_s: float = 0.0,
    kind: str = "switch",
    nics: int | None = None,
    nic: float = 1e9,
    nic_latency_s: float = 0.0,
    fabric: Fabric | None = None,
    slowdown: float = 1.0,
) -> Cluster:
    """``nodes`` nodes of ``gpus`` GPUs; several nodes get one NIC a GPU unless ``nics`` says otherwise."""
    cards = None if nodes == 1 and nics is None else Nics(
        count=nics or gpus, bandwidth_bytes_per_s=nic, latency_s=nic_latency_s
    )  # fmt: skip
    node = Node(
        count=nodes,
        gpu="gpu",
        gpus=gpus,
        link=NodeLink.model_validate({"kind": kind, "bandwidth_bytes_per_s": link, "latency_s": latency_s}),
        nics=cards,
        slowdown=slowdown,
    )
    return Cluster(name="hand-made", gpus=(GPU,), nodes=(node,), fabric=fabric or Fabric(latency_s=0.0))


def cpu_cluster(ranks: int, cores: int, *, link: float = 1e9) -> Cluster:
    """One node of CPU ranks that share cores and a memory bus."""
    bus = NodeLink(kind="shared_memory", bandwidth_bytes_per_s=link, latency_s=0.0)
    return Cluster(name="cpus", gpus=(CPU,), nodes=(Node(gpu="cpu", gpus=ranks, cores=cores, link=bus),))


def compute(reads: Sequence[str] = (), writes: Sequence[str] = ()) -> Add:
    return Add(reads=tuple(reads), writes=tuple(writes), layer=0, micro_batch=0, num_tokens=1, width=1)


def send(to: int, value: str, num_bytes: int, tag: int = 0) -> Send:
    return Send(reads=(value,), writes=(), layer=0, micro_batch=0, to=to, tag=tag, num_bytes=num_bytes)


def recv(source: int, value: str, num_bytes: int, tag: int = 0) -> Recv:
    return Recv(
        reads=(),
        writes=(value,),
        layer=0,
        micro_batch=0,
        source=source,
        tag=tag,
        num_bytes=num_bytes,
        shape=(1,),
        dtype="bf16",
    )


def collective(
    ranks: Sequence[int],
    num_bytes: int,
    *,
    kind: CollectiveKind = "all_reduce",
    algorithm: str = "ring",
    reads: Sequence[str] = (),
    writes: Sequence[str] = (),
    tag: int = 0,
) -> Collective:
    return Collective(
        reads=tuple(reads),
        writes=tuple(writes),
        layer=0,
        micro_batch=0,
        kind=kind,
        algorithm=algorithm,  # type: ignore[arg-type]
        ranks=tuple(ranks),
        tag=tag,
        num_bytes=num_bytes,
        shape=(1,),
        dtype="bf16",
    )


def program(*ranks: Sequence[Operation]) -> Program:
    lists = tuple(tuple(operations) for operations in ranks)
    return Program(prefill_step(1, 1), "bf16", lists, ((),) * len(lists), ("",) * len(lists))


def durations(built: Program, compute_s: float) -> list[list[float]]:
    """Every compute operation takes ``compute_s``."""
    return [[compute_s] * len(operations) for operations in built.ranks]
