"""MoE dispatch (fp8) and combine (bf16) on H800, as deepseek-ai/DeepEP measured its normal kernels.

Source: DeepEP docs/legacy.md at dd758caf, tests/test_internode.py and test_intranode.py (MIT): 4,096 tokens a GPU,
7,168 wide, top 8 of 256 experts, at most 4 nodes a token; "NVLink about 160 GB/s, NIC about 50 GB/s at most". A token
goes once to every node that has one of its experts, by the NIC to the GPU of the same number, and from there over
NVLink to every GPU that has one; combine is the way back. Both hops run at once, ``CHUNKS`` pieces one after another.
The published figure is bytes over time, where the bytes *include* the tokens that stay on their own node (NIC) or GPU
(NVLink): that is how 58 GB/s come through a NIC of 50. ``own_copies``: a GPU's own tokens take up its port like the
others, as the kernel gives every destination, its own too, the same warps and buffers (csrc/kernels/intranode.cu).
What it ignores: the SMs' own copying rate, RDMA headers, notification and barriers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.published.comparison import Comparison
from planner.published.ring_attention import H800
from simulator import program as p
from simulator.cluster import Cluster, Nics, Node, NodeLink
from simulator.simulation.engine import run
from simulator.units import GB
from simulator.workload import prefill_step

Way = Literal["dispatch", "combine"]
TOKENS, HIDDEN, EXPERTS, TOP_K, MOST_NODES, GPUS = 4096, 7168, 256, 8, 4, 8
TOKEN_BYTES = {"dispatch": HIDDEN + 4 * HIDDEN // 128, "combine": 2 * HIDDEN}  # fp8 with an fp32 scale for each 128
CHANNELS, CHUNK_TOKENS = 12, 16  # 24 SMs, two a channel; tests/test_internode.py's configuration
CHUNKS = TOKENS // (CHANNELS * CHUNK_TOKENS)
SAMPLE = 20_000  # tokens drawn to count copies
MEASURED = {  # ranks → GB/s at the bottleneck
    8: {"dispatch": 153, "combine": 158},
    16: {"dispatch": 43, "combine": 43},
    32: {"dispatch": 58, "combine": 57},
    64: {"dispatch": 51, "combine": 50},
}


@dataclass(frozen=True, slots=True)
class Copies:
    """Mean number of nodes, and of GPUs, that a token is sent to (its own among them)."""

    nodes: float
    gpus: float


def copies(num_nodes: int, rng: np.random.Generator) -> Copies:
    """Drawn as the test draws them: scores |N(0, 1)|, the best nodes by their best expert, the best experts there."""
    scores = np.abs(rng.standard_normal((SAMPLE, num_nodes, EXPERTS // num_nodes)))
    if num_nodes > MOST_NODES:
        best = np.sort(scores.max(axis=2), axis=1)[:, -MOST_NODES][:, None, None]
        scores = np.where(scores.max(axis=2, keepdims=True) >= best, scores, -1.0)
    flat = scores.reshape(SAMPLE, EXPERTS)
    chosen = np.argpartition(flat, EXPERTS - TOP_K, axis=1)[:, EXPERTS - TOP_K :]
    return Copies(_distinct(chosen, num_nodes), _distinct(chosen, num_nodes * GPUS))


def _distinct(chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]], holders: int) -> float:
    """Mean number of different holders of the chosen experts."""
    seen = np.zeros((SAMPLE, holders), dtype=np.bool_)
    np.put_along_axis(seen, chosen // (EXPERTS // holders), True, axis=1)
    return float(seen.sum(axis=1).mean())


def cluster(num_nodes: int, latency_s: float = 5e-6) -> Cluster:
    """Stated rates; the latency of ports and NICs is that of the shipped clusters (assumed)."""
    node = Node(
        count=num_nodes,
        gpu=H800.name,
        gpus=GPUS,
        link=NodeLink(
            kind="switch", bandwidth_bytes_per_s=160 * GB, latency_s=latency_s, source="DeepEP: about 160 GB/s"
        ),
        nics=Nics(count=GPUS, bandwidth_bytes_per_s=50 * GB, latency_s=latency_s, source="CX7, 400 Gb/s"),
    )
    return Cluster(name=f"deepep-{num_nodes * GPUS}", gpus=(H800,), nodes=(node,))


def exchange(num_nodes: int, way: Way, *, own_copies: bool = True, latency_s: float = 5e-6) -> float:
    """GB/s in the published accounting."""
    found, token_bytes = copies(num_nodes, np.random.default_rng(0)), TOKEN_BYTES[way]
    piece = TOKENS / CHUNKS * token_bytes
    # to one other node's GPU of the same number; to one other GPU here, from all nodes' GPUs of this number
    by_nic = round(piece * found.nodes / num_nodes)
    by_port = round(piece * found.gpus / GPUS * (GPUS / (GPUS - 1) if own_copies else 1))
    ranks = tuple(_rank(rank, num_nodes, (by_nic, by_port), way) for rank in range(num_nodes * GPUS))
    program = p.Program(prefill_step(1, TOKENS), "bf16", ranks, ((),) * len(ranks), ("",) * len(ranks))
    still = [[0.0] * len(operations) for operations in ranks]
    seconds = run(program, cluster(num_nodes, latency_s), still).duration_s
    counted = found.nodes if num_nodes > 1 else found.gpus
    return TOKENS * counted * token_bytes / seconds / GB


def _rank(rank: int, num_nodes: int, num_bytes: tuple[int, int], way: Way) -> tuple[p.Operation, ...]:
    """Every chunk by NIC to the GPUs of the same number, then by port to the node's others; combine: port first."""
    node, local = divmod(rank, GPUS)
    far = [other * GPUS + local for other in range(num_nodes) if other != node]
    near = [node * GPUS + other for other in range(GPUS) if other != local]
    hops = [(far, num_bytes[0]), (near, num_bytes[1])]
    if way == "combine":
        hops.reverse()
    operations: list[p.Operation] = []
    for chunk in range(CHUNKS):
        came: tuple[str, ...] = ()
        for hop, (peers, size) in enumerate(hops):
            tag = 2 * chunk + hop
            operations += [_send(peer, came, size, tag) for peer in peers]
            operations += [_recv(peer, size, tag) for peer in peers]
            came = tuple(f"{tag}.{peer}" for peer in peers)
    return tuple(operations)


def _send(to: int, reads: tuple[str, ...], num_bytes: int, tag: int) -> p.Send:
    return p.Send(reads=reads, writes=(), layer=0, micro_batch=0, to=to, tag=tag, num_bytes=num_bytes)


def _recv(source: int, num_bytes: int, tag: int) -> p.Recv:
    return p.Recv(
        reads=(),
        writes=(f"{tag}.{source}",),
        layer=0,
        micro_batch=0,
        source=source,
        tag=tag,
        num_bytes=num_bytes,
        shape=(num_bytes,),
        dtype="int8",
    )


def comparisons() -> tuple[Comparison, ...]:
    """Eight rows."""
    ways: tuple[Way, ...] = ("dispatch", "combine")
    return tuple(
        Comparison(f"{way} over {ranks} GPUs", "GB/s", MEASURED[ranks][way], exchange(ranks // GPUS, way))
        for ranks in MEASURED
        for way in ways
    )
