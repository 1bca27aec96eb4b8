"""Diagram: a cluster as SVG: racks, switches, nodes, GPUs by role with what they hold, and the load of every link.

Rails: NIC i of every node of a rack hangs on a vertical line to leaf switch i. Without rails a rack's NICs share one
trunk to its leaf. A link's colour and width grow with its load; figures are per cent of capacity over the step. Nodes
that do nothing are folded to a line. What it leaves out: a route's single hops, and pairwise NVLinks one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Literal

from app.style import ROLE_COLOURS
from simulator.cluster import Cluster, Node

Loads = Mapping[str, float]
WIDTH = 1180.0
EDGE, GUTTER = 34.0, 18.0
"""Left and right of a rack's tiles; between tiles, where rails run."""
HEAD, SWITCH, PORT, TILE, NIC, FOOT = 6.0, 22.0, 24.0, 58.0, 20.0, 14.0
"""Heights of a node's parts, top to bottom; FOOT is the gap below it."""
FOLDED, LEAF, TOP = 26.0, 24.0, 40.0
MOST_NODES = 32
LINK_NAMES = {"switch": "NVSwitch", "pairwise": "NVLink pairs", "pcie": "PCIe bus", "shared_memory": "shared memory"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One GPU: ``lines`` say what it holds."""

    rank: int
    local: int
    role: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One node: its number, its spec, its GPUs."""

    number: int
    spec: Node
    tiles: tuple[Tile, ...]

    @property
    def idle(self) -> bool:
        return all(tile.role == "unused" for tile in self.tiles)

    @property
    def height(self) -> float:
        nics = NIC + 12 if self.spec.nics is not None else 0.0
        return FOLDED if self.idle else HEAD + SWITCH + PORT + TILE + nics + FOOT


def diagram(cluster: Cluster, tiles: Iterable[Tile], loads: Loads, chosen: int) -> str:
    """The whole drawing. ``chosen``: the outlined rank."""
    nodes = _nodes(cluster, {tile.rank: tile for tile in tiles})
    racks = _racks(cluster, nodes[:MOST_NODES])
    spine = len(racks) > 1
    parts, y = [], 8.0
    if spine:
        parts.append(_switch_box(EDGE, y, WIDTH - 2 * EDGE, "spine", 0.0))
        y += LEAF + 22
    for number, rack in racks.items():
        drawn, y = _rack(cluster, (number, rack), loads, (y, chosen), spine=spine)
        parts.append(drawn)
    if len(nodes) > MOST_NODES:
        parts.append(_text(EDGE, y + 14, f"… and {len(nodes) - MOST_NODES} more nodes", size=13, anchor="start"))
        y += 24
    words = f"{cluster.name}: GPUs by role and the load of their links; the tables below have the same"
    return (
        f'<svg class="net" viewBox="0 0 {WIDTH:.0f} {y:.0f}" role="group" aria-label="{escape(words)}">'
        f"{''.join(parts)}</svg>"
    )


def _nodes(cluster: Cluster, tiles: Mapping[int, Tile]) -> list[Drawn]:
    found: dict[int, tuple[Node, list[Tile]]] = {}
    for rank, (number, _, spec) in enumerate(cluster.rank_nodes()):
        found.setdefault(number, (spec, []))[1].append(tiles[rank])
    return [Drawn(number, spec, tuple(own)) for number, (spec, own) in found.items()]


def _racks(cluster: Cluster, nodes: list[Drawn]) -> dict[int, list[Drawn]]:
    size = cluster.fabric.nodes_per_leaf or max(len(nodes), 1)
    racks: dict[int, list[Drawn]] = {}
    for node in nodes:
        racks.setdefault(node.number // size, []).append(node)
    return racks


def _rack(
    cluster: Cluster, rack: tuple[int, list[Drawn]], loads: Loads, at: tuple[float, int], *, spine: bool
) -> tuple[str, float]:
    """(drawing, y below it). ``at``: (top, chosen rank)."""
    (number, nodes), (top, chosen) = rack, at
    wired = any(node.spec.nics is not None for node in nodes) and cluster.num_ranks > nodes[0].spec.gpus
    y = top + TOP + (LEAF if wired else 0.0)
    cards, ends = [], []
    for node in nodes:
        cards.append(_node(node, loads, y, chosen, wired=wired))
        if wired and not node.idle:
            ends.append((node, y + node.height - FOOT - NIC / 2))
        y += node.height
    label = f"rack {number}" if spine else "one rack" if wired else "one machine"
    frame = (
        f'<rect class="rack" x="4" y="{top:.0f}" width="{WIDTH - 8:.0f}" height="{y + 6 - top:.0f}" rx="10"/>'
        + _text(16, top + 18, f"{label}, {len(nodes)} nodes" if len(nodes) > 1 else label, size=13, anchor="start")
    )
    wires = _wires(cluster, number, ends, loads, top + 28) if wired else ""
    return frame + wires + "".join(cards), y + 20


def _wires(cluster: Cluster, rack: int, ends: list[tuple[Drawn, float]], loads: Loads, top: float) -> str:
    """Leaf switches at ``top``, a line down from each, and a stub to every NIC on it; drawn under the NICs' boxes."""
    if not ends:
        return ""
    nics = {index: _nic_span(node.spec, index) for node, _ in ends for index in _nic_indices(node.spec)}
    bottom = ends[-1][1]
    if not cluster.fabric.rails:
        x = WIDTH - EDGE + 12
        stubs = "".join(f'<path class="rail" d="M{_last(node.spec):.1f} {y:.1f}H{x:.1f}"/>' for node, y in ends)
        load = _uplink(loads, f"leaf {rack}")
        return f'<path class="rail" d="M{x:.1f} {top + LEAF:.1f}V{bottom:.1f}"/>{stubs}' + _switch_box(
            WIDTH / 2, top, WIDTH / 2 - EDGE + 20, "leaf switch", load
        )
    parts = []
    for index, (left, right) in nics.items():
        x = right + GUTTER / 2
        rows = [y for node, y in ends if index in _nic_indices(node.spec)]
        stubs = "".join(f"M{right:.1f} {y:.1f}H{x:.1f}" for y in rows)
        parts.append(f'<path class="rail" d="M{x:.1f} {top + LEAF:.1f}V{rows[-1]:.1f}{stubs}"/>')
        load = _uplink(loads, f"leaf {rack}.{index}")
        parts.append(_switch_box(left, top, right - left + GUTTER / 2 + 5, f"leaf {index}", load))
    return "".join(parts)


def _uplink(loads: Loads, leaf: str) -> float:
    return max(loads.get(f"{leaf} up", 0.0), loads.get(f"{leaf} down", 0.0))


def _switch_box(x: float, y: float, width: float, name: str, load: float) -> str:
    label = f"{name} · uplink {load:.0%}" if load else name
    return f'<rect class="leaf" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{LEAF}" rx="4"/>' + _text(
        x + width / 2, y + 16.5, label, size=12.5
    )


def _columns(spec: Node) -> list[tuple[float, float]]:
    """(left, right) of every GPU of a node."""
    wide = (WIDTH - 2 * EDGE - GUTTER * spec.gpus) / spec.gpus
    return [(EDGE + i * (wide + GUTTER), EDGE + i * (wide + GUTTER) + wide) for i in range(spec.gpus)]


def _last(spec: Node) -> float:
    return _columns(spec)[-1][1]


def _nic_indices(spec: Node) -> list[int]:
    """The NICs that GPUs send by (GPU i: NIC i·count//gpus), as the simulator numbers them."""
    if spec.nics is None:
        return []
    return list(dict.fromkeys(local * spec.nics.count // spec.gpus for local in range(spec.gpus)))


def _nic_span(spec: Node, index: int) -> tuple[float, float]:
    """A NIC's box is as wide as the GPUs that use it."""
    assert spec.nics is not None
    own = [i for i in range(spec.gpus) if i * spec.nics.count // spec.gpus == index]
    columns = _columns(spec)
    return columns[own[0]][0], columns[own[-1]][1]


def _node(node: Drawn, loads: Loads, y: float, chosen: int, *, wired: bool) -> str:
    columns = _columns(node.spec)
    name = f"node {node.number}"
    about = f"{name} · {node.spec.gpus} × {node.spec.gpu}"
    if node.idle:
        wide = _last(node.spec) - EDGE
        box = f'<rect class="idle" x="{EDGE}" y="{y:.1f}" width="{wide:.1f}" height="{FOLDED - 6}" rx="5"/>'
        return box + _text(EDGE + 10, y + 14.5, f"{about} · takes no part", size=12.5, anchor="start", halo=True)
    parts = [_inside(node, loads, y + HEAD), _text(EDGE + 10, y + HEAD + 15.5, about, size=13, anchor="start")]
    top = y + HEAD + SWITCH + PORT
    for tile, (left, right) in zip(node.tiles, columns, strict=True):
        parts.append(_port(node, tile, loads, ((left + right) / 2, top - PORT)))
        parts.append(_tile(tile, (left, top, right - left), chosen=tile.rank == chosen))
        if wired:
            parts.append(f'<path class="rail" d="M{(left + right) / 2:.1f} {top + TILE:.1f}v12"/>')
    for index in _nic_indices(node.spec) if wired else ():
        left, right = _nic_span(node.spec, index)
        parts.append(_nic(f"{name} nic {index}", loads, (left, top + TILE + 12, right - left)))
    return "".join(parts)


def _inside(node: Drawn, loads: Loads, y: float) -> str:
    """The bar between a node's GPUs; a shared bus shows its load."""
    columns, kind = _columns(node.spec), node.spec.link.kind
    left, right = columns[0][0], columns[-1][1]
    rate = f"{node.spec.link.bandwidth_bytes_per_s / 1e9:g} GB/s"
    label = f"{LINK_NAMES[kind]} · {rate} each way a GPU" if kind in ("switch", "pairwise") else LINK_NAMES[kind]
    load = loads.get(f"node {node.number} bus", 0.0)
    if kind not in ("switch", "pairwise"):
        label += f" · {rate} · {load:.0%}"
    return (
        f'<rect class="inside" x="{left:.1f}" y="{y:.1f}" width="{right - left:.1f}" height="{SWITCH}" rx="4"/>'
        + _gauge(left, y, (right - left, SWITCH), load)
        + _text(right - 10, y + 15.2, label, size=12, anchor="end")
    )


def _port(node: Drawn, tile: Tile, loads: Loads, at: tuple[float, float]) -> str:
    """A GPU's link to its node's others."""
    x, y = at
    out, into = port_loads(node.spec.link.kind, node.number, tile.local, loads)
    most = max(out, into)
    line = f'<path d="M{x:.1f} {y:.1f}v{PORT}" stroke="{heat(most)}" stroke-width="{1.5 + 7 * most:.1f}"/>'
    if not most:
        return line
    ends = ((x - 9, f"↑{out:.0%}", "end"), (x + 9, f"↓{into:.0%}", "start"))
    return line + "".join(_text(at, y + 16, words, size=11.5, anchor=anchor) for at, words, anchor in ends)


def port_loads(
    kind: Literal["switch", "pairwise", "pcie", "shared_memory"], node: int, local: int, loads: Loads
) -> tuple[float, float]:
    """(out, in) of a GPU's own link inside its node; the busiest pair where links are pairwise; 0 on a bus."""
    if kind == "switch":
        return loads.get(f"node {node} gpu {local} out", 0.0), loads.get(f"node {node} gpu {local} in", 0.0)
    if kind == "pairwise":
        head = f"node {node} gpu "
        out = [load for name, load in loads.items() if name.startswith(f"{head}{local} to ")]
        into = [load for name, load in loads.items() if name.startswith(head) and name.endswith(f" to {local}")]
        return max(out, default=0.0), max(into, default=0.0)
    return 0.0, 0.0


def _tile(tile: Tile, box: tuple[float, float, float], *, chosen: bool) -> str:
    left, top, width = box
    words = f"GPU {tile.rank}, {tile.role}: {', '.join(tile.lines) or 'nothing'}"
    lines = [
        _text(left + width / 2, top + 36 + 15 * index, line, size=12.5) for index, line in enumerate(tile.lines[:2])
    ]
    state = " chosen" if chosen else ""
    return (
        f'<g class="gpu{state}" data-rank="{tile.rank}" tabindex="0" role="button" aria-label="{escape(words)}" '
        f'style="--c:{ROLE_COLOURS[tile.role]}"><title>{escape(words)}</title>'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{TILE}" rx="7"/>'
        + _text(left + width / 2, top + 19, str(tile.rank), size=16)
        + "".join(lines)
        + "</g>"
    )


def _nic(name: str, loads: Loads, box: tuple[float, float, float]) -> str:
    left, top, width = box
    out, into = loads.get(f"{name} out", 0.0), loads.get(f"{name} in", 0.0)
    label = f"NIC ↑{out:.0%} ↓{into:.0%}" if out or into else "NIC idle"
    return (
        f'<rect class="nic" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{NIC}" rx="4"/>'
        + _gauge(left, top, (width, NIC), max(out, into))
        + _text(left + width / 2, top + 14, label, size=11.5)
    )


def _gauge(left: float, top: float, size: tuple[float, float], load: float) -> str:
    """A bar filled as far as the link is."""
    if not load:
        return ""
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{size[0] * min(load, 1):.1f}" height="{size[1]}" rx="4" '
        f'fill="{heat(load)}" fill-opacity=".55"/>'
    )


def heat(load: float) -> str:
    """Grey when idle, amber at a half, red when full."""
    grey, amber, red = (141, 153, 174), (218, 152, 40), (209, 73, 91)
    low, high, share = (grey, amber, load * 2) if load < 0.5 else (amber, red, min(load, 1.0) * 2 - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def _text(x: float, y: float, words: str, *, size: float, anchor: str = "middle", halo: bool = False) -> str:
    """``halo``: readable on a line behind it."""
    kind = ' class="halo"' if halo else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}">{escape(words)}</text>'
