"""Validation: predicted against measured, per step and per operation class, on the very programs that ran.

Both clocks time the same operations, so they meet by (rank, operation index). A step's error is of its duration (last
rank's start to last rank's end); an operation class's is of the seconds all ranks spent in it. Waiting is what ranks
spend in transfers: measured, the time blocked on values; predicted, the time with a transfer in flight and no compute,
and what handing over and taking in values costs the rank's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from planner.execution import Inputs, inputs, programs
from planner.prediction import Prediction, predict_step
from simulator.allocation import Allocation, digest
from simulator.costs.pricing import Prices, price
from simulator.errors import SpecError
from simulator.measurement import MeasuredStep, Measurement
from simulator.program import Collective, Program, Recv, Send
from simulator.simulation.timeline import Timeline, rank_times
from simulator.units import PICOSECONDS_PER_S


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step: seconds. ``spread``: (slowest − fastest) / median over the repeats."""

    phase: str
    index: int
    predicted_s: float
    p05_s: float
    p95_s: float
    measured_s: float
    spread: float
    repeats: int

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1

    @property
    def inside(self) -> bool:
        return self.p05_s <= self.measured_s <= self.p95_s


@dataclass(frozen=True, slots=True)
class OperationRow:
    """All operations of one class in one phase: rank-seconds a step, summed over ranks, mean over steps."""

    phase: str
    kind: str
    count: int
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1 if self.measured_s else 0.0


@dataclass(frozen=True, slots=True)
class Validation:
    """What one measurement says of one allocation. ``timelines[k]``: step k as predicted."""

    steps: tuple[StepRow, ...]
    operations: tuple[OperationRow, ...]
    timelines: tuple[Timeline, ...]
    measurement: Measurement

    def median_error(self, phase: str) -> float:
        """Median absolute step error of a phase; nan if it has no step."""
        errors = [abs(row.error) for row in self.steps if row.phase == phase]
        return median(errors) if errors else float("nan")


def validate(allocation: Allocation, measurement: Measurement) -> Validation:
    """Lower and simulate what ran, and line it up with the measurement. SpecError if they do not belong together."""
    if measurement.question is None:
        raise SpecError("measurement: question is missing, so the programs that ran are unknown; use plan run's file")
    if measurement.allocation != digest(allocation):
        raise SpecError(f"measurement: was made by another allocation than {allocation.name}; run this one again")
    found = inputs(allocation)
    made = programs(allocation, found, measurement.question)
    by_index: dict[int, list[MeasuredStep]] = {}
    for step in measurement.steps:
        by_index.setdefault(step.index, []).append(step)
    for index, steps in by_index.items():
        _check_shapes(made[index], steps)
    if measurement.tag == "replayed":
        return _replayed(found, made, by_index, measurement)
    predictions = {index: predict_step(made[index], found.cluster, found.profiles) for index in sorted(by_index)}
    rows = tuple(_step_row(predictions[index], repeats) for index, repeats in sorted(by_index.items()))
    timelines = {index: step.timeline for index, step in predictions.items()}
    prices = {index: price(made[index], found.cluster, found.profiles) for index in timelines}
    operations = _operation_rows(timelines, prices, by_index)
    return Validation(rows, operations, tuple(timelines.values()), measurement)


def _check_shapes(program: Program, steps: Sequence[MeasuredStep]) -> None:
    for step in steps:
        for spans in step.ranks:
            if spans.rank >= len(program.ranks) or len(spans.spans) != len(program.ranks[spans.rank]):
                raise SpecError(f"measurement: step {step.index}, rank {spans.rank}: spans do not fit the program")


def _step_row(step: Prediction, steps: Sequence[MeasuredStep]) -> StepRow:
    durations = [one.duration_s for one in steps]
    middle = median(durations)
    return StepRow(
        steps[0].phase,
        steps[0].index,
        step.duration_s,
        step.p05_s,
        step.p95_s,
        middle,
        (max(durations) - min(durations)) / middle,
        len(durations),
    )


def _is_transfer(operation: object) -> bool:
    return isinstance(operation, Send | Recv | Collective)


