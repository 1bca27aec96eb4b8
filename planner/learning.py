"""Learning: what runs teach a profile. Residuals are refitted and intervals re-set from measured operations.

For every operation class, log(measured / predicted) of the operations that ran is fitted by a line in log predicted
seconds (a constant with few observations), shrunk towards the profile by ``PRIOR_ROWS`` rows of "no correction"; the
interval is the 5th and 95th percentile of what the line leaves. Corrections are kept apart from the calibrated models,
so that a profile always says what was measured alone and what was learned in company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import numpy.typing as npt

from planner.execution import inputs, programs
from simulator.allocation import Allocation
from simulator.cluster import Cluster
from simulator.errors import SpecError
from simulator.measurement import MeasuredStep, Measurement
from simulator.profile import Correction, Profile
from simulator.program import Collective, Program, Recv, Send
from simulator.simulation.engine import simulate
from simulator.simulation.timeline import Timeline
from simulator.units import PICOSECONDS_PER_S

Array = npt.NDArray[np.float64]
PRIOR_ROWS = 8.0
LATENCY_FACTORS = (1.0, 0.5, 0.7, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
MOST_RUNS = 25  # simulated per factor
Run = tuple[Program, float]
"""A program and the median seconds it took."""
LINE_ROWS = 30  # fewer observations, or less than a factor 4 of spread: a constant
LINE_SPREAD_LOG = float(np.log(4.0))


def learn(profile: Profile, allocation: Allocation, measurements: Sequence[Measurement]) -> Profile:
    """``profile`` with corrections from ``measurements`` of ``allocation``; SpecError if they do not belong to it."""
    observed: dict[str, list[tuple[float, float]]] = {}
    runs: list[Run] = []
    found = inputs(allocation)
    for measurement in measurements:
        if measurement.question is None:
            raise SpecError(
                "measurement: question is missing, so the programs that ran are unknown; use plan run's file"
            )
        made = programs(allocation, found, measurement.question)
        for index, steps in _by_index(measurement).items():
            timeline = simulate(made[index], found.cluster, {profile.gpu.name: profile})
            observe(timeline, steps, observed)
            runs.append((made[index], median(step.duration_s for step in steps)))
    return taught(profile, found.cluster, observed, runs)


def taught(
    profile: Profile, cluster: Cluster, observed: Mapping[str, Sequence[tuple[float, float]]], runs: Sequence[Run]
) -> Profile:
    """The best at these runs' steps of: the profile as it is, with transfers refitted, with operations refitted too."""
    candidates = [
        profile,
        with_transfers(profile, cluster, runs),
        with_transfers(with_corrections(profile, observed), cluster, runs),
    ]
    return min(candidates, key=lambda candidate: step_error(candidate, cluster, runs))


def step_error(profile: Profile, cluster: Cluster, runs: Sequence[Run]) -> float:
    """Median |log(predicted/measured)| of a phase's steps, mean over phases."""
    errors: dict[str, list[float]] = {}
    for program, measured_s in runs:
        predicted_s = simulate(program, cluster, {profile.gpu.name: profile}).duration_s
        errors.setdefault(program.step.phase, []).append(abs(float(np.log(predicted_s / measured_s))))
    return float(np.mean([median(values) for values in errors.values()]))


