"""Learning: what runs teach a profile, kept only as far as it predicts runs it was not taught by.

Three things may be learned, each in log space and shrunk towards nothing learned:

    operations   of every class, a line of log(measured / predicted) over log predicted seconds, from spans of ranks
                 that had a core (or GPU) of their own; its interval is what the line leaves
    transfers    factors on latencies of collectives and of messages, on the cost of issuing, and on the cores' capacity
    steps        the 5th and 95th percentile of what is left of log(measured / predicted) of single runs of whole steps,
                 and by how much it differs between two plans of one step, where errors that they share cancel

Which of the first two to keep is decided by leaving out one length after the other: a choice is fitted to the others
and judged on the one left out; what it misses there is the interval of whole steps. Corrections are kept apart from the
calibrated models, so that a profile always says what was measured alone and what was learned in company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np
import numpy.typing as npt

from calibration.corrections import with_corrections
from planner.execution import inputs, programs
from simulator.allocation import Allocation
from simulator.cluster import Cluster
from simulator.costs.pricing import price
from simulator.errors import SpecError
from simulator.measurement import MeasuredStep, Measurement
from simulator.profile import Profile
from simulator.program import Collective, Program, Recv, Send
from simulator.simulation.engine import simulate

Array = npt.NDArray[np.float64]
FACTORS = (0.5, 0.7, 1.4, 2.0, 2.8)
CAPACITY_FACTORS = (0.8, 0.9, 1.1)
TURN_FACTORS = (0.95, 1.05, 1.1, 1.2)
PENALTY = 0.005  # of mean |log error| a factor must win for every factor e it departs from 1
LEAST_GAIN = 0.02  # of the left-out error, relative: less is noise, and nothing is learned
MOST_RUNS = 16  # simulated for every factor
FEWEST_STEPS = 8  # below, whole steps' percentiles mean nothing


@dataclass(frozen=True, slots=True)
class Lesson:
    """A program that ran: the median seconds of its step, of every rank's operations (empty: not kept), and the seconds
    of every single run (empty: the median alone). ``question``: whose other answers it is compared with."""

    program: Program
    measured_s: float
    spans_s: Sequence[Sequence[float]]
    durations_s: Sequence[float] = ()
    question: str = ""

    @property
    def length(self) -> tuple[str, int]:
        """What is left out together: runs of one phase and context."""
        step = self.program.step
        return step.phase, max(group.total for group in step.batch)


def learn(profile: Profile, allocation: Allocation, measurements: Sequence[Measurement]) -> Profile:
    """``profile`` with what ``measurements`` of ``allocation`` teach; SpecError if they do not belong to it."""
    lessons: list[Lesson] = []
    found = inputs(allocation)
    for measurement in measurements:
        if measurement.question is None:
            raise SpecError(
                "measurement: question is missing, so the programs that ran are unknown; use plan run's file"
            )
        made = programs(allocation, found, measurement.question)
        lessons += [lesson(made[index], steps) for index, steps in _by_index(measurement).items()]
    return taught(profile, found.cluster, lessons)


def lesson(program: Program, steps: Sequence[MeasuredStep]) -> Lesson:
    """The medians of a program's repeats."""
    spans = [
        np.median([[b - a for a, b in rank.spans] for step in steps for rank in step.ranks if rank.rank == number], 0)
        if operations
        else np.empty(0)
        for number, operations in enumerate(program.ranks)
    ]
    durations = [step.duration_s for step in steps]
    return Lesson(program, median(durations), [row.tolist() for row in spans], durations)


Teach = Callable[[Profile, Cluster, Sequence[Lesson]], Profile]


