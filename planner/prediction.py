"""Prediction: a program's timeline and the interval its step will take, 90 %.

What runs taught about whole steps is the interval where a profile has it; otherwise every kernel and collective is
taken at its own 5th or 95th percentile at once, which is too wide if their errors are independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from simulator.cluster import Cluster
from simulator.profile import Profile
from simulator.program import Program
from simulator.simulation.engine import simulate
from simulator.simulation.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Prediction:
    """A step as predicted: seconds from its first to its last operation."""

    timeline: Timeline
    p05_s: float
    p95_s: float

    @property
    def duration_s(self) -> float:
        return self.timeline.duration_s


def predict_step(program: Program, cluster: Cluster, profiles: Mapping[str, Profile]) -> Prediction:
    """The step of ``program`` on ``cluster``. Raises what ``simulate`` raises."""
    timeline = simulate(program, cluster, profiles)
    places = cluster.rank_nodes()
    used = {places[rank][2].gpu for rank, operations in enumerate(program.ranks) if operations}
    lows = [profiles[name].step_log_low for name in used if name in profiles]
    highs = [profiles[name].step_log_high for name in used if name in profiles]
    if lows and all(low is not None for low in lows) and all(high is not None for high in highs):
        low, high = min(low or 0.0 for low in lows), max(high or 0.0 for high in highs)
        return Prediction(timeline, timeline.duration_s * math.exp(low), timeline.duration_s * math.exp(high))
    p05_s, p95_s = (simulate(program, cluster, profiles, quantile=q).duration_s for q in ("p05", "p95"))
    return Prediction(timeline, min(p05_s, timeline.duration_s), max(p95_s, timeline.duration_s))
