"""Style: the few colours and rules that the pages share; readable on light and on dark."""

from __future__ import annotations

from html import escape

import streamlit as st

SCHEME_COLOURS = {
    "base alone": "#8d99ae",
    "tensor parallel": "#9c6ade",
    "pipeline": "#c98b2b",
    "context parallel": "#3f8fd2",
    "FA Pool": "#d1495b",
    "FA Pool + base": "#2a9d6f",
    "MA Separation": "#c2579b",
}
PART_COLOURS = {
    "compute": "#3f8fd2",
    "compute hiding communication": "#2a9d6f",
    "exposed communication": "#d1495b",
    "launch": "#c98b2b",
    "imbalance": "#8d99ae",
}
ROLE_COLOURS = {"base": "#3f8fd2", "pool": "#2a9d6f", "attention": "#d1495b", "experts": "#c2579b", "unused": "#8d99ae"}
RIVAL_COLOURS = {
    "chosen": "#2a9d6f",
    "runner-up": "#3f8fd2",
    "best pool": "#9c6ade",
    "documents' rule": "#d1495b",
    "baseline": "#8d99ae",
}
SLOT_COLOURS = {"A": "#3f8fd2", "B": "#d1495b", "C": "#2a9d6f"}
KIND_COLOURS = {
    "gemm": "#3f8fd2",
    "attention": "#d1495b",
    "experts": "#c2579b",
    "memory": "#8d99ae",
    "collective": "#c98b2b",
    "network": "#2a9d6f",
}
CSS = """
<style>
.block-container {padding-top: 4.2rem; padding-bottom: 3rem; max-width: 1360px}
.ap-stats {display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .5rem 1rem}
.ap-stats div {border-left: 3px solid rgba(128,128,128,.4); padding-left: .6rem}
.ap-stats small {opacity: .8; font-size: .8rem; line-height: 1.2; display: block}
.ap-stats b {font-size: 1.45rem; font-weight: 500; font-variant-numeric: tabular-nums}
.ap-axis {font-size: .8rem; opacity: .75; margin: .1rem 0}
.ap-right {text-align: right}
.ap-map {display: grid; gap: 2px}
.ap-map, .ap-tornado {font-variant-numeric: tabular-nums}
.ap-rowlabel {display: flex; align-items: center; justify-content: flex-end; padding-right: .4rem; font-size: .85rem}
.ap-collabel {text-align: center; font-size: .85rem; align-self: start}
.ap-cell {display: flex; flex-direction: column; align-items: center; justify-content: center; border-radius: 4px;
  background: color-mix(in srgb, var(--c) 34%, transparent); border: 1px solid var(--c); line-height: 1.15;
  font-size: .88rem; overflow: hidden}
.ap-cell b {font-weight: 600}
.ap-cell b, .ap-cell small {position: relative; z-index: 2; padding: 0 .3rem; border-radius: 3px;
  background: color-mix(in srgb, var(--c, gray) 34%, Canvas)}
.ap-hatched small {background: Canvas}
.ap-cell small {font-size: .74rem; opacity: .85; text-align: center}
.ap-hatched {border: 1px solid rgba(128,128,128,.5);
  background: repeating-linear-gradient(45deg, rgba(128,128,128,.35) 0 2px, transparent 2px 9px)}
.ap-chosen {outline: 3px solid currentColor; outline-offset: -2px}
.ap-over {position: relative; pointer-events: none; z-index: 1}
.ap-band {position: absolute; left: 0; right: 0; background: currentColor; opacity: .13}
.ap-line {position: absolute; left: 0; right: 0; border-top: 3px dashed currentColor}
.ap-tornado {display: grid; grid-template-columns: minmax(6.5rem, 15rem) 1fr; gap: .2rem .6rem; font-size: .82rem;
  align-items: center}
.ap-now {text-align: center; font-weight: 600}
.ap-factor {text-align: right; line-height: 1.15}
.ap-bars {position: relative; height: 1.7rem}
.ap-bars i {position: absolute; left: 50%; top: 0; bottom: 0; border-left: 1px solid currentColor; opacity: .5}
.ap-bar {position: absolute; top: .2rem; bottom: .2rem; border-radius: 2px; opacity: .8}
.ap-barlabel {position: absolute; top: .3rem; font-size: .74rem; white-space: nowrap}
.ap-legend {display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .85rem; margin: .2rem 0 .4rem}
.ap-swatch {display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem}
@media (max-width: 640px) {.block-container {padding-left: 1rem; padding-right: 1rem}
  h1 {font-size: 1.6rem !important} .ap-desk {display: none} .ap-barlabel {font-size: .64rem}
  .ap-tornado {grid-template-columns: 1fr} .ap-tornado > div:first-child {display: none}
  .ap-factor {text-align: left}
  .ap-cell {font-size: .76rem} .ap-cell small {font-size: .68rem}}
</style>
"""


def apply() -> None:
    """Rules for every page."""
    st.html(CSS)


def legend(colours: dict[str, str]) -> str:
    """Swatches with names, as HTML."""
    parts = (
        f'<span><span class="ap-swatch" style="background:{colour}"></span>{name}</span>'
        for name, colour in colours.items()
    )
    return f'<div class="ap-legend">{"".join(parts)}</div>'


def stats(rows: list[tuple[str, str, str]]) -> str:
    """(name, value, definition) each, as HTML; the definition shows on hover and is in the page's glossary."""
    parts = (
        f'<div title="{escape(what)}"><small>{escape(name)}</small><b>{escape(value)}</b></div>'
        for name, value, what in rows
    )
    return f'<div class="ap-stats">{"".join(parts)}</div>'
