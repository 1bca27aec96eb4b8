"""Timeline: when every operation of a step runs, per rank and stream; the whole of it for Perfetto."""

from __future__ import annotations

import streamlit as st

from app import charts, style
from app.inputs import choose, choose_many
from app.steps import Simulated, choose_step, role_of, step_of
from app.style import KIND_COLOURS
from app.tables import plain
from planner.exploring.critical_path import kind_of
from simulator.program import Collective, Operation, Recv, Send, stream_of
from simulator.simulation.chrome_trace import chrome_trace
from simulator.simulation.timeline import breakdown, imbalance
from simulator.units import PICOSECONDS_PER_S, format_bytes, format_seconds

MOST_BARS = 4000
PS_PER_MS = PICOSECONDS_PER_S / 1e3


def show() -> None:
    st.title("Timeline")
    st.caption(
        "One simulated step, operation by operation. Drag to pan, turn the wheel to zoom, point at a bar to name it."
    )
    chosen = choose_step()
    found = step_of(chosen)
    _metrics(found)
    _chart(found)
    name = f"{found.placement.name}-{chosen.phase}-{chosen.tokens}x{chosen.batch}.trace.json"
    st.download_button(
        "Download for Perfetto",
        lambda: chrome_trace(found.timeline, found.where.problem.cluster).encode(),
        name,
        "application/json",
        icon=":material/download:",
        help="All ranks, all streams, arrows from sends to receives, and the load of every link",
    )


def _metrics(found: Simulated) -> None:
    """The step's parts; the first four sum to it."""
    parts = breakdown(found.timeline)
    busy = [rank for rank in found.timeline.ranks if role_of(found.placement, rank) != "unused"]
    shown = (
        ("Step", found.timeline.duration_s, "From the start of the pass to the end of its last operation on any rank."),
        ("Compute", parts.compute_s, "Mean over ranks of the time spent computing, without launch."),
        (
            "Exposed communication",
            parts.exposed_communication_s,
            "A transfer is in flight and the rank computes nothing.",
        ),
        ("Launch", parts.launch_s, "The device waits for its host to issue kernels."),
        ("Imbalance", parts.imbalance_s, "Nothing to do and no transfer in flight: waiting for others."),
    )
    st.html(style.stats([(name, format_seconds(seconds), definition) for name, seconds, definition in shown]))
    with st.expander("What these are"):
        st.dataframe([{"part": name, "definition": text} for name, _, text in shown], hide_index=True, width="stretch")
    even = imbalance(found.timeline, busy)
    st.caption(
        f"{found.placement.name} on {len(found.placement.ranks)} GPUs; "
        f"{found.timeline.program.num_operations:,} operations; "
        f"largest compute over mean compute {plain(even)}. Tag: {found.tag}."
    )


def _chart(found: Simulated) -> None:
    """Bars of a few ranks: first and last of every role unless asked otherwise."""
    layers = ("all", *range(found.where.problem.model.num_layers))
    left, right = st.columns([1, 3])
    with left:
        layer = choose("layer", "Layer", layers, "all")
    with right:
        ranks = choose_many("ranks", "Ranks", found.timeline.ranks, _few(found), found.placement.name)
    rows, lanes = _bars(found, ranks, layer)
    if not rows:
        st.info("Nothing to draw: pick at least one rank.", icon=":material/view_timeline:")
        return
    if len(rows) > MOST_BARS:
        st.info(
            f"Showing the first {MOST_BARS:,} of {len(rows):,} operations; pick a layer or fewer ranks for the rest."
        )
        rows = rows[:MOST_BARS]
    kinds = {kind: colour for kind, colour in KIND_COLOURS.items() if any(row["kind"] == kind for row in rows)}
    end_ms = max(float(str(row["end"])) for row in rows)
    st.html(style.legend(kinds))
    st.altair_chart(charts.gantt(rows, lanes, kinds, end_ms), width="stretch")


def _few(found: Simulated) -> list[int]:
    """First and last rank of every role."""
    by_role: dict[str, list[int]] = {}
    for rank in found.timeline.ranks:
        by_role.setdefault(role_of(found.placement, rank), []).append(rank)
    return sorted({rank for ranks in by_role.values() for rank in (ranks[0], ranks[-1])})


def _bars(found: Simulated, ranks: list[int], layer: object) -> tuple[list[dict[str, object]], list[str]]:
    """(rows, lanes top to bottom); sends and receives of all peers share a lane each."""
    rows: list[dict[str, object]] = []
    lanes: list[str] = []
    for rank in ranks:
        head = f"{rank} {role_of(found.placement, rank)}"
        own: dict[str, None] = {}
        for number, operation in enumerate(found.timeline.program.ranks[rank]):
            start, end = (int(times[rank][number]) for times in (found.timeline.start_ps, found.timeline.end_ps))
            if end <= start or (layer != "all" and operation.layer != layer):
                continue
            lane = f"{head} {stream_of(operation).partition(':')[0]}"
            own[lane] = None
            rows.append(
                {
                    "lane": lane, "start": start / PS_PER_MS, "end": end / PS_PER_MS, "kind": kind_of(operation),
                    "what": describe(operation),
                }
            )  # fmt: skip
        lanes += sorted(own)
    rows.sort(key=lambda row: float(str(row["start"])))
    return rows, lanes


def describe(operation: Operation) -> str:
    """``Attention, layer 2, micro-batch 0`` or ``Send 1.2 MB to 9, layer 2``."""
    place = f"layer {operation.layer}, micro-batch {operation.micro_batch}"
    match operation:
        case Send(to=to, num_bytes=num_bytes):
            return f"Send {format_bytes(num_bytes)} to {to}, {place}"
        case Recv(source=source, num_bytes=num_bytes):
            return f"Receive {format_bytes(num_bytes)} from {source}, {place}"
        case Collective(kind=kind, ranks=ranks, num_bytes=num_bytes):
            return f"{kind} of {format_bytes(num_bytes)} over {len(ranks)}, {place}"
        case _:
            return f"{type(operation).__name__}, {place}"
