"""``plan cluster import topo``: a cluster file from what ``nvidia-smi topo -m`` printed."""

from __future__ import annotations

import argparse

from planner.commands.output import say, table, to_terminal
from simulator import presets
from simulator.cluster import Cluster
from simulator.errors import SpecError
from simulator.formats.files import to_yaml, write_atomically
from simulator.formats.topo import TopoOptions, from_topo
from simulator.units import format_bytes

BITS_PER_BYTE = 8
BITS_PER_GBIT = 1e9
OPTIONS = {  # the importer names its fields; a user of the command line has options
    "nic_bandwidth_bytes_per_s (25e9: HDR)": "--nic-gbit-s (200: HDR, 400: NDR)",
    "pcie_bandwidth_bytes_per_s (25e9: gen 4 x16)": "--pcie-gbyte-s (25: gen 4 x16)",
    "nics_per_node": "--nics-per-node",
    "num_nodes": "--nodes",
    "nic_bandwidth_bytes_per_s": "--nic-gbit-s",
    "pcie_bandwidth_bytes_per_s": "--pcie-gbyte-s",
}


def import_topo(arguments: argparse.Namespace) -> int:
    try:
        cluster = from_topo(arguments.file, options(arguments))
    except SpecError as error:
        raise SpecError(with_options(str(error))) from error
    comment = f"Made by plan cluster import topo. {cluster.source}."
    write_atomically(arguments.output, to_yaml(cluster, comment=comment))
    show(cluster)
    say(f"wrote {arguments.output}")
    return 0


def options(arguments: argparse.Namespace) -> TopoOptions:
    """What the matrix does not tell, in SI units. ``--gpu`` must be a type that a shipped cluster knows."""
    known = presets.gpus()
    if arguments.gpu not in known:
        raise SpecError(
            f"--gpu: unknown {arguments.gpu!r}; known: {', '.join(known)}; for another type import with one of "
            "these, then write the type's datasheet under gpus in the file"
        )
    nic = arguments.nic_gbit_s
    pcie = arguments.pcie_gbyte_s
    return TopoOptions(
        known[arguments.gpu],
        num_nodes=arguments.nodes,
        nic_bandwidth_bytes_per_s=None if nic is None else nic * BITS_PER_GBIT / BITS_PER_BYTE,
        nics_per_node=arguments.nics_per_node,
        pcie_bandwidth_bytes_per_s=None if pcie is None else pcie * 1e9,
    )


def with_options(message: str) -> str:
    """A message of the importer that asks for options instead of fields."""
    for field, option in OPTIONS.items():
        message = message.replace(field, option)
    return message


def show(cluster: Cluster) -> None:
    rows = [
        (
            str(node.count),
            f"{node.gpus} × {node.gpu}",
            f"{node.link.kind}, {format_bytes(node.link.bandwidth_bytes_per_s)}/s each way",
            "none"
            if node.nics is None
            else f"{node.nics.count} × {format_bytes(node.nics.bandwidth_bytes_per_s)}/s each way",
        )
        for node in cluster.nodes
    ]
    columns = ("nodes", "GPUs", "link between GPUs", "NICs")
    caption = "; ".join(f"assumed: {text}" for text in cluster.assumptions)
    to_terminal(table(f"Cluster {cluster.name}", columns, rows, caption))
