"""Collectives inside a node, from measured curves: log-log between points, a straight line beyond the last.

Between two measured GPU counts the seconds are interpolated in log(gpus); outside them nothing is guessed.
Beyond the largest size, seconds grow with the last two points' slope (bandwidth); below the smallest they
are flat (latency).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.errors import ProfileError
from simulator.physics import Array
from simulator.profile import CollectiveCurve, Profile


def curve_seconds(num_bytes: Array, curve: CollectiveCurve) -> Array:
    """Seconds on the curve's own GPU count."""
    sizes, seconds = np.array(curve.bytes), np.array(curve.seconds)
    inner = np.exp(np.interp(np.log(np.maximum(num_bytes, 1.0)), np.log(sizes), np.log(seconds)))
    slope = max((seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]), 0.0)
    tail = seconds[-1] + slope * (num_bytes - sizes[-1])
    return np.asarray(np.where(num_bytes > sizes[-1], tail, inner))


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
