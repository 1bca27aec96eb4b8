"""What if: who wins at every length and pool size, as the network and the batch change; what moves one cell."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import streamlit as st

from app import grid, style
from app.heatmap import Axes, heat_map, table_rows, tokens_label
from app.inputs import choose, slide, switch
from app.nearby import stamp
from app.question import Words, problem_of, step_parts, step_words
from app.stopping import may_go_on, stoppable
from app.tornado import tornado
from planner.exploring.sensitivity import Sensitivity, sensitivities
from planner.exploring.surface import BAND, Crossing, surface, thresholds
from planner.exploring.whatif import LENGTHS, SCHEMES, Floats, Where, canonical, default_base, scaled
from planner.problem import Problem
from simulator.units import GB, format_seconds
from simulator.workload import Phase

NICS = (1, 2, 4, 8)
BANDWIDTHS_GB_S = (6.25, 12.5, 25.0, 50.0, 100.0)
ALL_BATCHES = (1, 2, 4, 8, 16, 32, 64)
KEPT: dict[str, grid.Slices] = {}
"""Grids by what they depend on, for the life of the process."""
UNDONE: dict[str, grid.Rows] = {}
"""Their lengths that are done where the rest is not."""


def show() -> None:
    st.title("What if")
    st.caption(
        "Fastest scheme at every prompt length and pool size. Move a slider: the map follows. Each cell compares one "
        "canonical placement a scheme, simulated at some batches and network rates and interpolated between; the Plan "
        "page searches all placements."
    )
    left, right = st.columns([3, 2])
    with left:
        words = step_words()
    with right:
        phase = cast(Phase, choose("phase", "Phase", ("prefill", "decode"), "prefill"))
    words = step_parts(words)
    problem = problem_of(words)
    where = Where(problem, phase, default_base(problem))
    if len(where.pools) < 2:
        st.info("This cluster has no GPUs beyond the base, so there is no pool to size.", icon=":material/info:")
        return
    explorer(where, kept_key(where, words, phase, stamp(words)))


@st.fragment
def explorer(where: Where, key: str) -> None:
    """Sliders and what they redraw; nothing else runs again when one moves."""
    num_nics, nic_gb_s = _nic(where.problem)
    columns = st.columns(3)
    with columns[0]:
        nics = slide("nics", "NICs a node", tuple(sorted({*NICS, num_nics})), num_nics)
    with columns[1]:
        rates = tuple(sorted({*BANDWIDTHS_GB_S, nic_gb_s}))
        rate_gb_s = slide("nic_gb_s", "GB/s a NIC, each way", rates, nic_gb_s)
    with columns[2]:
        batch = slide("batch", "Sequences a step", ALL_BATCHES, _nearest(where))
    have = slices(where, key, batch)
    if have is None:
        return
    rate = nics * rate_gb_s / (num_nics * nic_gb_s)
    found = surface(have, batch, rate)
    crossings = thresholds(found, where.lengths, where.pools)
    axes = Axes(where.lengths, where.pools)
    picture = st.container()
    with st.container(key="cell"):
        row = st.columns(2)
        with row[0]:
            tokens = slide("tokens", "Cell: prompt tokens", LENGTHS, 16384)
        with row[1]:
            pool = slide("pool", "Cell: pool GPUs", where.pools, where.pools[-1])
    chosen = where.lengths.index(tokens), where.pools.index(pool)
    used = {SCHEMES[index] for index in found.winners.ravel() if index >= 0}
    with picture:
        st.html(
            style.legend({name: colour for name, colour in style.SCHEME_COLOURS.items() if name in used})
            + heat_map(found, axes, crossings, chosen)
        )
        st.markdown(_sentence(where.phase, crossings))
    _schemes(found.possible[chosen], batch, where, (tokens, pool))
    winner = int(found.winners[chosen])
    if winner >= 0:
        sensitivity(where, key, SCHEMES[winner], (tokens, batch, pool), rate)
    with st.expander("The map as a table"):
        st.dataframe(table_rows(found, axes), hide_index=True, width="stretch")


def _nic(problem: Problem) -> tuple[int, float]:
    """NICs a node and GB/s a NIC, as the cluster file has them."""
    nics = problem.cluster.nodes[0].nics
    return (nics.count, nics.bandwidth_bytes_per_s / GB) if nics is not None else (1, BANDWIDTHS_GB_S[2])


def _nearest(where: Where) -> int:
    work = where.problem.workload
    wanted = work.prefill_batch if where.phase == "prefill" else work.decode_batch
    return min(ALL_BATCHES, key=lambda batch: abs(batch - wanted))


def slices(where: Where, key: str, batch: int) -> grid.Slices | None:
    """The grid around a batch: shipped, or simulated now with progress; None while stopped. What was simulated before
    a stop is kept."""
    if key not in KEPT:
        KEPT[key] = grid.shipped(where)
    have = KEPT[key]
    if not grid.missing(have, batch):
        return have
    stopped = f"stopped.{key}.{batch}"
    if not may_go_on(stopped, words="Stopped; what was simulated is kept.", button="Go on", key=f"again.{key}"):
        return None
    with stoppable(stopped, "Simulating every cell of the map once …") as bar:

        def tick(done: int, total: int) -> None:
            bar.progress(done / total, f"Simulating every cell of the map once: {done} of {total}")

        grid.complete(where, have, UNDONE.setdefault(key, {}), batch, tick)
    return have


def _sentence(phase: Phase, crossings: tuple[Crossing, ...]) -> str:
    """The threshold in words."""
    reached = [crossing for crossing in crossings if crossing.tokens is not None]
    tags = "Times are :gray-badge[fitted] inside a node and :gray-badge[assumed] between nodes."
    if not reached:
        return f"**No pool size beats the base alone in {phase}** up to {tokens_label(LENGTHS[-1])} tokens. {tags}"
    first = min(reached, key=lambda crossing: crossing.tokens or 0.0)
    ends = [tokens_label(end) if end is not None else "never" for end in (first.low, first.high)]
    where = (
        "at every length shown"
        if first.tokens == LENGTHS[0]
        else f"from about {tokens_label(first.tokens or 0)} tokens"
    )
    return (
        f"**In {phase} a pool of {first.pool} GPUs beats the base alone {where}** (dashed line; band {ends[0]} to "
        f"{ends[1]}: pooled times {BAND:.0%} shorter or longer). The colours say what beats both. {tags}"
    )


def _schemes(values: Floats, batch: int, where: Where, cell: tuple[int, int]) -> None:
    """The chosen cell, scheme by scheme."""
    order = [int(index) for index in np.argsort(values) if np.isfinite(values[index])]
    st.markdown(f"#### {cell[0]:,} tokens × {batch}, {cell[1]} pool GPUs")
    if not order:
        st.info(
            "No scheme fits this cell: take fewer sequences, shorter prompts or more GPUs.", icon=":material/block:"
        )
        return
    best = float(values[order[0]])
    columns = st.columns(max(min(len(order), 4), 1))
    for column, index in zip(columns, order, strict=False):
        delta = None if index == order[0] else f"{float(values[index]) / best - 1:+.0%}"
        column.metric(SCHEMES[index], format_seconds(float(values[index])), delta, delta_color="inverse", border=True)


@st.cache_resource(max_entries=64, show_spinner=False)
def kept_key(_where: Where, words: Words, phase: Phase, changed: tuple[int, ...]) -> str:
    """Hashing a profile takes longer than drawing the map."""
    return grid.key_of(_where)


@st.cache_data(max_entries=256, show_spinner=False)
def kept_sensitivities(
    _where: Where, key: str, scheme: str, cell: tuple[int, int, int], rate: float
) -> tuple[float, tuple[Sensitivity, ...]]:
    """Simulated once: seconds and rows of one scheme in (tokens, batch, pool); ``key`` stands for ``_where``."""
    question = _where.question(*cell)
    changed = replace(_where.problem, cluster=scaled(_where.problem.cluster, rate))
    return sensitivities(changed, question, canonical(_where, question)[scheme])


def sensitivity(where: Where, key: str, scheme: str, cell: tuple[int, int, int], rate: float) -> None:
    """On request, as every bar is two simulations. ``cell``: (tokens, batch, pool)."""
    if not switch("tornado", "What moves this cell (±20 % of each input, simulated)"):
        return
    with st.spinner("Simulating 17 variants of this cell …"):
        now_s, rows = kept_sensitivities(where, key, scheme, cell, rate)
    st.html(tornado(now_s, rows))
    tag = "assumed (bytes leave a node)" if cell[2] else "fitted"
    st.caption(f"{scheme}, step time; green is faster, red slower. Tag: {tag}.")
