"""All-reduce over nodes: nccl-tests' published logs beside the simulated time.

Where a shipped profile has curves of that GPU (A100, H100: measured on other machines), they price what happens inside
a node; else its datasheet does. Only logs whose source states the NICs are binding; of the others the NICs are the
platform's public specification, or unknown, and the comparison says what such a cluster would do.
What it ignores: protocols (LL, LL128) and chunk sizes, which rule below tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.published.comparison import Comparison
from simulator import program as p
from simulator.cluster import Cluster, Fabric, Gpu, Nics, Node, NodeLink
from simulator.costs.pricing import measured_collectives
from simulator.profile import Profile, load_profile
from simulator.simulation.engine import run
from simulator.simulation.world import World
from simulator.units import GB, MB
from simulator.workload import prefill_step

LEAST_BYTES = 16 * MB
LATENCY_S, SWITCH_S = 5e-6, 2e-6  # of a link, of a switch: as in the shipped clusters (assumed)


@dataclass(frozen=True, slots=True)
class Log:
    """One log: where, on what, and its rows of at least 16 MB as size → µs (out of place)."""

    name: str
    source: str
    node: Node
    rows: Mapping[int, float]
    profile: str | None = None
    stated: bool = False
    remark: str = ""


def _node(gpu: str, nodes: int, gpus: int, link: NodeLink, nics: tuple[int, float] | None) -> Node:
    cards = None if nics is None else Nics(count=nics[0], bandwidth_bytes_per_s=nics[1], latency_s=LATENCY_S)
    return Node(count=nodes, gpu=gpu, gpus=gpus, link=link, nics=cards)


def _switch(gbytes_per_s: float, *, reduces: bool = False) -> NodeLink:
    return NodeLink(kind="switch", bandwidth_bytes_per_s=gbytes_per_s * GB, latency_s=LATENCY_S, reduces=reduces)


NV6 = NodeLink(kind="pairwise", bandwidth_bytes_per_s=450 * GB, latency_s=LATENCY_S)
LOGS = (
    Log(
        "3 × 8 A100, 4 HDR NICs a node",
        "github issue NVIDIA/nccl-tests#119",
        _node("A100-SXM4-80GB", 3, 8, _switch(300), (4, 25 * GB)),
        {127926280: 2560.7, 128974856: 2583.9, 130023432: 2584.7, 131072008: 2604.6, 132120584: 2644.1,
         133169160: 2666.0},
        "a100-sxm4-80gb",
        stated=True,
    ),
    Log(
        "2 × 8 A100, 16 NICs of 100 Gb/s",
        "github oracle-quickstart/oci-hpc-oke docs/running-nccl-rccl-tests-from-slurm-operator.md @61d210ac",
        _node("A100-SXM4-80GB", 2, 8, _switch(300), (16, 12.5 * GB)),
        {1073741824: 10887.4, 2147483648: 21511.7, 4294967296: 42747.7, 8589934592: 84948.7},
        "a100-sxm4-80gb",
        remark="NICs: public specification of the shape",
    ),
    Log(
        "2 × 8 H100, 16 NICs of 200 Gb/s",
        "github oracle-quickstart/oci-hpc documentation/Troubleshooting.md @b5285a68 (UPL)",
        _node("H100-SXM", 2, 8, _switch(450, reduces=True), (16, 25 * GB)),
        {1073741824: 4478.8, 2147483648: 8722.7, 4294967296: 17228, 8589934592: 34280, 17179869184: 68359},
        "h100-sxm",
        remark="NICs: public specification of the shape; NVLink SHARP",
    ),
    Log(
        "2 × 4 H100, 4 NICs of 400 Gb/s",
        "public log of two DGX H100, 4 GPUs of each",
        _node("H100-SXM", 2, 4, _switch(450, reduces=True), (4, 50 * GB)),
        {16777216: 561.5, 33554432: 557.3, 67108864: 853.8, 134217728: 1563.0, 268435456: 1917.7, 536870912: 3278.4,
         1073741824: 6741.1, 2147483648: 11533, 4294967296: 23607, 8589934592: 45789},
        "h100-sxm",
        remark="NICs not stated: one a GPU assumed",
    ),
    Log(
        "2 × 4 GH200, 4 Slingshot NICs of 200 Gb/s",
        "github eth-cscs/cscs-docs docs/software/communication/nccl.md @80abed13",
        _node("GH200", 2, 4, NV6, (4, 25 * GB)),
        {16777216: 461.7, 33554432: 686.5, 67108864: 1090.5, 134217728: 1916.4},
        remark="NICs: public specification; no profile of the node",
    ),
    Log(
        "18 × 4 GB200, one NVLink domain",
        "github coreweave/nccl-tests README.md @cb865533",
        _node("GB200", 1, 72, _switch(900), None),
        {536870912: 1806.7, 1073741824: 3108.8, 2147483648: 5589.1, 4294967296: 10094, 8589934592: 20299},
        remark="one domain, no NIC in use; no profile of the node",
    ),
)  # fmt: skip


def cluster(log: Log) -> Cluster:
    """The log's nodes under one full-bisection fabric."""
    if log.profile is not None:
        gpu = load_profile(log.profile).gpu
    else:
        gpu = Gpu(
            name=log.node.gpu,
            compute_flop_per_s=1e15,  # nothing computes here
            memory_bandwidth_bytes_per_s=4e12,
            memory_bytes=10**11,
            num_sms=132,
            source="unused",
        )
    return Cluster(name="nccl-tests", gpus=(gpu,), nodes=(log.node,), fabric=Fabric(latency_s=SWITCH_S))


def all_reduce_seconds(log: Log, num_bytes: int) -> float:
    """One all-reduce of fp32 over all ranks of the log, by the engine."""
    machine = cluster(log)
    ranks = tuple(range(machine.num_ranks))
    operation = p.Collective(
        reads=(),
        writes=("y",),
        layer=0,
        micro_batch=0,
        kind="all_reduce",
        algorithm="auto",
        ranks=ranks,
        tag=0,
        num_bytes=num_bytes,
        shape=(num_bytes // 4,),
        dtype="fp32",
    )
    program = p.Program(
        prefill_step(1, 1), "fp32", ((operation,),) * len(ranks), ((),) * len(ranks), ("",) * len(ranks)
    )
    profiles: dict[str, Profile] = {}
    if log.profile is not None:
        profile = load_profile(log.profile)
        profiles[profile.gpu.name] = profile
    world = World(in_node=measured_collectives(profiles)) if profiles else World()
    return run(program, machine, [[0.0]] * len(ranks), world).duration_s


def comparisons(log: Log) -> tuple[Comparison, ...]:
    """Every row of a log."""
    return tuple(
        Comparison(
            f"{log.name}, {num_bytes / MB:,.0f} MB",
            "ms",
            1e-3 * us,
            1e3 * all_reduce_seconds(log, num_bytes),
            log.stated,
        )
        for num_bytes, us in log.rows.items()
    )