def _operation_rows(
    timelines: dict[int, Timeline], prices: dict[int, Prices], by_index: dict[int, list[MeasuredStep]]
) -> tuple[OperationRow, ...]:
    sums: dict[tuple[str, str], list[float]] = {}
    num_steps: dict[str, int] = {}
    for index, timeline in timelines.items():
        phase = by_index[index][0].phase
        num_steps[phase] = num_steps.get(phase, 0) + 1
        for kind, (count, predicted, measured) in _kinds(timeline, prices[index], by_index[index]).items():
            total = sums.setdefault((phase, kind), [0.0, 0.0, 0.0])
            for position, value in enumerate((count, predicted, measured)):
                total[position] += value
    return tuple(
        OperationRow(phase, kind, round(total[0]), total[1] / num_steps[phase], total[2] / num_steps[phase])
        for (phase, kind), total in sorted(sums.items(), key=lambda item: (item[0][0] != "prefill", -item[1][2]))
    )


def _kinds(timeline: Timeline, prices: Prices, steps: Sequence[MeasuredStep]) -> dict[str, tuple[int, float, float]]:
    """Class → (operations, predicted, measured rank-seconds) of one step; measured is the median over repeats. What an
    operation's price holds for the transfers around it counts as waiting, as it is measured there."""
    found: dict[str, tuple[int, float, float]] = {}
    for rank, operations in enumerate(timeline.program.ranks):
        if not operations:
            continue
        spans = np.median([[b - a for a, b in _spans(step, rank)] for step in steps], axis=0)
        predicted = (timeline.end_ps[rank] - timeline.start_ps[rank]) / PICOSECONDS_PER_S
        alone, whole = prices.kernels_s[rank], prices.durations_s[rank]
        kernels = predicted * np.divide(alone, whole, out=np.ones_like(whole), where=whole > 0)
        waiting, issue = 0.0, 0.0
        for number, operation in enumerate(operations):
            if _is_transfer(operation):
                waiting += float(spans[number])
                continue
            kind = type(operation).__name__
            count, ours, theirs = found.get(kind, (0, 0.0, 0.0))
            found[kind] = (count + 1, ours + float(kernels[number]), theirs + float(spans[number]))
            issue += float(predicted[number] - kernels[number])
        count, ours, theirs = found.get("waiting", (0, 0.0, 0.0))
        transfers = sum(_is_transfer(operation) for operation in operations)
        blocked = rank_times(timeline, rank).exposed_s + issue
        found["waiting"] = (count + transfers, ours + blocked, theirs + waiting)
    return found


def _spans(step: MeasuredStep, rank: int) -> tuple[tuple[float, float], ...]:
    return next(spans.spans for spans in step.ranks if spans.rank == rank)


def _replayed(
    found: Inputs,
    made: Sequence[Program],
    by_index: dict[int, list[MeasuredStep]],
    measurement: Measurement,
) -> Validation:
    """Compute operations one by one on one device against their prices; steps are each rank's sum, the slowest's."""
    steps, sums = [], dict[tuple[str, str], list[float]]()
    for index, measured in sorted(by_index.items()):
        program = made[index]
        prices = {q: price(program, found.cluster, found.profiles, q) for q in ("median", "p05", "p95")}
        ours = {q: max(float(row.sum()) for row in p.durations_s if len(row)) for q, p in prices.items()}
        totals = [max(sum(b - a for a, b in rank.spans) for rank in step.ranks) for step in measured]
        middle = median(totals)
        spread = (max(totals) - min(totals)) / middle
        steps.append(
            StepRow(measured[0].phase, index, ours["median"], ours["p05"], ours["p95"], middle, spread, len(totals))
        )
        for rank, operations in enumerate(program.ranks):
            for number, operation in enumerate(operations):
                if _is_transfer(operation):
                    continue
                spans = [_spans(step, rank)[number] for step in measured]
                total = sums.setdefault((measured[0].phase, type(operation).__name__), [0.0, 0.0, 0.0])
                total[0] += 1
                total[1] += float(prices["median"].durations_s[rank][number])
                total[2] += median(b - a for a, b in spans)
    rows = tuple(OperationRow(phase, kind, round(n), a, b) for (phase, kind), (n, a, b) in sums.items())
    return Validation(tuple(steps), rows, (), measurement)
