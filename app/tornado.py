"""Tornado: what ±20 % of each input does to a step's time, largest swing first; plain HTML and CSS."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from planner.exploring.sensitivity import Sensitivity
from simulator.units import format_seconds

SLOWER, FASTER = "#d1495b", "#2a9d6f"
HALF = 31.0
"""Per cent of the width for the longest bar to one side; the rest is for its label."""
NO_EFFECT = 5e-4


def tornado(now_s: float, rows: Sequence[Sensitivity]) -> str:
    """Bars from today's time to the changed one, labelled with the change that made them."""
    most = max((max(abs(row.low_s - now_s), abs(row.high_s - now_s)) for row in rows), default=0.0) or now_s
    body = "".join(_row(row, now_s, HALF / most) for row in rows)
    return (
        '<div class="ap-tornado" role="img" aria-label="Change of the step time for plus and minus 20 per cent of each '
        f'input"><div></div><div class="ap-now">now {format_seconds(now_s)}</div>{body}</div>'
    )


def _row(row: Sensitivity, now_s: float, scale: float) -> str:
    changed = (row.low_s, row.low_change), (row.high_s, row.high_change)
    bars = [_bar(seconds - now_s, f"{100 * change:+.0f} %", now_s, scale) for seconds, change in changed]
    drawn = "".join(bars) or '<span class="ap-barlabel" style="left:51%">no effect</span>'
    return f'<div class="ap-factor">{escape(row.factor)}</div><div class="ap-bars"><i></i>{drawn}</div>'


def _bar(delta_s: float, sign: str, now_s: float, scale: float) -> str:
    if abs(delta_s) < NO_EFFECT * now_s:
        return ""
    width = max(abs(delta_s) * scale, 0.3)
    words = f"{sign}: {delta_s / now_s:+.1%}".replace("-", "−")
    if delta_s > 0:
        place, label = "left:50%", f"left:{50 + width + 0.7:.1f}%"
    else:
        place, label = "right:50%", f"right:{50 + width + 0.7:.1f}%"
    colour = SLOWER if delta_s > 0 else FASTER
    return (
        f'<span class="ap-bar" style="{place};width:{width:.1f}%;background:{colour}"></span>'
        f'<span class="ap-barlabel" style="{label}">{words}</span>'
    )