def with_transfers(profile: Profile, cluster: Cluster, runs: Sequence[Run]) -> Profile:
    """Latencies of collectives and of messages scaled so that the steps come out: the factors of least error, one
    after the other, twice."""
    if profile.send_recv is None:
        return profile
    chosen = runs[:: max(1, -(-len(runs) // MOST_RUNS))]
    collectives = messages = 1.0
    for _ in range(2):
        collectives = min(
            LATENCY_FACTORS, key=lambda f: step_error(scaled_transfers(profile, f, messages), cluster, chosen)
        )
        messages = min(
            LATENCY_FACTORS, key=lambda f: step_error(scaled_transfers(profile, collectives, f), cluster, chosen)
        )
    return scaled_transfers(profile, collectives, messages)


def scaled_transfers(profile: Profile, collectives: float, messages: float) -> Profile:
    """The latency part (a collective's smallest time, a message's α) times a factor; bandwidths stay."""
    assert profile.send_recv is not None
    message = profile.send_recv.model_copy(update={"latency_s": profile.send_recv.latency_s * messages})
    curves = tuple(
        curve.model_copy(update={"seconds": tuple(s + (collectives - 1.0) * min(curve.seconds) for s in curve.seconds)})
        for curve in profile.collectives
    )
    host = profile.host
    if host is not None and host.transfer_latency_s is not None:
        host = host.model_copy(update={"transfer_latency_s": host.transfer_latency_s * messages})
    return profile.model_copy(update={"send_recv": message, "collectives": curves, "host": host})


def with_corrections(profile: Profile, observed: Mapping[str, Sequence[tuple[float, float]]]) -> Profile:
    """``observed``: operation class → (predicted, measured) seconds. Corrections add to those already there."""
    earlier = {one.operation: one for one in profile.corrections}
    for kind, rows in observed.items():
        pairs = np.array([(a, b) for a, b in rows if a > 0 and b > 0], dtype=np.float64).reshape(-1, 2)
        if len(pairs):
            earlier[kind] = _combined(earlier.get(kind), fit(kind, pairs[:, 0], pairs[:, 1]))
    return profile.model_copy(update={"corrections": tuple(sorted(earlier.values(), key=lambda one: one.operation))})


def fit(kind: str, predicted_s: Array, measured_s: Array) -> Correction:
    """A line of log(measured/predicted) over log predicted seconds, robust to stragglers (trimmed once)."""
    x, y = np.log(predicted_s), np.log(measured_s / predicted_s)
    keep = np.abs(y - np.median(y)) <= 3.0 * max(float(np.median(np.abs(y - np.median(y)))), 0.02) * 1.4826
    shrink = keep.sum() / (keep.sum() + PRIOR_ROWS)
    slope, center = 0.0, float(np.median(x[keep]))
    if keep.sum() >= LINE_ROWS and np.ptp(x[keep]) >= LINE_SPREAD_LOG:
        slope = float(np.clip(np.polyfit(x[keep] - center, y[keep], 1)[0] * shrink, -0.5, 0.5))
    offset = float(np.median(y[keep] - slope * (x[keep] - center)) * shrink)
    left = y - offset - slope * (x - center)
    low, high = np.percentile(left, [5, 95])
    return Correction(
        operation=kind,
        log_offset=offset,
        log_slope=slope,
        center_s=float(np.exp(center)),
        low_s=float(predicted_s.min()),
        high_s=float(predicted_s.max()),
        log_low=min(float(low), 0.0),
        log_high=max(float(high), 0.0),
        num_rows=len(x),
    )


def _combined(before: Correction | None, now: Correction) -> Correction:
    """A correction of corrected predictions: the offsets add, the newer line's slope and interval hold."""
    if before is None:
        return now
    return now.model_copy(
        update={
            "log_offset": before.log_offset + now.log_offset,
            "log_slope": before.log_slope + now.log_slope,
            "num_rows": before.num_rows + now.num_rows,
        }
    )


def _by_index(measurement: Measurement) -> dict[int, list[MeasuredStep]]:
    found: dict[int, list[MeasuredStep]] = {}
    for step in measurement.steps:
        found.setdefault(step.index, []).append(step)
    return found


def observe(timeline: Timeline, steps: Sequence[MeasuredStep], observed: dict[str, list[tuple[float, float]]]) -> None:
    """Every compute operation's predicted and median measured seconds."""
    program: Program = timeline.program
    for rank, operations in enumerate(program.ranks):
        spans = [next(r.spans for r in step.ranks if r.rank == rank) for step in steps] if operations else []
        for number, operation in enumerate(operations):
            if isinstance(operation, Send | Recv | Collective):
                continue
            predicted = int(timeline.end_ps[rank][number] - timeline.start_ps[rank][number]) / PICOSECONDS_PER_S
            measured = float(np.median([row[number][1] - row[number][0] for row in spans]))
            observed.setdefault(type(operation).__name__, []).append((predicted, measured))
