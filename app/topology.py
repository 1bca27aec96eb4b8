"""Topology: the cluster drawn: racks, nodes, GPUs by role with the heads and experts they hold, links with their load;
click a GPU (or Tab to it and press Enter) for detail."""

from __future__ import annotations

import streamlit as st

from app import style
from app.diagram import Tile, diagram
from app.inputs import choose
from app.steps import Simulated, choose_step, role_of, step_of
from simulator.cluster import Cluster
from simulator.placement import Placement, Stage
from simulator.simulation.timeline import link_utilisation, rank_times
from simulator.units import GB, format_bytes, format_seconds

MOST_LINKS = 24
CSS = """
.scroll {overflow: auto; max-height: 58rem; color: var(--st-text-color); font-family: var(--st-font)}
.net {width: 100%; min-width: 900px; display: block}
.net text {fill: currentColor; font-variant-numeric: tabular-nums}
.net .halo {paint-order: stroke; stroke: var(--st-background-color); stroke-width: 4px; stroke-linejoin: round}
.net .rack {fill: none; stroke: currentColor; stroke-opacity: .3; stroke-dasharray: 4 4}
.net .leaf, .net .inside, .net .nic {fill: var(--st-secondary-background-color); stroke: currentColor;
  stroke-opacity: .35}
.net .idle {fill: var(--st-background-color); stroke: currentColor; stroke-opacity: .25; stroke-dasharray: 2 3}
.net .rail {fill: none; stroke: currentColor; stroke-opacity: .4; stroke-width: 1.5}
.net .gpu {cursor: pointer; outline: none}
.net .gpu text:first-of-type {font-weight: 700}
.net .gpu rect {fill: color-mix(in srgb, var(--c) 32%, var(--st-background-color)); stroke: var(--c); stroke-width: 1.5}
.net .gpu:hover rect {fill: color-mix(in srgb, var(--c) 55%, var(--st-background-color))}
.net .gpu:focus-visible rect, .net .chosen rect {stroke: currentColor; stroke-width: 3.5}
"""
JS = """
export default function ({data, parentElement, setTriggerValue}) {
  const box = parentElement.querySelector('.scroll');
  const at = [box.scrollLeft, box.scrollTop];
  box.innerHTML = data;
  [box.scrollLeft, box.scrollTop] = at;
  for (const gpu of box.querySelectorAll('[data-rank]')) {
    const choose = () => setTriggerValue('gpu', Number(gpu.dataset.rank));
    gpu.onclick = choose;
    gpu.onkeydown = (event) => {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); choose(); }
    };
  }
}
"""


def show() -> None:
    st.title("Topology")
    st.caption(
        "Who does what, and how full every link is over the step. Click a GPU, or choose its number, for detail."
    )
    found = step_of(choose_step())
    loads = link_utilisation(found.timeline)
    cluster = found.where.problem.cluster
    rows = tiles(found)
    used = {tile.role for tile in rows}
    st.html(style.legend({role: colour for role, colour in style.ROLE_COLOURS.items() if role in used}))
    st.caption(
        f"{fabric_sentence(cluster)} ↑ out, ↓ in: bytes carried over capacity × step time. h: attention heads, "
        f"E: experts, FF: shard of the feed-forward, q and kv: block of queries and of keys, L: layers. "
        f"Step {format_seconds(found.timeline.duration_s)}, {found.placement.name}. Tag: {found.tag}."
    )
    ranks = tuple(tile.rank for tile in rows)
    if st.session_state.get("rank") not in (None, *ranks):
        del st.session_state["rank"]
    picture = st.container()
    rank = choose("rank", "GPU", ranks, ranks[0])
    with picture:
        _mount(diagram(cluster, rows, loads, rank))
    left, right = st.columns(2, gap="large")
    with left:
        _detail(found, rank, loads)
    with right:
        _busiest(found, loads)


def _mount(svg: str) -> None:
    """The drawing, and a click on it. Only our own, escaped markup goes in."""
    component = st.components.v2.component(
        "topology", html='<div class="scroll"></div>', css=CSS, js=JS, isolate_styles=True
    )
    component(data=svg, key="map", on_gpu_change=_clicked)


def _clicked() -> None:
    """A GPU of the drawing becomes the chosen one."""
    clicked = st.session_state["map"].get("gpu")
    if isinstance(clicked, int | float):
        st.session_state["rank"] = int(clicked)


def tiles(found: Simulated) -> list[Tile]:
    """A tile a GPU of the cluster."""
    return [
        Tile(rank, local, role_of(found.placement, rank), brief(found.placement, rank))
        for rank, (_, local, _) in enumerate(found.where.problem.cluster.rank_nodes())
    ]


def holds(placement: Placement, rank: int) -> str:
    """``heads 0–3, query block 2/4; feed-forward shard 1/8``: of the first stage that has the rank."""
    for stage in placement.stages:
        parts = [part for part in (_attends(stage, rank), _feeds(stage, rank)) if part]
        if parts:
            layers = f"layers {stage.first_layer}–{stage.last_layer - 1}: " if len(placement.stages) > 1 else ""
            return layers + "; ".join(parts)
    return "nothing"


def brief(placement: Placement, rank: int) -> tuple[str, ...]:
    """What fits a tile, at most two lines: ``h0–3 q2/4``, ``E4–7``, ``L0–1 FF 1/8``."""
    for stage in placement.stages:
        attends, feeds = _attends(stage, rank), _feeds(stage, rank)
        if not attends and not feeds:
            continue
        for long, short in (
            ("heads ", "h"), (", query block ", " q"), (", KV block ", " kv"), (", dim slice ", " d"),
            ("experts ", "E"), ("feed-forward shard ", "FF "),
        ):  # fmt: skip
            attends, feeds = attends.replace(long, short), feeds.replace(long, short)
        layers = f"L{stage.first_layer}–{stage.last_layer - 1} " if len(placement.stages) > 1 else ""
        return tuple(part for part in (attends, layers + feeds if feeds else layers.strip()) if part)
    return ()


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
