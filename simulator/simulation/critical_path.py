"""Critical path: the chain of operations, each starting the instant its last predecessor ended, that makes the step.

Walked backwards from the operation that ends last. An operation's predecessors are those of its rank (its stream's
previous one and the writers of what it reads); a transfer's are those of all its ends, as it waits for each of them.
The engine's times are integers and starts are somebody's end, so the chain covers the step without gaps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from simulator.program import Collective, Program, Recv, Send
from simulator.simulation.streams import predecessors
from simulator.simulation.timeline import Timeline
from simulator.units import PICOSECONDS_PER_S

At = tuple[int, int]
"""(rank, operation index)."""


@dataclass(frozen=True, slots=True)
class Link:
    """One operation of the chain; a transfer is named by one of its ends."""

    rank: int
    operation: int
    start_ps: int
    end_ps: int
    kind: str

    @property
    def seconds(self) -> float:
        return (self.end_ps - self.start_ps) / PICOSECONDS_PER_S


@dataclass(frozen=True, slots=True)
class PathTimes:
    """Where the chain's time goes; the parts sum to the step's duration."""

    compute_s: float
    point_to_point_s: float
    collective_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.point_to_point_s + self.collective_s


def critical_path(timeline: Timeline) -> tuple[Link, ...]:
    """First to last; ties go to the lowest rank, then to the earliest issued."""
    here = _last(timeline)
    if here is None:
        return ()
    walk = _Walk(timeline.program)
    chain = []
    while here is not None:
        chain.append(_link(timeline, here))
        before = sorted(walk.before(here))
        here = max(before, key=lambda at: (_end(timeline, at), -at[0], -at[1]), default=None)
    return tuple(reversed(chain))


def path_times(path: Iterable[Link]) -> PathTimes:
    times = {"compute": 0, "point_to_point": 0, "collective": 0}
    for link in path:
        kind = {"Send": "point_to_point", "Recv": "point_to_point", "Collective": "collective"}
        times[kind.get(link.kind, "compute")] += link.end_ps - link.start_ps
    return PathTimes(*(picoseconds / PICOSECONDS_PER_S for picoseconds in times.values()))


def _last(timeline: Timeline) -> At | None:
    ends = [(int(end.max()), -rank) for rank, end in enumerate(timeline.end_ps) if len(end)]
    if not ends:
        return None
    rank = -max(ends)[1]
    return rank, int(timeline.end_ps[rank].argmax())


def _end(timeline: Timeline, at: At) -> int:
    return int(timeline.end_ps[at[0]][at[1]])


def _link(timeline: Timeline, at: At) -> Link:
    rank, index = at
    kind = type(timeline.program.ranks[rank][index]).__name__
    return Link(rank, index, int(timeline.start_ps[rank][index]), int(timeline.end_ps[rank][index]), kind)


class _Walk:
    """Predecessors across ranks; each rank's are found when the walk first comes there."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._predecessors: dict[int, list[tuple[int, ...]]] = {}
        self._partners = partners(program)

    def before(self, at: At) -> set[At]:
        return {(rank, index) for rank, i in self._ends(at) for index in self._own(rank)[i]}

    def _ends(self, at: At) -> tuple[At, ...]:
        return self._partners.get(at, (at,))

    def _own(self, rank: int) -> list[tuple[int, ...]]:
        if rank not in self._predecessors:
            self._predecessors[rank] = predecessors(self.program.ranks[rank])
        return self._predecessors[rank]


def partners(program: Program) -> dict[At, tuple[At, ...]]:
    """All ends of every transfer, by each end. A pair's or group's n-th use of a tag meets the other ends' n-th."""
    meetings: dict[tuple[object, ...], list[At]] = {}
    seen: dict[tuple[object, ...], int] = {}
    for rank, operations in enumerate(program.ranks):
        for index, operation in enumerate(operations):
            match operation:
                case Send(to=to, tag=tag):
                    key: tuple[object, ...] = ("message", rank, to, tag)
                case Recv(source=source, tag=tag):
                    key = ("message", source, rank, tag)
                case Collective(ranks=ranks, tag=tag):
                    key = ("collective", ranks, tag)
                case _:
                    continue
            own = (*key, rank, type(operation).__name__)
            turn = seen[own] = seen.get(own, -1) + 1
            meetings.setdefault((*key, turn), []).append((rank, index))
    return {at: tuple(ends) for ends in meetings.values() for at in ends}
