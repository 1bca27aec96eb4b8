"""Cluster: nodes, their GPUs, and the links between them, as a file.

What it models: GPU types (peak rates, memory), the link inside a node (NVSwitch, pairwise NVLink,
PCIe or shared memory), NICs, rails, and a leaf-spine fabric with oversubscription. Nodes may differ.
What it ignores: routing tables, NUMA placement, storage. Ranks are numbered node by node.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from simulator.formats.files import Name, Record

MAX_RANKS = 100_000


class Gpu(Record):
    """One device type. Datasheet peaks, dense; ``cpu`` devices are cores shared by ranks."""

    name: str
    kind: Literal["gpu", "cpu"] = "gpu"
    compute_flop_per_s: float = Field(gt=0, description="dense bf16 peak (fp32 on a CPU core), FLOP/s")
    memory_bandwidth_bytes_per_s: float = Field(gt=0)
    memory_bytes: int = Field(gt=0)
    num_sms: int = Field(gt=0, description="streaming multiprocessors; 1 for a CPU core")
    power_w: float | None = Field(
        default=None, gt=0, description="the board's limit (TDP), watts; None: as its datasheet says, if we know it"
    )
    source: str

    @model_serializer(mode="wrap")
    def _known(self, as_usual: SerializerFunctionWrapHandler) -> dict[str, object]:
        """A limit that is not stated is not written: digests of files from before hold."""
        found: dict[str, object] = as_usual(self)
        return {name: value for name, value in found.items() if name != "power_w" or value is not None}


class Link(Record):
    """One direction of one link."""

    bandwidth_bytes_per_s: float = Field(gt=0)
    latency_s: float = Field(ge=0)
    source: str = "assumed"


class NodeLink(Link):
    """The link between GPUs of one node: each GPU has this much each way.

    ``switch``: any pair at full rate, each GPU's port shared (NVSwitch). ``pairwise``: a dedicated link
    between every pair, of bandwidth/(gpus−1). ``pcie``/``shared_memory``: all pairs share one bus.
    """

    kind: Literal["switch", "pairwise", "pcie", "shared_memory"]
    reduces: bool = Field(default=False, description="NVLink SHARP: the switch adds (NVSwitch 3 and later)")


class Nics(Link):
    """NICs of a node, each of this bandwidth each way. GPU i of a node uses NIC i·count//gpus."""

    count: int = Field(ge=1)


class Node(Record):
    """``count`` equal nodes."""

    count: int = Field(default=1, ge=1)
    gpu: str
    gpus: int = Field(ge=1)
    link: NodeLink
    nics: Nics | None = None
    cores: int | None = Field(default=None, ge=1, description="CPU worlds: cores the node's ranks share")
    pinned: bool = Field(default=False, description="CPU worlds: GPU i of the node stays on core i mod cores")
    slowdown: float = Field(default=1.0, ge=1.0, description="a straggler's factor on every compute kernel")


class Fabric(Record):
    """Leaf-spine: rail-optimised leaves (NIC i of each node on leaf i) or one leaf a group of nodes."""

    rails: bool = True
    nodes_per_leaf: int | None = Field(default=None, ge=1, description="None: every node under one leaf")
    oversubscription: float = Field(default=1.0, ge=1.0)
    latency_s: float = Field(default=2e-6, ge=0, description="switch hop")


class Cluster(Record):
    """A cluster file."""

    schema_version: Literal[1] = 1
    name: Name
    gpus: tuple[Gpu, ...]
    nodes: tuple[Node, ...] = Field(min_length=1)
    fabric: Fabric = Fabric()
    assumptions: tuple[str, ...] = ()
    source: str = "assumed"

    @model_validator(mode="after")
    def _names_known(self) -> Cluster:
        known = [gpu.name for gpu in self.gpus]
        if len(set(known)) != len(known):
            raise ValueError(f"gpus: a name appears twice in {', '.join(known)}")
        if self.num_ranks > MAX_RANKS:
            raise ValueError(f"{self.num_ranks} ranks; at most {MAX_RANKS} are accepted")
        for index, node in enumerate(self.nodes):
            if node.pinned and node.cores is None:
                raise ValueError(f"nodes[{index}].pinned: needs cores")
            if node.gpu not in known:
                raise ValueError(f"nodes[{index}].gpu: unknown {node.gpu!r}; known: {', '.join(known)}")
        if sum(node.count for node in self.nodes) > 1 and any(node.nics is None for node in self.nodes):
            raise ValueError("several nodes need nics in every node: state count and bandwidth_bytes_per_s")
        return self

    @property
    def num_ranks(self) -> int:
        return sum(node.count * node.gpus for node in self.nodes)

    def rank_nodes(self) -> tuple[tuple[int, int, Node], ...]:
        """For every rank: (node number, index inside the node, its Node)."""
        rows: list[tuple[int, int, Node]] = []
        number = 0
        for node in self.nodes:
            for _ in range(node.count):
                rows.extend((number, local, node) for local in range(node.gpus))
                number += 1
        return tuple(rows)

    def gpu_named(self, name: str) -> Gpu:
        return next(gpu for gpu in self.gpus if gpu.name == name)
