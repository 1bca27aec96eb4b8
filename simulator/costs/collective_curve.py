"""Collectives inside a node, from measured curves: log-log between points, a straight line beyond the last.

Between points a monotone cubic in log(bytes), log(seconds): it bends where latency gives way to bandwidth,
never overshoots, and is the straight log-log line where the points lie on one (Fritsch & Carlson 1980).
Between two measured GPU counts the seconds are interpolated in log(gpus); outside them nothing is guessed.
Beyond the largest size, seconds grow with the slope through the last three points (bandwidth; two alone carry a
single row's noise); below the smallest they are flat (latency).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.costs.physics import Array
from simulator.errors import ProfileError
from simulator.profile import CollectiveCurve, Profile


def curve_seconds(num_bytes: Array, curve: CollectiveCurve) -> Array:
    """Seconds on the curve's own GPU count."""
    sizes, seconds = np.array(curve.bytes), np.array(curve.seconds)
    inner = np.exp(monotone_cubic(np.log(np.clip(num_bytes, sizes[0], sizes[-1])), np.log(sizes), np.log(seconds)))
    first = max(len(sizes) - 3, 0)
    slope = max((seconds[-1] - seconds[first]) / (sizes[-1] - sizes[first]), 0.0)
    tail = seconds[-1] + slope * (num_bytes - sizes[-1])
    return np.asarray(np.where(num_bytes > sizes[-1], tail, inner))


def monotone_cubic(at: Array, x: Array, y: Array) -> Array:
    """Piecewise cubic Hermite through (x, y) with harmonic-mean slopes; ``at`` lies within ``x``."""
    width = np.diff(x)
    rise = np.diff(y) / width
    slope = np.empty(len(x))
    slope[0], slope[-1] = _end_slope(width, rise), _end_slope(width[::-1], rise[::-1])
    left, right = rise[:-1], rise[1:]
    turns = left * right <= 0.0
    first, second = 2.0 * width[1:] + width[:-1], width[1:] + 2.0 * width[:-1]
    safe_left, safe_right = np.where(turns, 1.0, left), np.where(turns, 1.0, right)
    slope[1:-1] = np.where(turns, 0.0, (first + second) / (first / safe_left + second / safe_right))
    piece = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(width) - 1)
    h = width[piece]
    t = (at - x[piece]) / h
    start = (1.0 + 2.0 * t) * (1.0 - t) ** 2 * y[piece] + t * (1.0 - t) ** 2 * h * slope[piece]
    end = t**2 * (3.0 - 2.0 * t) * y[piece + 1] + t**2 * (t - 1.0) * h * slope[piece + 1]
    return np.asarray(start + end)


def _end_slope(width: Array, rise: Array) -> float:
    """Three-point slope at an end, kept from turning or overshooting; the chord when there is only one."""
    if len(rise) == 1:
        return float(rise[0])
    slope = ((2.0 * width[0] + width[1]) * rise[0] - width[0] * rise[1]) / (width[0] + width[1])
    if slope * rise[0] <= 0.0:
        return 0.0
    if rise[0] * rise[1] <= 0.0 and abs(slope) > 3.0 * abs(rise[0]):
        return float(3.0 * rise[0])
    return float(slope)


def collective_seconds(
    kind: str, gpus: int, num_bytes: Array, profile: Profile
) -> tuple[Array, npt.NDArray[np.bool_], float, str]:
    """(seconds, inside, half-width of the 90 % interval in log seconds, tag) of one kind and GPU count."""
    curves = sorted((c for c in profile.collectives if c.kind == kind), key=lambda c: c.gpus)
    if gpus == 1:
        return np.zeros(len(num_bytes)), np.ones(len(num_bytes), dtype=np.bool_), 0.0, "measured"
    below = [curve for curve in curves if curve.gpus <= gpus]
    above = [curve for curve in curves if curve.gpus >= gpus]
    if not below or not above:
        have = ", ".join(f"{c.kind} on {c.gpus}" for c in profile.collectives) or "none"
        raise ProfileError(
            f"profile {profile.name}: no curve for {kind} on {gpus} GPUs of one node (it has: {have}); "
            "import NCCL measurements or run `plan calibrate` on such a node"
        )
    low, high = below[-1], above[0]
    if low.gpus == high.gpus:
        inside = (num_bytes >= low.bytes[0]) & (num_bytes <= low.bytes[-1])
        return curve_seconds(num_bytes, low), inside, low.log_error, low.tag
    share = np.log(gpus / low.gpus) / np.log(high.gpus / low.gpus)
    mixed = (1.0 - share) * np.log(curve_seconds(num_bytes, low)) + share * np.log(curve_seconds(num_bytes, high))
    return np.exp(mixed), np.zeros(len(num_bytes), dtype=np.bool_), low.log_error + high.log_error, "assumed"
