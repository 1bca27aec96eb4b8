"""Timeline: when every operation of a program ran, what every link carried, and the numbers read off it.

Times are integer picoseconds. A compute operation's span is its own; a transfer's begins when all its ends are ready
(not when the first was posted) and ends when its last byte has arrived. Definitions, each in one place:

    compute          time a rank computes
    exposed          time a rank has a transfer in flight and computes nothing
    hidden           time a rank has a transfer in flight and computes
    imbalance        largest compute of a group of ranks over its mean (1: even)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.fabric.topology import Resource
from simulator.program import Collective, Program, Recv, Send
from simulator.units import PICOSECONDS_PER_S

Picoseconds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """``start_ps[r][i]``, ``end_ps[r][i]``: operation i of rank r. ``resource_units[k]``: bytes (core-seconds) that
    resource k carried. ``loads``: (instant, resource, units/s from then on), if recorded. ``launch_s[r]``: the part
    of rank r's compute in which its device waited for the host to issue kernels."""

    program: Program
    start_ps: tuple[Picoseconds, ...]
    end_ps: tuple[Picoseconds, ...]
    resources: tuple[Resource, ...]
    resource_units: tuple[float, ...]
    loads: tuple[tuple[int, int, float], ...]
    launch_s: tuple[float, ...]

    @property
    def makespan_ps(self) -> int:
        return max((int(ends.max()) for ends in self.end_ps if len(ends)), default=0)

    @property
    def duration_s(self) -> float:
        return self.makespan_ps / PICOSECONDS_PER_S

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that do anything."""
        return tuple(rank for rank, operations in enumerate(self.program.ranks) if operations)


@dataclass(frozen=True, slots=True)
class RankTimes:
    """One rank's step: compute + exposed + idle = duration; hidden is within compute, launch too."""

    compute_s: float
    launch_s: float
    exposed_s: float
    hidden_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A step's duration, averaged over ranks; the four parts sum to it. ``imbalance_s``: ranks with nothing to do or
    waiting for others with no transfer in flight."""

    compute_s: float
    exposed_communication_s: float
    launch_s: float
    imbalance_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exposed_communication_s + self.launch_s + self.imbalance_s


def rank_times(timeline: Timeline, rank: int) -> RankTimes:
    """|A| is the time covered by intervals A. exposed = |transfers ∪ compute| − |compute|; hidden is the rest."""
    operations = timeline.program.ranks[rank]
    transfer = np.fromiter((isinstance(o, Send | Recv | Collective) for o in operations), np.bool_, len(operations))
    start, end = timeline.start_ps[rank], timeline.end_ps[rank]
    compute_ps = int((end - start)[~transfer].sum())
    covered_ps = covered(start, end)
    transfer_ps = covered(start[transfer], end[transfer])
    exposed_ps = covered_ps - compute_ps
    return RankTimes(
        compute_s=compute_ps / PICOSECONDS_PER_S,
        launch_s=timeline.launch_s[rank],
        exposed_s=exposed_ps / PICOSECONDS_PER_S,
        hidden_s=(transfer_ps - exposed_ps) / PICOSECONDS_PER_S,
        idle_s=(timeline.makespan_ps - covered_ps) / PICOSECONDS_PER_S,
    )


def covered(start: Picoseconds, end: Picoseconds) -> int:
    """Picoseconds covered by a union of intervals: after sorting by start, each adds what lies beyond all before."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    before = np.concatenate((start[:1], reach[:-1]))
    return int(np.maximum(reach - np.maximum(start, before), 0).sum())


def breakdown(timeline: Timeline, ranks: Sequence[int] | None = None) -> Breakdown:
    """Mean over ``ranks`` (default: all that do anything) of where the step's time goes."""
    times = [rank_times(timeline, rank) for rank in (timeline.ranks if ranks is None else ranks)]
    num = max(len(times), 1)
    return Breakdown(
        compute_s=sum(time.compute_s - time.launch_s for time in times) / num,
        exposed_communication_s=sum(time.exposed_s for time in times) / num,
        launch_s=sum(time.launch_s for time in times) / num,
        imbalance_s=sum(time.idle_s for time in times) / num,
    )


def compute_s(timeline: Timeline, rank: int) -> float:
    """Seconds a rank computes."""
    return rank_times(timeline, rank).compute_s


def utilisation(timeline: Timeline, ranks: Sequence[int]) -> float:
    """Share of the step that a group of ranks (a role: base, pool, …) computes, on average."""
    if not ranks or not timeline.makespan_ps:
        return 0.0
    return sum(compute_s(timeline, rank) for rank in ranks) / len(ranks) / timeline.duration_s


def imbalance(timeline: Timeline, ranks: Sequence[int]) -> float:
    """Largest compute of the group over its mean; 1 if nobody computes."""
    times = [compute_s(timeline, rank) for rank in ranks]
    return max(times) * len(times) / sum(times) if sum(times) > 0 else 1.0


def link_utilisation(timeline: Timeline) -> dict[str, float]:
    """Share of the step's capacity that every used link carried, by name, busiest first."""
    if not timeline.makespan_ps:
        return {}
    shares = {
        resource.name: units / (resource.bandwidth_bytes_per_s * timeline.duration_s)
        for resource, units in zip(timeline.resources, timeline.resource_units, strict=True)
        if units > 0
    }
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
