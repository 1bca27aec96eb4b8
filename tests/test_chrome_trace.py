"""Chrome trace: what is named, and that Perfetto's importer finds every slice, arrow and counter where it belongs."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from itertools import pairwise
from typing import Any

from hypothesis import given, settings

from benchmarks.engine_speed import COMPUTE_S, documents_step
from simulator.cluster import Cluster
from simulator.program import Send
from simulator.simulation.chrome_trace import chrome_trace
from simulator.simulation.engine import World, run
from simulator.simulation.timeline import Timeline
from tests.hand_made import cluster, compute, durations, program, recv, send
from tests.played import MB
from tests.random_programs import SHAPES, random_program

LOADED = World(record_load=True)
Event = dict[str, Any]


def overlapping() -> Timeline:
    """Rank 0: compute 0–1, send 1–4 (3 MB), compute 1–2. Rank 1: receive 1–4, compute 4–5."""
    built = program([compute(writes=["a"]), send(1, "a", 3 * MB), compute()], [recv(0, "x", 3 * MB), compute(["x"])])
    return run(built, cluster(), durations(built, 1e-3), LOADED)


def test_a_trace_names_ranks_streams_transfers_and_link_loads() -> None:
    events = read(overlapping(), cluster())
    named = {event["args"]["name"] for event in events if event["ph"] == "M" and "name" in event["args"]}
    assert {"rank 0 · node 0 · gpu 0", "compute", "send to 1", "receive from 0", "link load"} <= named
    message = next(event for event in events if event["name"] == "Send to 1")
    assert (message["ts"], message["dur"], message["args"]["bytes"]) == (1000.0, 3000.0, 3 * MB)
    arrow = [(event["ph"], event["pid"], event["ts"]) for event in events if event["name"] == "message"]
    assert arrow == [("s", 0, 1000.0), ("f", 1, 1000.0)]
    loads = [(e["ts"], e["args"]["GB/s"]) for e in events if e["name"] == "node 0 gpu 0 out [GB/s]"]
    assert loads == [(1000.0, 1.0), (4000.0, 0.0)]


def test_the_same_program_gives_the_same_trace() -> None:
    assert chrome_trace(overlapping(), cluster()) == chrome_trace(overlapping(), cluster())


def read(timeline: Timeline, machine: Cluster) -> list[Event]:
    """The events, once checked as Perfetto's importer reads them."""
    text = chrome_trace(timeline, machine)
    times = re.findall(r'"(?:ts|dur)": ([^,}]+)', text)
    assert all(re.fullmatch(r"\d+(\.\d{1,3})?", time) for time in times)  # whole nanoseconds, no exponents
    events: list[Event] = json.loads(text)["traceEvents"]
    assert {event["ph"] for event in events} <= {"M", "X", "s", "f", "C"}
    slices = slices_by_thread(events)
    check_names(events, slices)
    check_arrows(events, slices)
    for event in events:
        if event["ph"] == "C":
            assert all(math.isfinite(value) and value >= 0 for value in event["args"].values())
    return events


def ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def slices_by_thread(events: list[Event]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(start, end) in nanoseconds; those of a thread follow one another, as a thread's slices may only nest."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            found[event["pid"], event["tid"]].append((ns(event["ts"]), ns(event["ts"]) + ns(event["dur"])))
    for spans in found.values():
        assert all(one[1] <= two[0] for one, two in pairwise(spans))
    return found


def check_names(events: list[Event], slices: dict[tuple[int, int], list[tuple[int, int]]]) -> None:
    processes = {event["pid"] for event in events if event["name"] == "process_name"}
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    ids = [thread for _, thread in threads]
    assert len(set(ids)) == len(ids)  # Perfetto knows a thread by its id alone
    assert not set(ids) & {0, *(process for process, _ in threads)}  # and takes these for main threads
    assert {event["pid"] for event in events} <= processes
    assert set(slices) <= threads


def check_arrows(events: list[Event], slices: dict[tuple[int, int], list[tuple[int, int]]]) -> None:
    """Each has a tail and a head, in this order, in slices open there (or of no length)."""
    ends: dict[int, list[str]] = defaultdict(list)
    for event in events:
        if event["ph"] in "sf":
            ends[event["id"]].append(event["ph"])
            at = ns(event["ts"])
            assert any(a <= at < b or a == at == b for a, b in slices[event["pid"], event["tid"]])
    assert all(found == ["s", "f"] for found in ends.values())


def test_the_documents_step_is_whole_in_its_trace() -> None:
    built, machine = documents_step()
    timeline = run(built, machine, [[COMPUTE_S / 7] * len(operations) for operations in built.ranks], LOADED)
    events = read(timeline, machine)
    assert sum(event["ph"] == "X" for event in events) == built.num_operations
    messages = sum(isinstance(operation, Send) for operations in built.ranks for operation in operations)
    assert sum(event["ph"] == "s" for event in events) == messages
    loaded = {event["name"] for event in events if event["ph"] == "C"}
    assert {f"node 0 nic {nic} out [GB/s]" for nic in range(8)} <= loaded


@settings(max_examples=200, deadline=None)
@given(SHAPES)
def test_any_program_gives_a_trace_that_perfetto_can_place(shape: list[tuple[str, int, int, int]]) -> None:
    built, machine = random_program(shape), cluster(2, 2, link=3e9, latency_s=1e-9)
    read(run(built, machine, durations(built, 1e-7 / 3), LOADED), machine)
