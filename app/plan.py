"""Plan: inputs, the chosen policy, why, memory with signed headroom, and the file."""

from __future__ import annotations

import shlex

import streamlit as st

from app import charts, style, tables
from app.inputs import choose
from app.planning import allocation_json, parsed
from app.question import canonical_command, question_words
from planner.commands.make import threshold_lines
from planner.explain import explain
from simulator.allocation import Allocation, Choice
from simulator.units import format_seconds


def show() -> None:
    st.title("Plan")
    st.caption(
        "The best placement of attention and feed-forward for every phase and prompt length: when a pool pays, "
        "with how many GPUs, and who holds which heads."
    )
    words = question_words()
    command = canonical_command(words)
    st.markdown("**The same on the command line**")
    st.code(command, language=None, wrap_lines=True)
    text = allocation_json(words)
    if text is None:
        return
    allocation = parsed(text)
    _summary(allocation)
    st.download_button(
        "Download allocation.json", text.encode(), "allocation.json", "application/json", icon=":material/download:"
    )
    st.dataframe(tables.policy_rows(allocation), hide_index=True, width="stretch")
    _pins(words)
    _entry(allocation)
    with st.expander("What the words mean", icon=":material/menu_book:"):
        st.dataframe(tables.definition_rows(), hide_index=True, width="stretch")
    with st.expander("The whole explanation, and what it assumes", icon=":material/article:"):
        st.code(explain(allocation), language=None)
        for line in allocation.assumptions:
            st.text(f"assumed: {line}")


def _summary(allocation: Allocation) -> None:
    """The thresholds and the tightest memory, in sentences."""
    for line in threshold_lines(allocation):
        head, _, rest = line.partition(": ")
        st.markdown(f"**{head}**: {rest}")


def _pins(words: tuple[str, ...]) -> None:
    """Send this plan to the Compare page."""
    with st.container(horizontal=True):
        for slot in ("a", "b", "c"):
            if st.button(f"Pin as {slot.upper()}", key=f"pin.{slot}", icon=":material/push_pin:"):
                pins = st.session_state.setdefault("pins", {})
                pins[slot] = shlex.join(words)
                st.toast(f"Pinned as {slot.upper()}; see Compare")


def _entry(allocation: Allocation) -> None:
    """One phase and bucket in detail."""
    names = [f"{choice.phase}-{choice.bucket}" for choice in allocation.policy]
    by_name = dict(zip(names, allocation.policy, strict=True))
    name = choose("entry", "Look at", tuple(names), names[0])
    choice = by_name[name]
    st.caption(tables.title(choice))
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.markdown("#### Against what it was compared with")
        rows = _rival_rows(choice)
        kinds = {str(row["kind"]) for row in rows}
        st.html(style.legend({kind: colour for kind, colour in style.RIVAL_COLOURS.items() if kind in kinds}))
        st.altair_chart(charts.rivals(rows), width="stretch")
        _refused(choice)
    with right:
        st.markdown("#### Why")
        _why(choice)
        st.dataframe(tables.metric_rows(choice), hide_index=True, width="stretch")
    st.markdown("#### Memory a rank")
    tightest = min(choice.memory, key=lambda row: row.headroom_bytes)
    st.caption(
        f"Rank {tightest.rank} is the tightest. Tag: assumed (datasheet capacity; bytes follow from the program)."
    )
    st.dataframe(tables.memory_rows(choice), hide_index=True, width="stretch", height=250)


def _why(choice: Choice) -> None:
    """Binding, margin and proof."""
    shares = sorted(choice.binding.shares.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    st.markdown(f"Bound by **{choice.binding.kind}**. On the critical path: {parts}.")
    if choice.margin is not None and choice.runner_up is not None:
        sure = "**too close to call**" if choice.too_close_to_call else "the intervals agree on the winner"
        margin = choice.margin
        ends = f"{margin.p05:+.1%} to {margin.p95:+.1%}".replace("-", "−")
        st.markdown(f"Ahead of `{choice.runner_up.name}` by {margin.value:.1%} ({ends}): {sure}.")
    proof = choice.search
    gap = "proved optimal" if proof.gap == 0 else f"within {proof.gap:.1%} of the optimum"
    st.markdown(
        f"{proof.candidates:,} candidates bounded, {proof.simulated} simulated: {gap}. Exactness: {choice.exactness}."
    )


def _rival_rows(choice: Choice) -> list[dict[str, object]]:
    rows, names = [], set()
    step = choice.metrics.step_s
    entries = [("chosen", choice.placement.name, step)]
    entries += [(what, rival.name, rival.step_s) for what, rival in tables.rivals(choice) if rival.step_s is not None]
    for kind, name, interval in entries:
        if name in names:
            continue
        names.add(name)
        rows.append(
            {
                "name": name, "kind": kind, "ms": interval.value * charts.MS, "low": interval.p05 * charts.MS,
                "high": interval.p95 * charts.MS, "tag": interval.tag, "shown": format_seconds(interval.value),
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: float(str(row["ms"])))


def _refused(choice: Choice) -> None:
    """Rivals that cannot run, with the reason."""
    for what, rival in tables.rivals(choice):
        if rival.infeasible:
            st.text(f"{what}: {rival.infeasible}")
