"""Critical path: its seconds by kind of operation explain a step's time, and carry the profile's doubt to it.

The walk is the simulator's. Errors of one kind of kernel are taken to go together, errors of different kinds to be
independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from simulator import program as p
from simulator.simulation.critical_path import critical_path as walk
from simulator.simulation.timeline import Timeline
from simulator.units import PICOSECONDS_PER_S

Node = tuple[int, int]
KINDS = ("gemm", "attention", "experts", "memory", "collective", "network", "waiting")


@dataclass(frozen=True)
class CriticalPath:
    """Operations (rank, index), first to last, of a step that takes ``step_s``."""

    timeline: Timeline
    nodes: tuple[Node, ...]
    step_s: float

    def times(self, node: Node) -> int:
        """How often an operation is on the path: once for every layer that its layer stands for."""
        program = self.timeline.program
        return program.times(program.ranks[node[0]][node[1]].layer)

    def seconds(self) -> dict[str, float]:
        """Seconds on the path by kind; what no operation covers is ``waiting``."""
        found = dict.fromkeys(KINDS, 0.0)
        for rank, index in self.nodes:
            length = int(self.timeline.end_ps[rank][index] - self.timeline.start_ps[rank][index])
            kind = kind_of(self.timeline.program.ranks[rank][index])
            found[kind] += length * self.times((rank, index)) / PICOSECONDS_PER_S
        found["waiting"] = max(self.step_s - sum(found.values()), 0.0)
        return found


def kind_of(operation: p.Operation) -> str:
    """The kind whose errors an operation shares."""
    match operation:
        case p.Linear():
            return "gemm"
        case p.Attention() | p.Scores() | p.WeighValues():
            return "attention"
        case p.Experts() | p.Route():
            return "experts"
        case p.Collective():
            return "collective"
        case p.Send() | p.Recv():
            return "network"
        case _:
            return "memory"


def critical_path(timeline: Timeline, step_s: float | None = None) -> CriticalPath:
    """The simulator's walk. ``step_s``: of the whole model, where the timeline is a shallow one's."""
    nodes = tuple((link.rank, link.operation) for link in walk(timeline))
    return CriticalPath(timeline, nodes, timeline.duration_s if step_s is None else step_s)


@dataclass(frozen=True)
class Doubt:
    """What errors of each kind add to a step (p95) or take from it (p05), seconds, all of a kind together."""

    up_s: dict[str, float]
    down_s: dict[str, float]

    def half_widths(self) -> tuple[float, float]:
        """(below, above): kinds are independent, so squares add."""
        return sqrt(sum(v * v for v in self.down_s.values())), sqrt(sum(v * v for v in self.up_s.values()))


def difference(ours: Doubt, other: Doubt) -> tuple[float, float]:
    """(below, above) of other − ours: within a kind errors move both, and only the rest remains."""
    below = above = 0.0
    for kind in KINDS:
        slow = other.up_s.get(kind, 0.0) - ours.up_s.get(kind, 0.0)
        fast = ours.down_s.get(kind, 0.0) - other.down_s.get(kind, 0.0)
        below += max(0.0, -slow, -fast) ** 2
        above += max(0.0, slow, fast) ** 2
    return sqrt(below), sqrt(above)