def taught(profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> Profile:
    """The profile with what pays on lengths left out, and the interval of whole steps set by what these runs miss when
    others teach."""
    teach, errors = best_teaching(profile, cluster, lessons)
    return with_step_interval(teach(profile, cluster, lessons), lessons, errors)


def best_teaching(profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> tuple[Teach, Array]:
    """Which of nothing, operations, transfers or both predicts a left-out length best, and what it misses there;
    nothing if none clearly does."""
    found = {teach: left_out_errors(teach, profile, cluster, lessons) for teach in TEACHINGS}
    least = {teach: float(np.abs(errors).mean()) for teach, errors in found.items()}
    best = min(least, key=least.__getitem__)
    best = best if least[best] < (1 - LEAST_GAIN) * least[as_it_is] else as_it_is
    return best, found[best]


def left_out_errors(teach: Teach, profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> Array:
    """log(measured / predicted) of every lesson when those of other lengths teach; with a single length, its own."""
    errors = np.empty(len(lessons))
    for tokens in {one.length[1] for one in lessons}:
        left_out = [index for index, one in enumerate(lessons) if one.length[1] == tokens]
        others = [one for one in lessons if one.length[1] != tokens] or lessons
        errors[left_out] = log_errors(teach(profile, cluster, others), cluster, [lessons[index] for index in left_out])
    return errors


def log_errors(profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> Array:
    """log(measured / predicted) of every lesson's step."""
    profiles = {profile.gpu.name: profile}
    return np.array([np.log(one.measured_s / simulate(one.program, cluster, profiles).duration_s) for one in lessons])


def thinned(lessons: Sequence[Lesson]) -> Sequence[Lesson]:
    """At most ``MOST_RUNS`` of them, evenly."""
    return lessons[:: max(1, -(-len(lessons) // MOST_RUNS))]


def as_it_is(profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> Profile:
    return profile


def with_operations(profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> Profile:
    """Corrections of the operation classes that ran."""
    return with_corrections(profile, observed(profile, cluster, lessons))


def with_both(profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> Profile:
    return with_transfers(with_operations(profile, cluster, lessons), cluster, lessons)


def with_transfers(profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> Profile:
    """Factors on what transfers and shared cores cost so that the steps come out, one after the other."""
    if profile.send_recv is None and profile.host is None:
        return profile
    chosen = thinned(lessons)
    for scale, factors in SCALES:
        profile = _best_scaled(profile, scale, factors, cluster, chosen)
    return profile


TEACHINGS: tuple[Teach, ...] = (as_it_is, with_operations, with_transfers, with_both)


def _best_scaled(
    profile: Profile, scale: Scale, factors: Sequence[float], cluster: Cluster, lessons: Sequence[Lesson]
) -> Profile:
    """The profile, or scaled by the factor that lowers the steps' error most."""
    best, least = profile, float(np.abs(log_errors(profile, cluster, lessons)).mean())
    for factor in factors:
        scaled = scale(profile, factor)
        if scaled is profile:
            return profile
        error = float(np.abs(log_errors(scaled, cluster, lessons)).mean()) + PENALTY * abs(float(np.log(factor)))
        if error < least:
            best, least = scaled, error
    return best


Scale = Callable[[Profile, float], Profile]


def scaled_collectives(profile: Profile, factor: float) -> Profile:
    """The latency part of every curve, its smallest time, times a factor; bandwidths stay."""
    curves = tuple(
        curve.model_copy(update={"seconds": tuple(s + (factor - 1.0) * min(curve.seconds) for s in curve.seconds)})
        for curve in profile.collectives
    )
    return profile.model_copy(update={"collectives": curves}) if curves else profile


def scaled_messages(profile: Profile, factor: float) -> Profile:
    """A message's latency times a factor; bandwidths stay."""
    if profile.send_recv is None:
        return profile
    message = profile.send_recv.model_copy(update={"latency_s": profile.send_recv.latency_s * factor})
    host = profile.host
    if host is not None and host.transfer_latency_s is not None:
        host = host.model_copy(update={"transfer_latency_s": host.transfer_latency_s * factor})
    return profile.model_copy(update={"send_recv": message, "host": host})


def scaled_issue(profile: Profile, factor: float) -> Profile:
    """The computing threads' costs of a transfer times a factor."""
    host = profile.host
    if host is None or not host.transfer_issue_s:
        return profile
    changed = {
        "transfer_issue_s": host.transfer_issue_s * factor,
        "send_issue_s_per_byte": host.send_issue_s_per_byte * factor,
        "receive_s": host.receive_s * factor,
        "receive_s_per_byte": host.receive_s_per_byte * factor,
        "collective_message_s": host.collective_message_s and host.collective_message_s * factor,
        "collective_s_per_byte": host.collective_s_per_byte * factor,
    }
    return profile.model_copy(update={"host": host.model_copy(update=changed)})


def scaled_capacity(profile: Profile, factor: float) -> Profile:
    """What a host's cores do together times a factor, at least one core's worth."""
    host = profile.host
    if host is None or host.core_capacity is None or host.core_capacity * factor < 1.0:
        return profile
    return profile.model_copy(update={"host": host.model_copy(update={"core_capacity": host.core_capacity * factor})})


def scaled_turns(profile: Profile, factor: float) -> Profile:
    """What ranks that take turns on a core need beyond their kernels' own time: (1 + share) times a factor, if
    anything shares."""
    host = profile.host
    if host is None or (1 + host.turn_share) * factor < 1.0:
        return profile
    return profile.model_copy(
        update={"host": host.model_copy(update={"turn_share": (1 + host.turn_share) * factor - 1})}
    )


SCALES: tuple[tuple[Scale, tuple[float, ...]], ...] = (
    (scaled_collectives, FACTORS),
    (scaled_messages, FACTORS),
    (scaled_issue, FACTORS),
    (scaled_capacity, CAPACITY_FACTORS),
    (scaled_turns, TURN_FACTORS),
)


def observed(profile: Profile, cluster: Cluster, lessons: Sequence[Lesson]) -> dict[str, list[tuple[float, float]]]:
    """Operation class → (predicted, measured) seconds of every compute operation, of runs whose ranks had a core each
    (of all runs if there is none): a span on a shared core is also others' time."""
    alone = [one for one in lessons if own_cores(one.program, cluster)] or lessons
    places = cluster.rank_nodes()
    found: dict[str, list[tuple[float, float]]] = {}
    for one in alone:
        prices = price(one.program, cluster, {profile.gpu.name: profile})
        for rank, (operations, spans) in enumerate(zip(one.program.ranks, one.spans_s, strict=False)):
            for operation, predicted_s, measured_s in zip(operations, prices.kernels_s[rank], spans, strict=False):
                if not isinstance(operation, Send | Recv | Collective):
                    pair = (float(predicted_s), measured_s / places[rank][2].slowdown)
                    found.setdefault(type(operation).__name__, []).append(pair)
    return found


def own_cores(program: Program, cluster: Cluster) -> bool:
    """Whether no node has more busy ranks than cores (GPUs are their own)."""
    busy: dict[int, int] = {}
    places = cluster.rank_nodes()
    for rank, operations in enumerate(program.ranks):
        if operations:
            busy[places[rank][0]] = busy.get(places[rank][0], 0) + 1
    cores = {node: spec.cores for node, _, spec in places}
    return all(cores[node] is None or count <= (cores[node] or 0) for node, count in busy.items())


def with_step_interval(profile: Profile, lessons: Sequence[Lesson], errors: Array) -> Profile:
    """The percentiles of what single runs of whole steps miss beside their medians' ``errors``, if there are enough
    steps, each counting alike; and of what the medians of two plans of one question miss differently."""
    if len(lessons) < FEWEST_STEPS:
        return profile
    quantiles = np.arange(0.05, 1.0, 0.1)
    left = [
        error + np.log(np.quantile(one.durations_s or [one.measured_s], quantiles) / one.measured_s)
        for one, error in zip(lessons, errors, strict=True)
    ]
    low, high = np.percentile(np.concatenate(left), [5, 95])
    found: dict[str, float | None] = {"step_log_low": min(float(low), 0.0), "step_log_high": max(float(high), 0.0)}
    return profile.model_copy(update=found | {"step_log_apart": apart(lessons, errors)})


def apart(lessons: Sequence[Lesson], errors: Array) -> float | None:
    """The 95th percentile, either way round, of the differences of ``errors`` of pairs of one question; None without
    enough of them."""
    questions: dict[tuple[str, tuple[str, int]], list[float]] = {}
    for one, error in zip(lessons, errors.tolist(), strict=True):
        questions.setdefault((one.question, one.length), []).append(error)
    pairs = [abs(a - b) for found in questions.values() for a, b in combinations(found, 2)]
    return float(np.percentile(pairs, 90)) if len(pairs) >= FEWEST_STEPS else None


def _by_index(measurement: Measurement) -> dict[int, list[MeasuredStep]]:
    found: dict[int, list[MeasuredStep]] = {}
    for step in measurement.steps:
        found.setdefault(step.index, []).append(step)
    return found
