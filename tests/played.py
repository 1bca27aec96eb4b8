"""Played by hand: the spans of a small program in ms."""

from __future__ import annotations

from simulator.cluster import Cluster
from simulator.program import Program
from simulator.simulation.engine import run
from simulator.simulation.timeline import Timeline
from tests.hand_made import cluster, durations

MS = 10**9  # picoseconds
MB = 10**6  # takes 1 ms at 1 GB/s
Spans = list[list[tuple[float, float]]]


def spans(timeline: Timeline) -> Spans:
    """(start, end) in ms of every operation of every rank."""
    return [
        [(int(a) / MS, int(b) / MS) for a, b in zip(starts, ends, strict=True)]
        for starts, ends in zip(timeline.start_ps, timeline.end_ps, strict=True)
    ]


def play(built: Program, machine: Cluster | None = None, compute_s: float = 1e-3) -> Spans:
    return spans(run(built, machine or cluster(), durations(built, compute_s)))
