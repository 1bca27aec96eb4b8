"""python -m benchmarks.two_levels [-o FILE]

All-reduce over two emulated hosts of two ranks: flat ring against two levels, predicted and measured, with links
between the hosts as fast as inside and ten times slower. Needs root. Rows: benchmarks/results/two_levels.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Literal

from benchmarks.campaign.places import BUS_BYTES_PER_S, cluster, host
from executor import world_timing
from executor.emulated_hosts import EmulatedHosts
from executor.supervisor import Supervisor
from simulator.cluster import Cluster
from simulator.costs.collective_cost import Call, collective_cost
from simulator.fabric.topology import Topology
from simulator.formats.files import write_atomically
from simulator.units import MiB

Algorithm = Literal["ring", "hierarchical"]
ALGORITHMS: tuple[Algorithm, ...] = ("ring", "hierarchical")
SIZES = (MiB, 4 * MiB, 16 * MiB)
RATIOS = (1, 10)


def measured_cluster(ratio: int, world: Supervisor) -> Cluster:
    """The cluster of ``ratio`` with the latencies of a message inside a host and between hosts as measured."""
    node = host(2, 1, BUS_BYTES_PER_S / ratio)
    inner_s, _ = world_timing.latency_and_bandwidth(world_timing.time_messages(world))
    outer_s, _ = world_timing.latency_and_bandwidth(world_timing.time_messages(world, pair=(0, 2)))
    assert node.nics is not None
    measured = node.model_copy(
        update={
            "link": node.link.model_copy(update={"latency_s": inner_s}),
            "nics": node.nics.model_copy(update={"latency_s": outer_s}),
        }
    )
    return cluster("measured", measured, measured)


def rows(ratio: int) -> list[dict[str, float | str]]:
    found: list[dict[str, float | str]] = []
    node = host(2, 1, BUS_BYTES_PER_S / ratio)
    with EmulatedHosts(cluster("hosts", node, node)) as hosts, Supervisor(4, seats=hosts.seats) as world:
        topology = Topology(measured_cluster(ratio, world))
        for size in SIZES:
            row: dict[str, float | str] = {"ratio": ratio, "bytes": size}
            for algorithm in ALGORITHMS:
                (timed,) = world_timing.time_collective(world, "all_reduce", 4, (size,), algorithm)
                call = Call("all_reduce", algorithm, (0, 1, 2, 3), timed.kernel.num_bytes)
                row[f"{algorithm}_predicted_s"] = collective_cost(call, topology).seconds
                row[f"{algorithm}_measured_s"] = timed.seconds
            found.append(row)
            print(json.dumps(row))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/two_levels.json"))
    arguments = parser.parse_args()
    found = [row for ratio in RATIOS for row in rows(ratio)]
    write_atomically(arguments.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
