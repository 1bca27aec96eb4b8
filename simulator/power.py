"""Power: what a step's GPUs draw at most, and so its energy.

A GPU is taken to draw its board's limit (TDP) for as long as a step holds it, waiting or not: nobody measured less, and
boards do not draw more for long. So a joule here is an upper bound, tagged ``assumed``. What it ignores: hosts,
switches, cooling, and that an idle GPU draws a fraction.
"""

from __future__ import annotations

from collections.abc import Iterable

from simulator.cluster import Cluster, Gpu
from simulator.errors import SpecError

BOARD_LIMIT_W = {
    "A100-SXM4-80GB": 400.0,  # NVIDIA A100 80GB datasheet (SXM4), max thermal design power
    "H100-SXM": 700.0,  # NVIDIA H100 datasheet (SXM5), up to 700 W
    "H200-SXM": 700.0,  # NVIDIA H200 datasheet (SXM), up to 700 W
}
"""Of the GPUs that clusters ship with; a cluster file's ``power_w`` goes before."""


def power_w(gpu: Gpu) -> float | None:
    """A GPU's board limit in watts, if it is known."""
    return BOARD_LIMIT_W.get(gpu.name) if gpu.power_w is None else gpu.power_w


def rank_power_w(cluster: Cluster) -> tuple[float, ...]:
    """Every rank's, in watts. SpecError where a GPU's is unknown: energy is never taken to be 0."""
    limits = {gpu.name: power_w(gpu) for gpu in cluster.gpus}
    found = []
    for _, _, node in cluster.rank_nodes():
        limit = limits[node.gpu]
        if limit is None:
            raise SpecError(
                f"cluster {cluster.name}: gpus: {node.gpu}: no power_w, which energy needs; add its board's limit in "
                "watts, e.g. power_w: 400, or choose another objective"
            )
        found.append(limit)
    return tuple(found)


def drawn_w(cluster: Cluster, ranks: Iterable[int]) -> float | None:
    """What these ranks' GPUs draw at most, in watts; None where one's limit is unknown."""
    places = cluster.rank_nodes()
    limits = [power_w(cluster.gpu_named(places[rank][2].gpu)) for rank in ranks]
    known = [limit for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None
