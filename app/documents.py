"""Documents: every statement of the five documents, what attnplan computes for it, and the verdict; filterable."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import style
from app.inputs import choose, write
from planner.paper.statement import DOCUMENTS, Statement
from planner.paper.statements import counts, rows

ALL = "all"
MARKS = {
    "consistent": "✓",
    "inconsistent": "✗",
    "only under assumption": "◐",
    "specification, implemented": "▣",
    "unverifiable": "?",
    "not implemented": "–",
}


def show() -> None:
    st.title("Documents")
    st.caption(
        "Each statement of the five documents beside what arithmetic and simulation give. Verdicts are computed."
    )
    with st.spinner("Computing 146 statements …"):
        every = statements()
    found = counts(every)
    st.html(
        style.stats([(f"{MARKS[verdict]} {verdict}", str(count), "statements") for verdict, count in found.items()])
    )
    first, second, third = st.columns([2, 2, 3])
    with first:
        title = choose("document", "Document", (ALL, *DOCUMENTS.values()), ALL)
    with second:
        verdict = choose("verdict", "Verdict", (ALL, *MARKS), ALL)
    with third:
        words = write("search", "Search", placeholder="a word of the claim or of our finding")
    shown = chosen(every, title, verdict, words)
    if not shown:
        st.info("No statement matches: widen the filters.", icon=":material/filter_alt_off:")
        return
    st.caption(f"{len(shown)} of {len(every)} statements. Choose a row, or its number below, to read it in full.")
    _table(shown)
    _one(shown)


@st.cache_resource(show_spinner=False)
def statements() -> tuple[Statement, ...]:
    return rows()


def chosen(every: Sequence[Statement], title: str, verdict: str, words: str) -> list[Statement]:
    """Those that pass all filters; ``words`` anywhere, in any case."""
    wanted = words.casefold()
    return [
        row
        for row in every
        if title in (ALL, row.document)
        and verdict in (ALL, row.verdict)
        and wanted in f"{row.id} {row.claim} {row.ours} {row.criterion} {row.assumptions}".casefold()
    ]


def _table(shown: list[Statement]) -> None:
    table = [
        {
            "id": row.id, "verdict": f"{MARKS[row.verdict]} {row.verdict}", "the document says": row.claim,
            "attnplan finds": row.ours, "tag": row.tag,
        }
        for row in shown
    ]  # fmt: skip
    widths = {"id": st.column_config.TextColumn(width=45), "tag": st.column_config.TextColumn(width=70)}
    event = st.dataframe(
        table, hide_index=True, width="stretch", height=430, on_select="rerun", selection_mode="single-row",
        column_config=widths, key="statements",
    )  # fmt: skip
    picked = [shown[index].id for index in event["selection"]["rows"] if index < len(shown)]
    if picked and picked[0] != st.session_state.get("picked"):
        st.session_state["statement"] = picked[0]
    st.session_state["picked"] = picked[0] if picked else None


def _one(shown: list[Statement]) -> None:
    """A statement in full; its number is in the address."""
    by_id = {row.id: row for row in shown}
    if st.session_state.get("statement") not in (None, *by_id):
        del st.session_state["statement"]
    row = by_id[choose("statement", "Statement", tuple(by_id), next(iter(by_id)))]
    with st.container(border=True):
        st.markdown(f"**{row.id}** · {row.document} · {MARKS[row.verdict]} {row.verdict} · {row.tag}")
        for name, text in (
            ("The document says", row.claim), ("attnplan finds", row.ours), ("Judged by", row.criterion),
            ("Leaning on", row.assumptions),
        ):  # fmt: skip
            if text:
                st.caption(name)
                st.text(text)
