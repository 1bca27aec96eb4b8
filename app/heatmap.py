"""Heat map: length × pool size, cells coloured by the winning scheme, with the threshold and its band.

Plain HTML and CSS: it must follow a slider, adapt to a phone and to light and dark, and hatching is not in Vega.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log2

import numpy as np

from app.style import SCHEME_COLOURS
from planner.exploring.surface import BASE, Crossing, Surface
from planner.exploring.whatif import SCHEMES
from simulator.units import format_seconds


@dataclass(frozen=True, slots=True)
class Axes:
    """Lengths go up, pools go right."""

    lengths: tuple[int, ...]
    pools: tuple[int, ...]

    def height(self, tokens: float | None) -> float:
        """How far below the top a length lies, in per cent; a grid length lies in the middle of its row, the
        shortest (and shorter) below it; None: at the top."""
        if tokens is None:
            return 0.0
        if tokens <= self.lengths[0]:
            return 100.0
        steps = log2(tokens / self.lengths[0]) / log2(self.lengths[1] / self.lengths[0])
        share = (len(self.lengths) - 0.5 - steps) / len(self.lengths)
        return min(max(100 * share, 0.0), 100.0)


def tokens_label(tokens: float) -> str:
    """``16K``."""
    return f"{tokens / 1024:.3g}K" if tokens >= 1024 else f"{tokens:.0f}"


def heat_map(found: Surface, axes: Axes, crossings: Sequence[Crossing], chosen: tuple[int, int]) -> str:
    """The whole picture. ``chosen``: (length, pool) indices of the outlined cell."""
    winners, num_rows = found.winners, len(axes.lengths)
    parts = []
    for li, tokens in enumerate(axes.lengths):
        row = num_rows - li
        parts.append(f'<div class="ap-rowlabel" style="grid-area:{row}/1">{tokens_label(tokens)}</div>')
        for pi in range(len(axes.pools)):
            place = f"grid-area:{row}/{pi + 2}"
            parts.append(_cell(found, axes, (li, pi), int(winners[li, pi]), place, outlined=chosen == (li, pi)))
    for pi, pool in enumerate(axes.pools):
        parts.append(f'<div class="ap-collabel" style="grid-area:{num_rows + 1}/{pi + 2}">{pool}</div>')
    parts += [_threshold(axes, crossing, num_rows) for crossing in crossings]
    words = "Winning scheme at every prompt length and pool size; the table below has the same"
    columns = f"grid-template-columns:3.1rem repeat({len(axes.pools)},minmax(0,1fr))"
    rows = f"grid-template-rows:repeat({num_rows},minmax(2.7rem,auto)) auto"
    return (
        f'<div class="ap-axis">prompt tokens ↑</div><div class="ap-map" role="img" aria-label="{words}" '
        f'style="{columns};{rows}">{"".join(parts)}</div>'
        '<div class="ap-axis ap-right">pool GPUs beside the base →</div>'
    )


def _cell(found: Surface, axes: Axes, at: tuple[int, int], winner: int, place: str, *, outlined: bool) -> str:
    ring = " ap-chosen" if outlined else ""
    if winner < 0:
        return f'<div class="ap-cell ap-hatched{ring}" style="{place}"><small>does not fit</small></div>'
    seconds, base = float(found.possible[at][winner]), float(found.possible[at[0], 0, BASE])
    name = SCHEMES[winner]
    title = f"{name}: {axes.lengths[at[0]]:,} tokens, {axes.pools[at[1]]} pool GPUs, {format_seconds(seconds)}"
    below = ""
    if np.isfinite(base) and winner != BASE:
        below = f'<small>{base / seconds:.2f}×<span class="ap-desk"> base</span></small>'
    return (
        f'<div class="ap-cell{ring}" title="{escape(title)}" style="{place};--c:{SCHEME_COLOURS[name]}">'
        f"<b>{format_seconds(seconds)}</b>{below}</div>"
    )


def _threshold(axes: Axes, crossing: Crossing, num_rows: int) -> str:
    """Over one column: a dashed line, and the band between its two ends; beyond the grid it stops at the edge."""
    if crossing.tokens is None and crossing.low is None:
        return ""
    top, bottom = axes.height(crossing.high), axes.height(crossing.low)
    line = ""
    if crossing.tokens is not None:
        line = f'<div class="ap-line" style="top:{axes.height(crossing.tokens):.2f}%"></div>'
    return (
        f'<div class="ap-over" style="grid-area:1/{axes.pools.index(crossing.pool) + 2}/{num_rows + 1}">'
        f'<div class="ap-band" style="top:{top:.2f}%;height:{bottom - top:.2f}%"></div>{line}</div>'
    )


def table_rows(found: Surface, axes: Axes) -> list[dict[str, str]]:
    """The same as text, a row a length."""
    winners, possible = found.winners, found.possible
    rows = []
    for li, tokens in enumerate(axes.lengths):
        row = {"prompt tokens": f"{tokens:,}"}
        for pi, pool in enumerate(axes.pools):
            winner = int(winners[li, pi])
            fits = winner >= 0
            row[f"{pool} pool GPUs"] = (
                f"{SCHEMES[winner]}, {format_seconds(float(possible[li, pi, winner]))}" if fits else "does not fit"
            )
        rows.append(row)
    return rows
