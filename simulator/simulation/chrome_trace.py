"""Chrome trace: a timeline as JSON that Perfetto and chrome://tracing open.

A process a rank (named by node and GPU), a thread a stream, a slice an operation with its layer, micro-batch and
bytes, an arrow from every Send to its Recv, and one more process with a counter for each link's load in GB/s (where
the timeline recorded loads; links that never limit a rate have none). Times are microseconds with three decimals, cut
off, not rounded: Perfetto reads nanoseconds, and a slice that ended one later would overlap the next of its stream.
Arrows start and end where their slices begin, since an arrow belongs to the slice that is open there. The same timeline
gives the same bytes.
Source: Trace Event Format (Google, 2016): events X, M, s/f, C; Perfetto's JSON importer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from simulator.cluster import Cluster
from simulator.program import Collective, Operation, Recv, Send, stream_of
from simulator.simulation.timeline import Timeline
from simulator.units import GB

PICOSECONDS_PER_NS, NS_PER_US = 1000, 1000
MOST_THREADS = 100_000  # of a process; and processes
Event = dict[str, Any]


def chrome_trace(timeline: Timeline, cluster: Cluster) -> str:
    """The trace as one JSON document, an event a line."""
    events = [*_rank_events(timeline, cluster), *_arrows(timeline), *_load_events(timeline)]
    lines = ",\n".join(json.dumps(event, sort_keys=True, ensure_ascii=False) for event in events)
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def _us(picoseconds: int) -> float:
    return picoseconds // PICOSECONDS_PER_NS / NS_PER_US


def thread_id(process: int, number: int) -> int:
    """Of a process' thread. Perfetto takes thread 0, and the one whose id is its process', for the main thread of that
    process, and so two streams for one: no id of a thread is one of a process."""
    return (process + 1) * MOST_THREADS + number


def threads_of(operations: tuple[Operation, ...]) -> dict[str, int]:
    """Number of each stream: compute, collective, then sends and receives by peer."""
    names = {stream_of(operation) for operation in operations}
    order = {"compute": 0, "collective": 1, "send": 2, "recv": 3}

    def place(name: str) -> tuple[int, int]:
        kind, _, peer = name.partition(":")
        return order[kind], int(peer or 0)

    return {name: number for number, name in enumerate(sorted(names, key=place))}


def _rank_events(timeline: Timeline, cluster: Cluster) -> Iterator[Event]:
    places = cluster.rank_nodes()
    for rank, operations in enumerate(timeline.program.ranks):
        if not operations:
            continue
        node, local, spec = places[rank]
        yield _name("process_name", rank, 0, f"rank {rank} · node {node} · {spec.gpu} {local}")
        yield {
            "ph": "M",
            "name": "process_sort_index",
            "pid": rank,
            "tid": thread_id(rank, 0),
            "args": {"sort_index": rank},
        }
        threads = threads_of(operations)
        for stream, thread in threads.items():
            yield _name("thread_name", rank, thread, spelled_out(stream))
        for index, operation in enumerate(operations):
            yield _slice(timeline, rank, index, threads[stream_of(operation)])


def spelled_out(stream: str) -> str:
    return stream.replace("send:", "send to ").replace("recv:", "receive from ")


def _name(kind: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread_id(process, thread), "args": {"name": name}}


def _slice(timeline: Timeline, rank: int, index: int, thread: int) -> Event:
    operation = timeline.program.ranks[rank][index]
    start, end = int(timeline.start_ps[rank][index]), int(timeline.end_ps[rank][index])
    about: Event = {"operation": index, "layer": operation.layer, "micro_batch": operation.micro_batch}
    if isinstance(operation, Send | Recv | Collective):
        about |= {"bytes": operation.num_bytes, "tag": operation.tag}
    return {
        "ph": "X",
        "name": _title(operation),
        "cat": "transfer" if "bytes" in about else "compute",
        "pid": rank,
        "tid": thread_id(rank, thread),
        "ts": _us(start),
        "dur": (end // PICOSECONDS_PER_NS - start // PICOSECONDS_PER_NS) / NS_PER_US,
        "args": about,
    }


def _title(operation: Operation) -> str:
    match operation:
        case Collective(kind=kind, ranks=ranks):
            return f"{kind} of {len(ranks)}"
        case Send(to=to):
            return f"Send to {to}"
        case Recv(source=source):
            return f"Recv from {source}"
        case _:
            return f"{type(operation).__name__} L{operation.layer}"


def _arrows(timeline: Timeline) -> Iterator[Event]:
    """One arrow a message, from its Send's slice to its Recv's."""
    sends: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    program = timeline.program
    for rank, operations in enumerate(program.ranks):
        for index, operation in enumerate(operations):
            if isinstance(operation, Send):
                sends.setdefault((rank, operation.to, operation.tag), []).append((rank, index))
    number = 0
    threads = [threads_of(operations) for operations in program.ranks]
    for rank, operations in enumerate(program.ranks):
        turns: dict[tuple[int, int, int], int] = {}
        for index, operation in enumerate(operations):
            if isinstance(operation, Recv):
                key = (operation.source, rank, operation.tag)
                turn = turns[key] = turns.get(key, -1) + 1
                source, sent = sends[key][turn]
                tail = threads[source][f"send:{rank}"], int(timeline.start_ps[source][sent])
                head = threads[rank][f"recv:{source}"], int(timeline.start_ps[rank][index])
                yield _arrow_end("s", number, source, *tail)
                yield _arrow_end("f", number, rank, *head) | {"bp": "e"}
                number += 1


def _arrow_end(phase: str, number: int, rank: int, thread: int, instant_ps: int) -> Event:
    event = {"ph": phase, "id": number, "name": "message", "cat": "transfer"}
    return event | {"pid": rank, "tid": thread_id(rank, thread), "ts": _us(instant_ps)}


def _load_events(timeline: Timeline) -> Iterator[Event]:
    """A counter a link, in GB/s (cores: cores in use); written when it changes."""
    if not timeline.loads:
        return
    process = len(timeline.program.ranks)
    yield _name("process_name", process, 0, "link load")
    for instant, number, units_per_s in timeline.loads:
        name = timeline.resources[number].name
        in_use = name.endswith((" cores", " device"))
        unit, value = (name.rsplit(" ", 1)[1], units_per_s) if in_use else ("GB/s", units_per_s / GB)
        yield {
            "ph": "C",
            "name": f"{name} [{unit}]",
            "pid": process,
            "tid": thread_id(process, 0),
            "ts": _us(instant),
            "args": {unit: value},
        }
