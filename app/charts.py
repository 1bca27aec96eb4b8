"""Charts by Altair (bundled with Streamlit; nothing is fetched): rivals, breakdown, Pareto front, errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from app.style import PART_COLOURS, RIVAL_COLOURS, SLOT_COLOURS
from simulator.units import format_seconds

Rows = Sequence[dict[str, Any]]
Drawn = Any
"""A chart; Altair's own types for it change between its releases."""
MS = 1e3


def data(rows: Rows) -> Drawn:
    """Inline values: no data frame, no file."""
    return alt.InlineData(values=list(rows))


def rivals(rows: Rows) -> Drawn:
    """``name``, ``ms``, ``low``, ``high``, ``kind``: a bar a candidate with its 90 % interval."""
    order = [row["name"] for row in rows]
    y = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=210, labelOverlap=False))
    colour = alt.Color(
        "kind:N",
        title=None,
        legend=None,
        scale=alt.Scale(domain=list(RIVAL_COLOURS), range=list(RIVAL_COLOURS.values())),
    )
    base = alt.Chart(data(rows))
    bars = base.mark_bar(opacity=0.8).encode(
        x=alt.X("ms:Q", title="step time, ms", axis=alt.Axis(tickCount=8)),
        y=y,
        color=colour,
        tooltip=["name:N", "kind:N", "ms:Q", "tag:N"],
    )
    whiskers = [
        base.mark_rule(strokeWidth=width, color=colour).encode(x="low:Q", x2="high:Q", y=y)
        for width, colour in ((4, "white"), (2, "black"))  # seen on light, dark and bars
    ]
    return alt.layer(bars, *whiskers).properties(height=34 * len(rows) + 50)


def breakdown(rows: Rows) -> Drawn:
    """``plan``, ``part``, ``ms``, ``order``: stacked parts that sum to the step."""
    scale = alt.Scale(domain=list(PART_COLOURS), range=list(PART_COLOURS.values()))
    plans = list(dict.fromkeys(row["plan"] for row in rows))
    y = alt.Y("plan:N", title=None, axis=alt.Axis(labelLimit=180, labelOverlap=False))
    sums = [{"plan": plan, "total": sum(row["ms"] for row in rows if row["plan"] == plan)} for plan in plans]
    room = alt.Scale(domain=[0, 1.3 * max((row["total"] for row in sums), default=1.0)])  # for the totals' text
    axis = alt.Axis(tickCount=8)
    bars = (
        alt.Chart(data(rows))
        .mark_bar()
        .encode(
            x=alt.X("ms:Q", title="step time, ms (mean over ranks)", stack="zero", axis=axis, scale=room),
            y=y,
            color=alt.Color("part:N", scale=scale, legend=None),
            order=alt.Order("order:Q"),
            tooltip=["plan:N", "part:N", alt.Tooltip("ms:Q", format=".4f")],
        )
    )
    totals = [{**row, "shown": f"= {format_seconds(row['total'] / MS)}"} for row in sums]
    ends = (
        alt.Chart(data(totals)).mark_text(align="left", dx=6, color="#8d99ae").encode(x="total:Q", y=y, text="shown:N")
    )
    return alt.layer(bars, ends).properties(height=56 * len(plans) + 60)


def pareto(rows: Rows) -> Drawn:
    """``plan``, ``gpus``, ``ms``, ``name``: fastest step by number of GPUs."""
    base = alt.Chart(data(rows)).encode(
        x=alt.X("gpus:Q", title="GPUs", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("ms:Q", title="step time, ms", scale=alt.Scale(zero=False)),
        color=alt.Color(
            "plan:N",
            legend=alt.Legend(orient="top", title=None),
            scale=alt.Scale(domain=list(SLOT_COLOURS), range=list(SLOT_COLOURS.values())),
        ),
    )
    points = base.mark_point(filled=True, size=90).encode(tooltip=["plan:N", "name:N", "gpus:Q", "ms:Q"])
    return alt.layer(base.mark_line(interpolate="step-after", opacity=0.5), points).properties(height=300)


def gantt(rows: Rows, lanes: Sequence[str], kinds: dict[str, str], end_ms: float) -> Drawn:
    """``lane``, ``start``, ``end`` (ms), ``kind``, ``what``: a bar an operation; drag to pan, wheel to zoom."""
    zoom = alt.selection_interval(bind="scales", encodings=["x"])
    return (
        alt.Chart(data(rows), height=22 * len(lanes) + 55)
        .mark_bar(stroke="white", strokeOpacity=0.6, strokeWidth=0.4)
        .encode(
            x=alt.X("start:Q", title="ms from the start of the step", scale=alt.Scale(domain=[0, end_ms])),
            x2="end:Q",
            y=alt.Y("lane:N", sort=list(lanes), title=None, axis=alt.Axis(labelLimit=150, labelOverlap=False)),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=list(kinds), range=list(kinds.values())),
                legend=None,
            ),
            tooltip=["lane:N", "what:N", alt.Tooltip("start:Q", format=".4f"), alt.Tooltip("end:Q", format=".4f")],
        )
        .add_params(zoom)
    )


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around what lies between, for a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    return [one for one in every if low / 2 <= one <= 2 * high]


def validation(rows: Rows) -> Drawn:
    """``step``, ``predicted``, ``low``, ``high``, ``measured`` (ms), ``inside``: points over predicted bands."""
    base = alt.Chart(data(rows)).encode(
        x=alt.X(
            "step:Q", title="step (0: prefill)", axis=alt.Axis(tickMinStep=1), scale=alt.Scale(nice=False, padding=14)
        )
    )
    shown = [float(row[key]) for row in rows for key in ("low", "high", "measured")]
    ticks = alt.Axis(values=round_numbers(min(shown), max(shown)), format="~g")
    y = alt.Y("low:Q", title="step time, ms", axis=ticks, scale=alt.Scale(type="log", padding=10))
    band = base.mark_bar(opacity=0.3, width=9).encode(y=y, y2="high:Q")
    line = base.mark_tick(thickness=2, width=12).encode(y="predicted:Q")
    colour = alt.Color(
        "inside:N", title=None, legend=alt.Legend(orient="top"),
        scale=alt.Scale(domain=["inside the band", "outside"], range=["#2a9d6f", "#d1495b"]),
    )  # fmt: skip
    points = base.mark_point(filled=True, size=70).encode(
        y="measured:Q", color=colour, tooltip=["step:Q", "predicted:Q", "low:Q", "high:Q", "measured:Q"]
    )
    return alt.layer(band, line, points).properties(height=300)
