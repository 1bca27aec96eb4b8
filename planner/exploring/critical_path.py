"""Critical path: from the end of a timeline back to its start, the operations whose ends were waited for.

Their seconds by kind explain a step's time, and carry the profile's doubt to it: errors of one kind of kernel are taken
to go together, errors of different kinds to be independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from simulator import program as p
from simulator.simulation.timeline import Timeline
from simulator.units import PICOSECONDS_PER_S

Node = tuple[int, int]
KINDS = ("gemm", "attention", "experts", "memory", "collective", "network", "waiting")


@dataclass(frozen=True)
class CriticalPath:
    """Operations (rank, index), first to last."""

    timeline: Timeline
    nodes: tuple[Node, ...]

    def seconds(self) -> dict[str, float]:
        """Seconds on the path by kind; what no operation covers is ``waiting``."""
        found = dict.fromkeys(KINDS, 0.0)
        for rank, index in self.nodes:
            length = self.timeline.end_ps[rank][index] - self.timeline.start_ps[rank][index]
            found[kind_of(self.timeline.program.ranks[rank][index])] += int(length) / PICOSECONDS_PER_S
        found["waiting"] = max(self.timeline.duration_s - sum(found.values()), 0.0)
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


def critical_path(timeline: Timeline) -> CriticalPath:
    """Back from the last end: each time to the predecessor that ended last."""
    index = _Index(timeline.program)
    rank = max(timeline.ranks, key=lambda r: (int(timeline.end_ps[r].max()), -r))
    node = (rank, int(timeline.end_ps[rank].argmax()))
    path = [node]
    while True:
        before = [(int(timeline.end_ps[r][i]), r, i) for r, i in index.predecessors(node)]
        if not before:
            return CriticalPath(timeline, tuple(reversed(path)))
        node = max(before)[1:]
        path.append(node)


class _Index:
    """Who precedes an operation: the one before it on its stream and the writers of what it reads, on all its ends."""

    def __init__(self, program: p.Program) -> None:
        self.program = program
        self.before: dict[int, tuple[list[int], list[tuple[int, ...]]]] = {}
        self.ends: dict[tuple[int, ...], list[Node]] = {}
        for rank, operations in enumerate(program.ranks):
            for number, operation in enumerate(operations):
                key = _meeting(rank, operation)
                if key is not None:
                    self.ends.setdefault(key, []).append((rank, number))

    def predecessors(self, node: Node) -> Iterator[Node]:
        rank, number = node
        key = _meeting(rank, self.program.ranks[rank][number])
        for end_rank, end in [node] if key is None else self.ends[key]:
            previous, writers = self._of_rank(end_rank)
            if previous[end] >= 0:
                yield end_rank, previous[end]
            for writer in writers[end]:
                yield end_rank, writer

    def _of_rank(self, rank: int) -> tuple[list[int], list[tuple[int, ...]]]:
        if rank not in self.before:
            last: dict[str, int] = {}
            writer: dict[str, int] = {}
            previous: list[int] = []
            writers: list[tuple[int, ...]] = []
            for number, operation in enumerate(self.program.ranks[rank]):
                stream = p.stream_of(operation)
                previous.append(last.get(stream, -1))
                writers.append(tuple(writer[name] for name in operation.reads if name in writer))
                last[stream] = number
                writer.update(dict.fromkeys(operation.writes, number))
            self.before[rank] = previous, writers
        return self.before[rank]


def _meeting(rank: int, operation: p.Operation) -> tuple[int, ...] | None:
    match operation:
        case p.Send(to=to, tag=tag):
            return rank, to, tag
        case p.Recv(source=source, tag=tag):
            return source, rank, tag
        case p.Collective(ranks=ranks, tag=tag):
            return (-1, tag, *ranks)
        case _:
            return None


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
