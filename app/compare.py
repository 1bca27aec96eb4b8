"""Compare: up to three plans side by side: deltas, where the time goes, and the Pareto fronts."""

from __future__ import annotations

from typing import Any, cast

import streamlit as st

from app import charts, style
from app.inputs import choose, note, write
from app.planning import allocation_json, parsed
from app.question import preset_words
from app.tables import plain, span
from planner.execution import read_inputs
from simulator.allocation import Allocation, Choice
from simulator.errors import AttnplanError
from simulator.lowering import lower
from simulator.simulation.engine import simulate
from simulator.simulation.timeline import Breakdown, breakdown, rank_times
from simulator.units import format_seconds
from simulator.workload import Phase, decode_step, prefill_step

SLOTS = ("a", "b", "c")
START = {"a": "fa-pool", "b": "fa-pool --cluster dgx-a100-5-nic1", "c": ""}
Plans = dict[str, Allocation]


def show() -> None:
    st.title("Compare")
    st.caption(
        "Up to three plans: write what you would write after `plan make`, or pin one on the Plan page. B and C are "
        "compared with A."
    )
    plans = _plans()
    if not plans:
        st.info("Nothing to compare yet: write a scenario such as fa-pool into A.", icon=":material/compare_arrows:")
        return
    left, right = st.columns(2)
    with left:
        phase = cast(Phase, choose("phase", "Phase", ("prefill", "decode"), "prefill"))
    first = next(iter(plans.values()))
    lengths = tuple(choice.tokens for choice in first.policy if choice.phase == phase)
    with right:
        tokens = choose("tokens", "Prompt tokens", lengths, lengths[-1])
    chosen = _choices(plans, phase, tokens)
    st.dataframe(delta_rows(chosen), hide_index=True, width="stretch")
    st.markdown("#### Where the step's time goes")
    st.html(style.legend(style.PART_COLOURS))
    st.altair_chart(charts.breakdown(_breakdown_rows(plans, chosen)), width="stretch")
    st.caption(
        "Mean over the plan's ranks; the parts sum to the step. Compute hiding communication: a transfer is in flight "
        "meanwhile. Exposed: a transfer is in flight and nothing is computed. Launch: the device waits for its host. "
        "Imbalance: nothing to do and nothing in flight. Tag: that of the step."
    )
    st.markdown("#### Fewest GPUs for a step time (Pareto front)")
    st.altair_chart(charts.pareto(_pareto_rows(chosen)), width="stretch")
    st.caption("Of the candidates that were simulated; a step to the right that is not lower is not on the front.")


def _plans() -> Plans:
    """The slots that hold a plan; the others say why not."""
    _take_pins()
    found: Plans = {}
    columns = st.columns(3)
    texts = {}
    for slot, column in zip(SLOTS, columns, strict=True):
        with column:
            texts[slot] = write(slot, f"Plan {slot.upper()}", value=START[slot], placeholder="scenario and options")
    for slot, text in texts.items():
        if not text:
            continue
        try:
            made = allocation_json(preset_words(text))
        except AttnplanError as error:
            note(f"plan {slot.upper()}: {error}")
            continue
        if made is not None:
            found[slot.upper()] = parsed(made)
    return found


def _take_pins() -> None:
    """What was pinned elsewhere goes into the address, from which the boxes take it, as they do after a reload."""
    pins: dict[str, str] = st.session_state.pop("pins", {})
    if pins:
        for slot, text in pins.items():
            st.session_state.pop(slot, None)
            st.query_params[slot] = text
        st.rerun()


def _choices(plans: Plans, phase: Phase, tokens: int) -> dict[str, Choice]:
    found = {}
    for slot, allocation in plans.items():
        try:
            found[slot] = allocation.choice(phase, tokens)
        except LookupError:
            note(f"plan {slot}: its workload has no {phase} bucket for {tokens} tokens", "info")
    return found


def delta_rows(chosen: dict[str, Choice]) -> list[dict[str, object]]:
    """A row a plan; deltas against the first."""
    rows: list[dict[str, object]] = []
    base = next(iter(chosen.values()), None)
    for slot, choice in chosen.items():
        assert base is not None
        step, rate = choice.metrics.step_s, choice.metrics.tokens_per_s_per_gpu
        same = slot == next(iter(chosen))
        rows.append(
            {
                "plan": slot,
                "placement": choice.placement.name,
                "GPUs": choice.num_gpus,
                "pool": choice.pool_gpus,
                "step": format_seconds(step.value),
                "90 % interval": span(step),
                "Δ step": "" if same else _delta(step.value, base.metrics.step_s.value),
                "tokens/s a GPU": plain(rate.value),
                "Δ a GPU": "" if same else _delta(rate.value, base.metrics.tokens_per_s_per_gpu.value),
                "bound by": choice.binding.kind,
                "tag": step.tag,
            }
        )
    return rows


def _delta(value: float, base: float) -> str:
    return f"{value / base - 1:+.1%}".replace("-", "−")


@st.cache_resource(max_entries=48, show_spinner="Simulating the chosen step …")
def parts_of(_allocation: Allocation, command: str, phase: Phase, tokens: int) -> tuple[Breakdown, float]:
    """(parts of the step, hidden seconds), means over ranks; ``command`` stands for the allocation."""
    choice = _allocation.choice(phase, tokens)
    inputs = read_inputs(_allocation)
    nodes = tuple(node for node, _, _ in inputs.cluster.rank_nodes())
    step = (prefill_step if phase == "prefill" else decode_step)(choice.batch, choice.tokens)
    cache = _allocation.choice("decode", tokens).placement
    program = lower(inputs.model, step, choice.placement, nodes=nodes, dtype=_allocation.dtype, cache=cache)
    timeline = simulate(program, inputs.cluster, inputs.profiles)
    hidden = [rank_times(timeline, rank).hidden_s for rank in timeline.ranks]
    return breakdown(timeline), sum(hidden) / len(hidden)


def _breakdown_rows(plans: Plans, chosen: dict[str, Choice]) -> list[dict[str, Any]]:
    rows = []
    for slot, choice in chosen.items():
        parts, hidden_s = parts_of(plans[slot], plans[slot].command, choice.phase, choice.tokens)
        hiding_s = min(hidden_s, parts.compute_s)
        seconds = (
            parts.compute_s - hiding_s, hiding_s, parts.exposed_communication_s, parts.launch_s, parts.imbalance_s,
        )  # fmt: skip
        rows += [
            {"plan": f"{slot} {choice.placement.name}", "part": part, "ms": value * charts.MS, "order": index}
            for index, (part, value) in enumerate(zip(style.PART_COLOURS, seconds, strict=True))
        ]
    return rows


def _pareto_rows(chosen: dict[str, Choice]) -> list[dict[str, Any]]:
    return [
        {"plan": slot, "gpus": point.num_gpus, "ms": point.step_s * charts.MS, "name": point.name}
        for slot, choice in chosen.items()
        for point in choice.pareto
    ]
