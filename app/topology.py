"""Topology: nodes, GPUs by role with the heads and experts they hold, links with their load; click a GPU for detail."""

from __future__ import annotations

from typing import Any, Literal

import altair as alt
import streamlit as st

from app import charts, style
from app.inputs import choose
from app.steps import Simulated, choose_step, role_of, simulated
from simulator.cluster import Cluster
from simulator.placement import Placement, Stage
from simulator.simulation.timeline import link_utilisation, rank_times
from simulator.units import GB, format_bytes, format_seconds

MOST_LINKS = 24


def show() -> None:
    st.title("Topology")
    st.caption(
        "Who does what, and how full every link is over the step. Click a GPU, or choose its number, for detail."
    )
    found = simulated(*choose_step())
    loads = link_utilisation(found.timeline)
    rows = gpu_rows(found, loads)
    used = {str(row["role"]) for row in rows}
    st.html(style.legend({role: colour for role, colour in style.ROLE_COLOURS.items() if role in used}))
    st.caption(fabric_sentence(found.where.problem.cluster))
    event = st.altair_chart(_map(rows), width="stretch", on_select="rerun", selection_mode="gpu", key="map")
    clicked = _clicked(event)
    ranks = tuple(int(str(row["rank"])) for row in rows)
    if clicked is not None and clicked != st.session_state.get("clicked"):
        st.session_state["clicked"] = st.session_state["rank"] = clicked
    rank = choose("rank", "GPU", ranks, ranks[0])
    left, right = st.columns(2, gap="large")
    with left:
        _detail(found, rank, loads)
    with right:
        _busiest(found, loads)


def gpu_rows(found: Simulated, loads: dict[str, float]) -> list[dict[str, Any]]:
    """A tile a GPU of the cluster."""
    rows = []
    for rank, (node, local, spec) in enumerate(found.where.problem.cluster.rank_nodes()):
        nic = f"node {node} nic {local * spec.nics.count // spec.gpus}" if spec.nics is not None else ""
        load = max(loads.get(f"{nic} out", 0.0), loads.get(f"{nic} in", 0.0))
        rows.append(
            {
                "rank": rank,
                "node": f"node {node}",
                "local": local,
                "role": role_of(found.placement, rank),
                "holds": holds(found.placement, rank),
                "nic load": load,
                "nic": f"NIC {load:.0%}" if nic and load else "",
                "share": brief(found.placement, rank),
                "label": str(rank),
            }
        )
    return rows


def holds(placement: Placement, rank: int) -> str:
    """``heads 0–3 · block 2/4``: of the first stage that has the rank."""
    for stage in placement.stages:
        parts = [part for part in (_attends(stage, rank), _feeds(stage, rank)) if part]
        if parts:
            layers = f"layers {stage.first_layer}–{stage.last_layer - 1}: " if len(placement.stages) > 1 else ""
            return layers + "; ".join(parts)
    return "nothing"


def brief(placement: Placement, rank: int) -> str:
    """What fits a tile: ``h0–3``, ``E4–7`` or ``FF 1/8``."""
    words = holds(placement, rank).partition(": ")[2] or holds(placement, rank)
    if words.startswith("heads "):
        return "h" + words.removeprefix("heads ").split(",")[0].split(";")[0]
    if words.startswith("experts "):
        return "E" + words.removeprefix("experts ")
    return "FF " + words.rpartition(" ")[2] if words.startswith("feed") else ""


def fabric_sentence(cluster: Cluster) -> str:
    """Racks, leaves and what they are worth."""
    fabric = cluster.fabric
    leaf = "every node under one rack" if fabric.nodes_per_leaf is None else f"{fabric.nodes_per_leaf} nodes a rack"
    rails = "NIC i of each node on leaf switch i" if fabric.rails else "one leaf switch a rack"
    nics = {node.nics.count for node in cluster.nodes if node.nics is not None}
    cards = f"{', '.join(str(count) for count in sorted(nics))} NICs a node; " if nics else ""
    return f"{cluster.name}: {cards}{leaf}, {rails}, uplinks oversubscribed {fabric.oversubscription:g}:1."


def _attends(stage: Stage, rank: int) -> str:
    if rank not in stage.attention_ranks:
        return ""
    head, query, kv, dim = stage.grid.coordinates(stage.attention_ranks.index(rank))
    first = sum(stage.grid.heads[:head])
    parts = [f"heads {first}–{first + stage.grid.heads[head] - 1}"]
    for name, index, count in (
        ("query block", query, stage.grid.query_blocks),
        ("KV block", kv, stage.grid.kv_blocks),
        ("dim slice", dim, stage.grid.dim_slices),
    ):
        if count > 1:
            parts.append(f"{name} {index + 1}/{count}")
    return ", ".join(parts)


