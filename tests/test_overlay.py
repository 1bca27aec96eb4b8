"""Overlay: predicted and measured side by side, each operation once a side, on threads whose slices do not overlap."""

from __future__ import annotations

import json
from collections import Counter

from executor.replay import replay
from executor.session import Generation
from planner.overlay import overlay
from planner.validation import Validation
from simulator.lowering import lower
from simulator.placement import AttentionGrid
from simulator.simulation.engine import run
from simulator.workload import decode_step, prefill_step
from tests.hand_made import cluster, durations
from tests.schemes import pooled, tiny_model
from tests.test_chrome_trace import check_names, slices_by_thread


def test_every_operation_of_both_sides_stands_on_a_thread_of_its_stream() -> None:
    model = tiny_model(layers=1)
    placement = pooled(model, 2, AttentionGrid(heads=(4, 4)))
    programs = tuple(
        lower(model, step, placement, nodes=(0,) * 4, dtype="fp32") for step in (prefill_step(2, 8), decode_step(2, 8))
    )
    measured = replay(Generation(model, programs, warm_up=0)).measurement
    timelines = tuple(run(program, cluster(), durations(program, 1e-4 / 3)) for program in programs)
    events = json.loads(overlay(Validation((), (), timelines, measured)))["traceEvents"]
    slices = slices_by_thread(events)
    check_names(events, slices)
    total = sum(program.num_operations for program in programs)
    assert Counter(event["pid"] % 2 for event in events if event["ph"] == "X") == {0: total, 1: total}
    named = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert {"rank 0 predicted", "rank 3 measured", "compute", "send to 2", "receive from 0"} <= named
