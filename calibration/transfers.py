"""Fits that need no physics of tiles: memory-bound kernels, collective curves, point to point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.rows import TimedRow
from simulator.cluster import Gpu
from simulator.kernel import GroupCollective, Memory
from simulator.profile import CollectiveCurve, MemoryCost, SendRecv, Tag

ASSUMED_LAUNCH_S = 3e-6  # an element-wise CUDA kernel back to back; AIConfigurator's systems files, assumed
ASSUMED_BANDWIDTH_SHARE = 0.8  # of the datasheet's; the same source
MIN_LOG_ERROR = 0.05


def memory_costs(rows: Sequence[TimedRow], gpu: Gpu) -> tuple[MemoryCost, ...]:
    """launch + bytes/bandwidth for every kind with two sizes or more, and a ``default`` over all of them."""
    timed: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if isinstance(row.kernel, Memory):
            point = (float(row.kernel.bytes_moved), row.seconds)
            timed.setdefault(row.kernel.kind, []).append(point)
            timed.setdefault("default", []).append(point)
    costs = [_line(kind, points, gpu) for kind, points in timed.items() if len({size for size, _ in points}) > 1]
    if any(cost.kind == "default" for cost in costs):
        return tuple(costs)
    assumed = MemoryCost(
        kind="default",
        launch_s=ASSUMED_LAUNCH_S,
        bytes_per_s=ASSUMED_BANDWIDTH_SHARE * gpu.memory_bandwidth_bytes_per_s,
        tag="assumed",
        source="3 µs launch and 80 % of the datasheet bandwidth, as AIConfigurator's systems files assume",
    )
    return (*costs, assumed)


def _line(kind: str, points: list[tuple[float, float]], gpu: Gpu) -> MemoryCost:
    """Least squares of relative errors: minimise Σ((a + b·bytes − t)/t)², a and b not negative."""
    size, seconds = np.array(points).T
    design = np.stack([1.0 / seconds, size / seconds], axis=1)
    launch, inverse = np.linalg.lstsq(design, np.ones(len(size)), rcond=None)[0]
    fastest = 1.0 / gpu.memory_bandwidth_bytes_per_s
    inverse = max(float(inverse), fastest)
    launch = max(float(np.median(seconds - inverse * size)) if launch < 0 else float(launch), 0.0)
    error = np.abs(np.log(seconds / np.maximum(launch + inverse * size, 1e-12)))
    return MemoryCost(
        kind=kind,
        launch_s=launch,
        bytes_per_s=1.0 / inverse,
        log_error=max(float(np.quantile(error, 0.9)), MIN_LOG_ERROR),
        tag="fitted",
        source=f"{len(points)} timed rows",
    )


def collective_curves(rows: Sequence[TimedRow], tag: Tag = "imported") -> tuple[CollectiveCurve, ...]:
    """One curve a kind and GPU count: sizes ascending, equal sizes averaged, leave-one-out error as interval."""
    timed: dict[tuple[str, int], dict[float, list[float]]] = {}
    sources: dict[tuple[str, int], str] = {}
    for row in rows:
        if isinstance(row.kernel, GroupCollective):
            key = (row.kernel.kind, row.kernel.gpus)
            timed.setdefault(key, {}).setdefault(float(row.kernel.num_bytes), []).append(row.seconds)
            sources.setdefault(key, row.source)
    curves = []
    for (kind, gpus), points in sorted(timed.items()):
        sizes = sorted(points)
        if len(sizes) < 2:
            continue
        seconds = [float(np.exp(np.mean(np.log(points[size])))) for size in sizes]
        error = max(leave_one_out_error(np.array(sizes), np.array(seconds)), MIN_LOG_ERROR)
        curves.append(
            CollectiveCurve.model_validate(
                {"kind": kind, "gpus": gpus, "bytes": sizes, "seconds": seconds, "log_error": error, "tag": tag,
                 "source": sources[kind, gpus]}
            )
        )  # fmt: skip
    return tuple(curves)


def leave_one_out_error(sizes: np.typing.NDArray[np.float64], seconds: np.typing.NDArray[np.float64]) -> float:
    """95th percentile of |log error| when each inner point is interpolated from its two neighbours."""
    if len(sizes) < 4:
        return 0.2
    x, y = np.log(sizes), np.log(seconds)
    share = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    guess = (1.0 - share) * y[:-2] + share * y[2:]
    return float(np.quantile(np.abs(y[1:-1] - guess), 0.95))


def send_recv(curves: Sequence[CollectiveCurve]) -> SendRecv | None:
    """From two GPUs' all-gather of S bytes, in which each sends S/2: t = latency + (S/2)/bandwidth."""
    pair = [curve for curve in curves if curve.kind == "all_gather" and curve.gpus == 2]
    if not pair:
        return None
    sizes, seconds = np.array(pair[0].bytes), np.array(pair[0].seconds)
    latency = float(seconds[0])
    large = sizes >= sizes[-1] / 16.0
    bandwidth = float(np.median(sizes[large] / 2.0 / np.maximum(seconds[large] - latency, 1e-9)))
    return SendRecv(
        latency_s=latency,
        bandwidth_bytes_per_s=bandwidth,
        tag="fitted",
        source="all_gather on 2 GPUs: each sends half of the output",
    )