def _feeds(stage: Stage, rank: int) -> str:
    if rank not in stage.feed_forward_ranks:
        return ""
    index = stage.feed_forward_ranks.index(rank)
    if stage.experts is not None:
        first = sum(stage.experts[:index])
        return f"experts {first}–{first + stage.experts[index] - 1}"
    return f"feed-forward shard {index % stage.tensor_degree + 1}/{stage.tensor_degree}"


def _map(rows: list[dict[str, Any]]) -> charts.Drawn:
    """GPUs by node: number, what it holds, and the load of its NIC in the busier direction."""
    nodes = list(dict.fromkeys(row["node"] for row in rows))
    click = alt.selection_point(name="gpu", fields=["rank"], on="click", empty=False)
    base = alt.Chart(charts.data(rows)).encode(
        x=alt.X(
            "local:O",
            title="GPU in its node",
            axis=alt.Axis(labelAngle=0, orient="bottom"),
        ),
        y=alt.Y("node:O", sort=nodes, title=None),
        tooltip=["rank:Q", "role:N", "holds:N", alt.Tooltip("nic load:Q", format=".1%")],
    )
    roles = alt.Scale(domain=list(style.ROLE_COLOURS), range=list(style.ROLE_COLOURS.values()))
    tiles = base.mark_rect(cornerRadius=5, cursor="pointer").encode(
        color=alt.Color("role:N", scale=roles, legend=None),
        opacity=alt.condition(alt.datum.role == "unused", alt.value(0.22), alt.value(0.8)),
        stroke=alt.condition(click, alt.value("#111"), alt.value("#fff")),
        strokeWidth=alt.condition(click, alt.value(3), alt.value(1)),
    )
    ink = alt.condition(alt.datum.role == "unused", alt.value("#808080"), alt.value("#fff"))
    texts: tuple[tuple[str, float, float, Literal[400, 700]], ...] = (
        ("label", -16, 14, 700),
        ("share", 1, 10, 400),
        ("nic", 15, 9.5, 400),
    )
    lines = [
        base.mark_text(dy=dy, fontSize=size, fontWeight=weight).encode(text=f"{field}:N", color=ink)
        for field, dy, size, weight in texts
    ]
    return alt.layer(tiles.add_params(click), *lines).properties(height=60 * len(nodes) + 50)


def _clicked(event: Any) -> int | None:
    """The rank of a clicked tile."""
    chosen = getattr(event, "selection", {}).get("gpu") or []
    return int(chosen[0]["rank"]) if chosen and "rank" in chosen[0] else None


def _detail(found: Simulated, rank: int, loads: dict[str, float]) -> None:
    node, local, spec = found.where.problem.cluster.rank_nodes()[rank]
    st.markdown(f"#### GPU {rank}: node {node}, {spec.gpu} {local}")
    st.text(f"role: {role_of(found.placement, rank)}\nholds: {holds(found.placement, rank)}")
    memory = next((row for row in found.memory if row.rank == rank), None)
    if memory is None:
        st.info("This GPU takes no part in the step.", icon=":material/bedtime:")
        return
    times = rank_times(found.timeline, rank)
    rows = [
        ("computes", format_seconds(times.compute_s), found.tag),
        ("exposed communication", format_seconds(times.exposed_s), found.tag),
        ("hidden communication", format_seconds(times.hidden_s), found.tag),
        ("idle", format_seconds(times.idle_s), found.tag),
        ("weights", format_bytes(memory.weights_bytes), "assumed"),
        ("KV cache", format_bytes(memory.kv_cache_bytes), "assumed"),
        ("activations and buffers", format_bytes(memory.activations_bytes + memory.buffers_bytes), "assumed"),
        (
            "headroom",
            ("+" if memory.headroom_bytes >= 0 else "−") + format_bytes(abs(memory.headroom_bytes)),
            "assumed",
        ),
    ]
    prefixes = (f"node {node} gpu {local} ",)
    rows += [(f"link {name}", f"{load:.1%}", found.tag) for name, load in loads.items() if name.startswith(prefixes)]
    st.dataframe([{"what": a, "value": b, "tag": c} for a, b, c in rows], hide_index=True, width="stretch")


def _busiest(found: Simulated, loads: dict[str, float]) -> None:
    st.markdown("#### Busiest links over the step")
    if not loads:
        st.info("No link carries anything in this step.", icon=":material/link_off:")
        return
    rates = {one.name: one.bandwidth_bytes_per_s for one in found.timeline.resources}
    rows = [
        {"link": name, "load": load * 100, "GB/s": f"{rates[name] / GB:.4g}"}
        for name, load in list(loads.items())[:MOST_LINKS]
    ]
    config = {
        "load": st.column_config.ProgressColumn("load, % of capacity", format="%.1f %%", min_value=0, max_value=100)
    }
    st.dataframe(rows, column_config=config, hide_index=True, width="stretch", height=400)
    st.caption(f"Bytes carried over capacity × step time. Tag: {found.tag}. 100 % is a link that is never idle.")
