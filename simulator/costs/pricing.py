"""Pricing: the seconds of every operation of a program on the devices of a cluster, from their profiles.

An operation is its kernels one after another. Every distinct kernel is predicted once, all of a device type's in one
call. A kernel is not over before the host could issue the next: an operation takes at least its number of kernels ×
``host_launch_s``, and what that adds is counted as launch. Inside a node, measured send/receive figures of the
profile replace the cluster file's link, and measured collective curves the closed forms, where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulator.cluster import Cluster, Node
from simulator.costs.collective_cost import InNode
from simulator.costs.cost import Prediction, predict
from simulator.costs.issue import with_issue
from simulator.costs.work import kernels_of
from simulator.errors import ProfileError
from simulator.kernel import ComputeKernel, GroupCollective, memory_bytes
from simulator.profile import Correction, Profile
from simulator.program import Collective, Operation, Program, Recv, Send

TRANSFERS = (Send, Recv, Collective)
Seconds = npt.NDArray[np.float64]
Quantile = Literal["median", "p05", "p95"]
Predict = Callable[[Sequence[ComputeKernel], Profile], Prediction]


@dataclass(frozen=True, slots=True)
class Prices:
    """Per rank, an entry an operation: seconds, bytes of device memory moved; and seconds of launch a rank.
    ``kernels_s``: seconds without the issue of the transfers before an operation (``issue.py``)."""

    durations_s: tuple[Seconds, ...]
    moved_bytes: tuple[Seconds, ...]
    launch_s: tuple[float, ...]
    kernels_s: tuple[Seconds, ...]


def price(
    program: Program,
    cluster: Cluster,
    profiles: Mapping[str, Profile],
    quantile: Quantile = "median",
    *,
    predicted: Predict = predict,
) -> Prices:
    """Every operation's price on its rank's device; ProfileError names a device without profile or a kernel without
    measurements. ``predicted``: ``predict``, or one that remembers."""
    ranks_of: dict[str, list[int]] = {}
    places = cluster.rank_nodes()
    for rank, operations in enumerate(program.ranks):
        if operations:
            ranks_of.setdefault(places[rank][2].gpu, []).append(rank)
    rows: dict[int, tuple[Seconds, Seconds, float]] = {}
    for gpu, ranks in ranks_of.items():
        lists = [program.ranks[rank] for rank in ranks]
        priced = _price_device(lists, program.dtype, profile_of(gpu, profiles), quantile, predicted)
        rows.update(zip(ranks, priced, strict=True))
    nothing = (np.empty(0), np.empty(0), 0.0)
    columns = [rows.get(rank, nothing) for rank in range(len(program.ranks))]
    kernels_s = tuple(row[0] for row in columns)
    durations_s = with_issue(program, cluster, profiles, kernels_s)
    return Prices(durations_s, tuple(row[1] for row in columns), tuple(row[2] for row in columns), kernels_s)


def profile_of(gpu: str, profiles: Mapping[str, Profile]) -> Profile:
    """The profile of a device type, or ProfileError naming those there are."""
    if gpu not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise ProfileError(f"no profile for {gpu!r}; profiles: {known}; calibrate that device or import its tables")
    return profiles[gpu]


def _price_device(
    lists: Sequence[Sequence[Operation]], dtype: str, profile: Profile, quantile: Quantile, predicted: Predict
) -> list[tuple[Seconds, Seconds, float]]:
    """(seconds, bytes moved, launch seconds) of ranks of one device type: distinct kernel sequences priced once."""
    learned = {correction.operation: correction for correction in profile.corrections}
    rows: dict[tuple[str, tuple[ComputeKernel, ...]], int] = {("", ()): 0}
    free = () if learned else TRANSFERS  # most of a program

    def row(operation: Operation) -> int:
        kind = type(operation).__name__ if learned else ""
        return rows.setdefault((kind if kind in learned else "", kernels_of(operation, dtype)), len(rows))

    row_of = [
        np.array([0 if isinstance(one, free) else row(one) for one in operations], dtype=np.int64)
        for operations in lists
    ]
    kernels = list(dict.fromkeys(kernel for _, sequence in rows for kernel in sequence))
    number = {kernel: index for index, kernel in enumerate(kernels)}
    prediction = predicted(kernels, profile)
    seconds = _seconds(prediction, quantile)
    middle = _seconds(prediction, "median") if learned else seconds
    device = np.array(
        [
            _corrected(
                learned.get(kind),
                sum(middle[number[kernel]] for kernel in sequence),
                sum(seconds[number[kernel]] for kernel in sequence),
                quantile,
            )
            for kind, sequence in rows
        ]
    )
    issued = np.array([len(sequence) * profile.host_launch_s for _, sequence in rows])
    moved = np.array([float(sum(memory_bytes(kernel) for kernel in sequence)) for _, sequence in rows])
    total = np.maximum(device, issued)
    return [(total[index], moved[index], float((total - device)[index].sum())) for index in row_of]


def _corrected(learned: Correction | None, median_s: float, quantile_s: float, quantile: Quantile) -> float:
    """A learned class has its own interval around its corrected median; others keep the kernels'."""
    if learned is None or median_s == 0:
        return quantile_s
    return median_s * learned.factor(median_s, quantile)


def _seconds(prediction: Prediction, quantile: Quantile) -> list[float]:
    found: list[float] = {"median": prediction.seconds, "p05": prediction.p05_s, "p95": prediction.p95_s}[
        quantile
    ].tolist()
    return found


def measured_collectives(profiles: Mapping[str, Profile], quantile: Quantile = "median") -> InNode:
    """``in_node`` from the profiles' curves; None where a profile has no curve for that kind and GPU count. Groups that
    are alike ask once."""

    @cache
    def seconds(gpu: str, kind: str, num_bytes: float, gpus: int) -> float | None:
        profile = profile_of(gpu, profiles)
        try:
            prediction = predict([GroupCollective(kind, round(num_bytes), gpus)], profile)
        except ProfileError:
            return None  # the closed form over the cluster's link takes its place
        return float({"median": prediction.seconds, "p05": prediction.p05_s, "p95": prediction.p95_s}[quantile][0])

    return seconds


def as_measured(cluster: Cluster, profiles: Mapping[str, Profile]) -> Cluster:
    """The cluster with each node's link as its device's profile measured it, where it did."""
    nodes = tuple(_node_as_measured(node, profiles.get(node.gpu)) for node in cluster.nodes)
    return cluster.model_copy(update={"nodes": nodes})


def _node_as_measured(node: Node, profile: Profile | None) -> Node:
    """Point-to-point bandwidth is a port's (switch), a pair's (pairwise: a port has gpus−1 of them) or the bus's."""
    if profile is None or profile.send_recv is None:
        return node
    measured = profile.send_recv
    pairs = node.gpus - 1 if node.link.kind == "pairwise" else 1
    link = {
        "bandwidth_bytes_per_s": measured.bandwidth_bytes_per_s * max(pairs, 1),
        "latency_s": measured.latency_s,
        "source": measured.source,
    }
    return node.model_copy(update={"link": node.link.model_copy(update=link)})
