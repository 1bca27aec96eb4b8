"""Overlay: the predicted and the measured timeline of one run in one Perfetto trace, step after step.

Predicted ranks keep their processes; each measured rank is a process of its own beside them, on the same clock: step k
starts, in both, where the slower of the two ended step k − 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from planner.validation import Validation
from simulator.measurement import MeasuredStep
from simulator.simulation.timeline import Timeline
from simulator.units import PICOSECONDS_PER_S

US_PER_S = 1e6
Event = dict[str, Any]


def overlay(found: Validation) -> str:
    """Trace Event Format JSON, an event a line; repeat 0 of every step."""
    first = {step.index: step for step in found.measurement.steps if step.repeat == 0}
    events: list[Event] = []
    offset_s, named = 0.0, set[int]()
    for (index, step), timeline in zip(sorted(first.items()), found.timelines, strict=False):
        events.extend(_step_events(timeline, step, offset_s, named))
        offset_s += max(timeline.duration_s, step.duration_s)
        assert index == step.index
    lines = ",\n".join(json.dumps(event, sort_keys=True, ensure_ascii=False) for event in events)
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def _step_events(timeline: Timeline, step: MeasuredStep, offset_s: float, named: set[int]) -> Iterator[Event]:
    label = "prefill" if step.index == 0 else f"decode {step.index}"
    for spans in step.ranks:
        rank = spans.rank
        if rank not in named:
            named.add(rank)
            for side, what in enumerate(("predicted", "measured")):
                process = {"name": f"rank {rank} {what}"}
                yield {"ph": "M", "name": "process_name", "pid": 2 * rank + side, "tid": 0, "args": process}
        for number, operation in enumerate(timeline.program.ranks[rank]):
            name = f"{label}: {type(operation).__name__} layer {operation.layer}"
            predicted = (
                timeline.start_ps[rank][number] / PICOSECONDS_PER_S,
                timeline.end_ps[rank][number] / PICOSECONDS_PER_S,
            )
            for side, (start_s, end_s) in enumerate((predicted, spans.spans[number])):
                yield {
                    "ph": "X",
                    "name": name,
                    "pid": 2 * rank + side,
                    "tid": 0,
                    "ts": round((offset_s + float(start_s)) * US_PER_S, 3),
                    "dur": round(float(end_s - start_s) * US_PER_S, 3),
                    "args": {"operation": number, "micro_batch": operation.micro_batch},
                }
