"""Overlay: the predicted and the measured timeline of one run in one Perfetto trace, step after step.

Predicted ranks keep their processes; each measured rank is a process of its own beside them, on the same clock: step k
starts, in both, where the slower of the two ended step k − 1. A thread is a stream, since slices of a thread may nest
but not overlap; times are whole nanoseconds, cut off, as in ``simulator.simulation.chrome_trace``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from planner.validation import Validation
from simulator.measurement import MeasuredStep
from simulator.program import Operation, stream_of
from simulator.simulation.chrome_trace import spelled_out, thread_id, threads_of
from simulator.simulation.timeline import Timeline
from simulator.units import PICOSECONDS_PER_S

NS_PER_S, NS_PER_US = 1e9, 1000
Event = dict[str, Any]


def overlay(found: Validation) -> str:
    """Trace Event Format JSON, an event a line; repeat 0 of every step."""
    first = {step.index: step for step in found.measurement.steps if step.repeat == 0}
    events: list[Event] = []
    offset_s, threads = 0.0, dict[int, dict[str, int]]()
    for (index, step), timeline in zip(sorted(first.items()), found.timelines, strict=False):
        events.extend(_step_events(timeline, step, offset_s, threads))
        offset_s += max(timeline.duration_s, step.duration_s)
        assert index == step.index
    lines = ",\n".join(json.dumps(event, sort_keys=True, ensure_ascii=False) for event in events)
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def _step_events(
    timeline: Timeline, step: MeasuredStep, offset_s: float, threads: dict[int, dict[str, int]]
) -> Iterator[Event]:
    label = "prefill" if step.index == 0 else f"decode {step.index}"
    for spans in step.ranks:
        rank, operations = spans.rank, timeline.program.ranks[spans.rank]
        yield from _names(rank, operations, threads)
        starts_s, ends_s = (column[rank] / PICOSECONDS_PER_S for column in (timeline.start_ps, timeline.end_ps))
        for number, operation in enumerate(operations):
            predicted = float(starts_s[number]), float(ends_s[number])
            for side, (start_s, end_s) in enumerate((predicted, spans.spans[number])):
                first, last = (int((offset_s + float(instant_s)) * NS_PER_S) for instant_s in (start_s, end_s))
                yield {
                    "ph": "X",
                    "name": f"{label}: {type(operation).__name__} layer {operation.layer}",
                    "pid": 2 * rank + side,
                    "tid": thread_id(2 * rank + side, threads[rank][stream_of(operation)]),
                    "ts": first / NS_PER_US,
                    "dur": (last - first) / NS_PER_US,
                    "args": {"operation": number, "micro_batch": operation.micro_batch},
                }


def _names(rank: int, operations: tuple[Operation, ...], threads: dict[int, dict[str, int]]) -> Iterator[Event]:
    """Of the rank's two processes, when it first appears, and of the streams that it had in no step before."""
    known = threads.get(rank, {})
    new = {name: len(known) + number for number, name in enumerate(s for s in threads_of(operations) if s not in known)}
    threads[rank] = known | new
    for side, what in enumerate(("predicted", "measured")):
        process = 2 * rank + side
        if not known:
            about = {"name": f"rank {rank} {what}"}
            yield {"ph": "M", "name": "process_name", "pid": process, "tid": thread_id(process, 0), "args": about}
        for stream, thread in new.items():
            about = {"name": spelled_out(stream)}
            yield {"ph": "M", "name": "thread_name", "pid": process, "tid": thread_id(process, thread), "args": about}
