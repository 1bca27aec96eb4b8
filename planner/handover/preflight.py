"""Pre-flight check of one node: is this the plan, are these its inputs, are these the GPUs it was made for?

    python -m planner.handover.preflight allocation.json --digest SHA256 --nodes 5 --world 40 --node 3

Exit 0: go. Exit 2 and one line: what differs, so that a job stops before 40 processes meet a wrong world.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from planner.execution import inputs
from simulator.allocation import Allocation, digest
from simulator.cluster import Cluster, Gpu, Node
from simulator.errors import AttnplanError, SpecError
from simulator.formats.files import load

LEAST_MEMORY_SHARE = 0.9  # of the planned bytes; drivers and ECC keep some


def check(path: Path, *, expected: str, num_nodes: int, world_size: int, number: int) -> Allocation:
    """The plan and its inputs are those that were launched, and the numbers agree. SpecError says what differs."""
    allocation = load(path, Allocation)
    if digest(allocation) != expected:
        raise SpecError(
            f"{path}: sha256 {digest(allocation)[:12]}… is not the launched plan's {expected[:12]}…; copy it"
        )
    cluster = inputs(allocation).cluster
    hosts = sum(node.count for node in cluster.nodes)
    if (num_nodes, world_size) != (hosts, cluster.num_ranks):
        raise SpecError(
            f"{path}: {num_nodes} nodes and {world_size} ranks were started; "
            f"the plan has {hosts} and {cluster.num_ranks}"
        )
    if not 0 <= number < hosts:
        raise SpecError(f"--node {number}: the plan numbers its nodes 0 to {hosts - 1}")
    return allocation


def node_of(cluster: Cluster, number: int) -> Node:
    """The node with this number."""
    return next(node for at, _, node in cluster.rank_nodes() if at == number)


def check_devices(node: Node, gpu: Gpu, devices: Sequence[tuple[str, int]]) -> None:
    """``devices``: (name, memory bytes) of every GPU the processes will see. SpecError if they are not the plan's."""
    if len(devices) < node.gpus:
        raise SpecError(f"this node shows {len(devices)} GPUs; the plan has {node.gpus} × {gpu.name} here")
    for index, (name, memory_bytes) in enumerate(devices[: node.gpus]):
        if not same_type(gpu.name, name) or memory_bytes < LEAST_MEMORY_SHARE * gpu.memory_bytes:
            raise SpecError(f"GPU {index} is {name} with {memory_bytes / 1e9:.0f} GB; the plan has {gpu.name} here")


def same_type(planned: str, shown: str) -> bool:
    """``A100-SXM4-80GB`` and ``NVIDIA A100-SXM4-80GB``, ``H100-SXM`` and ``NVIDIA H100 80GB HBM3``: the chip's name."""
    return planned.split("-")[0].upper() in shown.upper().replace("-", " ").split()


def visible_devices() -> list[tuple[str, int]]:
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [(device.name, device.total_memory) for device in found]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="planner.handover.preflight", description="check one node before a plan runs on it"
    )
    parser.add_argument("allocation", type=Path)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--node", type=int, required=True)
    arguments = parser.parse_args(argv)
    try:
        allocation = check(
            arguments.allocation,
            expected=arguments.digest,
            num_nodes=arguments.nodes,
            world_size=arguments.world,
            number=arguments.node,
        )
        cluster = inputs(allocation).cluster
        node = node_of(cluster, arguments.node)
        check_devices(node, cluster.gpu_named(node.gpu), visible_devices())
    except AttnplanError as error:
        print(f"preflight, node {arguments.node}: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"preflight, node {arguments.node}: {node.gpus} × {node.gpu}, plan {arguments.digest[:12]}: go", file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
