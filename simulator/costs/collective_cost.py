"""Collective cost: a collective of given ranks on a topology, as latency and bytes on every resource.

The closed forms of ``collectives.py`` with α and β read off the topology. The bytes of each algorithm are laid on
the links it uses, so a collective competes with everything else for them; alone it takes latency + fluid seconds:

    ring          one ring through all nodes, rotated over their NICs: p·(ring traffic); slowest link counts
    tree          NCCL's: a chain inside each node, two binary trees over the nodes
    hierarchical  reduce-scatter in the node, ring over the nodes for each shard, all-gather in the node
    switch tree   NCCL's NVLSTree: the node's switch adds and multicasts, shards go by a two-tree over the nodes
    auto          the fastest of those; inside one node the measured curve where there is one

``in_node`` gives measured seconds of a collective inside one node, or None: it then replaces the in-node links' α-β
time (also the in-node phases of algorithms across nodes). Between nodes bytes spread evenly over a node's NICs.
NVLink SHARP's rate is a matter of measurement (its ports could carry more than it reaches): it takes part only through
a measured curve of a node whose link ``reduces``. What it ignores: protocol switches (LL, LL128), channels fewer than
NICs, SHARP in the network's switches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from simulator.costs.collective_layout import Algorithm as Algorithm
from simulator.costs.collective_layout import Call as Call
from simulator.costs.collective_layout import CollectiveCost as CollectiveCost
from simulator.costs.collective_layout import InNode as InNode
from simulator.costs.collective_layout import Layout
from simulator.costs.collective_layout import Requested as Requested
from simulator.costs.collective_layout import unmeasured as unmeasured
from simulator.fabric.collectives import best_chunks, tree_depth, tree_volume
from simulator.fabric.topology import Nic, Topology
from simulator.program import CollectiveKind
from simulator.workspace import WHOLE_BYTES


def collective_cost(call: Call, topology: Topology, in_node: InNode = unmeasured) -> CollectiveCost:
    """The requested algorithm, or for ``auto`` the measured curve inside a node, else the fastest."""
    if len(call.ranks) < 2:
        return CollectiveCost("direct", 0.0, 0.0, ())
    layout = Layout(call, topology, in_node)
    if call.algorithm == "auto" and len(layout.nodes) == 1:
        measured = layout.measured(call.kind, call.num_bytes)
        if measured is not None:
            return _with_messages(layout, _measured(layout, measured))
    choices = [build(layout) for build in _builders(call, layout.on_cpus)]
    if (call.kind, call.algorithm) == ("all_reduce", "auto"):
        choices += _switch_tree(layout)
    return _with_messages(layout, min(choices, key=lambda cost: cost.seconds))


def _with_messages(layout: Layout, cost: CollectiveCost) -> CollectiveCost:
    """How many messages of how many bytes a rank sends: a ring's steps, or what CPU ranks of one node exchange."""
    call = layout.call
    if layout.on_cpus and len(layout.nodes) == 1 and cost.algorithm == "measured":
        messages, sent_bytes = exchanged(call.kind, len(call.ranks), call.num_bytes)
        return replace(cost, messages=messages, sent_bytes=sent_bytes)
    steps, unpriced = _steps(layout, len(call.ranks)), 0
    if cost.algorithm == "hierarchical":
        unpriced = _steps(layout, len(layout.nodes))
        steps = unpriced + (layout.most - 1) * len(_halves(layout.call.kind))
    elif cost.algorithm != "measured":
        unpriced = steps
    _, share = _ring_share(layout.call)
    return replace(cost, messages=steps, sent_bytes=share * layout.call.num_bytes, unpriced=unpriced)


def exchanged(kind: str, members: int, num_bytes: float) -> tuple[int, float]:
    """(messages, bytes) that a CPU rank sends in a collective inside its node: to every other at once, small values
    whole, large ones by parts, whose sums come back (``executor/exchange.py``)."""
    others = members - 1
    if kind == "all_reduce":
        whole = members == 2 or num_bytes <= WHOLE_BYTES
        return (others, others * num_bytes) if whole else (2 * others, 2 * others / members * num_bytes)
    return others, others / members * num_bytes


def _steps(layout: Layout, members: int) -> int:
    """Messages one after another in a ring; CPU ranks swap at once where two reduce."""
    if layout.call.kind != "all_reduce":
        return members - 1
    return 1 if layout.on_cpus and members == 2 else 2 * (members - 1)


def _builders(call: Call, on_cpus: bool) -> list[Callable[[Layout], CollectiveCost]]:
    """Candidates for a call; all-to-all is sent directly, and only all-reduce and broadcast have trees."""
    match call.kind, call.algorithm:
        case "all_to_all", _:
            return [_direct]
        case "broadcast", _ if on_cpus:
            return [_binomial]
        case _, "auto" if on_cpus:
            return [_ring]
        case "broadcast", "auto":
            return [_chain, _binomial]
        case "broadcast", "tree":
            return [_binomial]
        case "broadcast", _:
            return [_chain]
        case "all_reduce", "auto":
            return [_ring, _tree, _hierarchical]
        case "all_reduce", "tree":
            return [_tree]
        case _, "hierarchical":
            return [_hierarchical]
        case _, "auto":
            return [_ring, _hierarchical]
        case _:
            return [_ring]


def _ring_share(call: Call) -> tuple[int, float]:
    """(steps, times the buffer that a rank sends) of a ring: all-reduce 2(p−1) steps, the halves p−1."""
    rounds = (2 if call.kind == "all_reduce" else 1) * (len(call.ranks) - 1)
    return rounds, rounds / len(call.ranks)


def _measured(layout: Layout, seconds: float) -> CollectiveCost:
    """All of the measured time is fluid; the bytes are the ring's (direct exchange moves as many)."""
    _, share = _ring_share(layout.call)
    layout.inside(lambda g: share * layout.call.num_bytes)
    return layout.cost("measured", 0.0, seconds)


def _ring(layout: Layout) -> CollectiveCost:
    """2(p−1)α + 2(p−1)/p·S/β (half for reduce-scatter and all-gather), β the slowest link of the ring.

    A node is entered and left once; turned over all starting points, of the g members' hops (g−1)/g stay inside.
    A measured curve of g GPUs gives the in-node rate: its time scaled from (g−1)/g to (p−1)/p of the buffer.
    """
    call, num_nodes = layout.call, len(layout.nodes)
    _, share = _ring_share(call)
    volume = share * call.num_bytes
    inner_s = layout.inside(lambda g: volume if num_nodes == 1 else volume * (g - 1) / g)
    outer_s = layout.between(volume)
    if num_nodes > 1 and layout.most > 1:
        measured = layout.measured(call.kind, call.num_bytes)
        if measured is not None:
            here, whole = (layout.most - 1) / layout.most, (len(call.ranks) - 1) / len(call.ranks)
            inner_s = measured * whole / here
    steps = _steps(layout, len(call.ranks))
    return layout.cost("ring", steps * layout.hop_s, max(inner_s, outer_s))


def _tree(layout: Layout) -> CollectiveCost:
    """Nodes as ranks of a two-tree: d·S through each node's NICs; inside, a chain: S up and S down each port.

    One node: a two-tree over its GPUs. Latency: up and down, ⌈log₂G⌉ hops between and g−1 inside (NCCL's chain).
    """
    call, num_nodes = layout.call, len(layout.nodes)
    if num_nodes == 1:
        ranks = len(call.ranks)
        fluid_s = layout.inside(lambda g: tree_volume(g) * call.num_bytes)
        return layout.cost("tree", 2 * tree_depth(ranks) * layout.inner_s, fluid_s)
    inner_s = layout.inside(lambda g: tree_volume(g) * call.num_bytes)
    outer_s = layout.between(tree_volume(num_nodes) * call.num_bytes)
    measured = layout.measured(call.kind, call.num_bytes) if layout.most > 1 else None
    if measured is not None:  # the curve's rate: it moved 2(g−1)/g of the buffer through each port
        inner_s = measured * tree_volume(layout.most) / (2 * (layout.most - 1) / layout.most)
    hops_s = tree_depth(num_nodes) * layout.outer_s + (layout.most - 1) * layout.inner_s
    return layout.cost("tree", 2 * hops_s, max(inner_s, outer_s))


def _switch_tree(layout: Layout) -> list[CollectiveCost]:
    """NCCL's NVLSTree, where every node's switch adds and its curve is measured; else nothing.

    The switch reduces a shard of S/g into each GPU, which sends it up and down a two-tree over the nodes, and
    multicasts the sum: in the node just what NVLink SHARP does alone (the curve), with d·S through its NICs meanwhile.
    A port carries S + S/g each way. Source: NCCL 2.18 release notes (NVLSTree); nccl/src/device/all_reduce.h.
    """
    call, num_nodes = layout.call, len(layout.nodes)
    links = [layout.topology.places[node[0]].spec.link for node in layout.nodes]
    measured = layout.measured(call.kind, call.num_bytes)
    if num_nodes == 1 or measured is None or not all(link.reduces for link in links):
        return []
    if min(len(node) for node in layout.nodes) == 1:
        return []
    layout.inside(lambda g: (1 + 1 / g) * call.num_bytes)
    outer_s = layout.between(tree_volume(num_nodes) * call.num_bytes)
    hops_s = 2 * tree_depth(num_nodes) * layout.outer_s
    return [layout.cost("switch_tree", hops_s, max(measured, outer_s))]


def _hierarchical(layout: Layout) -> CollectiveCost:
    """In node (g−1)/g·S, between nodes (G−1)/G·S over all a node's NICs; an all-reduce does both twice.

    Phases follow one another, so their times add. Inside one node, or one GPU a node, this is the ring.
    """
    call, num_nodes = layout.call, len(layout.nodes)
    if num_nodes == 1 or layout.most == 1:
        return _ring(layout)
    times = 2 if call.kind == "all_reduce" else 1
    inner_s = layout.inside(lambda g: times * (g - 1) / g * call.num_bytes)
    latency_s = times * (layout.most - 1) * layout.inner_s
    halves = [layout.measured(kind, call.num_bytes) for kind in _halves(call.kind)]
    seconds = [half for half in halves if half is not None]
    if len(seconds) == len(halves):
        inner_s, latency_s = sum(seconds), 0.0
    outer_s = layout.between(times * (num_nodes - 1) / num_nodes * call.num_bytes)
    latency_s += _steps(layout, num_nodes) * layout.outer_s
    return layout.cost("hierarchical", latency_s, inner_s + outer_s)


def _halves(kind: CollectiveKind) -> tuple[CollectiveKind, ...]:
    return ("reduce_scatter", "all_gather") if kind == "all_reduce" else (kind,)


def _direct(layout: Layout) -> CollectiveCost:
    """α + bytes/β: every rank sends S/p to every other at once; peers in its node by its ports, the rest by its NIC."""
    call, topology, num = layout.call, layout.topology, len(layout.call.ranks)
    part = call.num_bytes / num
    inner_s = layout.inside(lambda g: (g - 1) * part)
    for node in layout.nodes if len(layout.nodes) > 1 else ():
        for rank in node:
            nic = topology.nic_of(rank)
            layout.load(nic.out, (num - len(node)) * part)
            layout.load(nic.into, (num - len(node)) * part)
            crossing = _ranks_on_other_leaves(layout, node, nic) * part
            if crossing:
                up, down = topology.uplink(nic.leaf)
                layout.load(up, crossing)
                layout.load(down, crossing)
    return layout.cost("direct", layout.hop_s, max(inner_s, layout.slowest(layout.traffic)))


def _ranks_on_other_leaves(layout: Layout, node: Sequence[int], nic: Nic) -> int:
    """How many ranks of other nodes hang on another leaf than ``nic``."""
    return sum(
        sum(layout.topology.nic_of(rank).leaf != nic.leaf for rank in other)
        for other in layout.nodes
        if other is not node
    )


def _chain(layout: Layout) -> CollectiveCost:
    """(p−2+c)(α + M/(cβ)) with the best c; β the slowest link, each node entered once over all its NICs."""
    ranks, num_bytes = len(layout.call.ranks), layout.call.num_bytes
    message_s = max(layout.inside(lambda g: num_bytes), layout.between(num_bytes))
    alpha_s = layout.hop_s
    if alpha_s == 0:
        return layout.cost("ring", 0.0, message_s)
    chunks = best_chunks(ranks, message_s, alpha_s)
    whole_s = (ranks - 2 + chunks) * (alpha_s + message_s / chunks)
    return layout.cost("ring", whole_s - message_s, message_s)


def _binomial(layout: Layout) -> CollectiveCost:
    """⌈log₂p⌉(α + M/β): nodes first, then inside; each round sends the message whole."""
    call, num_nodes = layout.call, len(layout.nodes)
    outer_s = layout.between(call.num_bytes) * tree_depth(num_nodes)
    inner_s = layout.inside(lambda g: call.num_bytes) * tree_depth(layout.most)
    latency_s = tree_depth(num_nodes) * layout.outer_s + tree_depth(layout.most) * layout.inner_s
    return layout.cost("tree", latency_s, outer_s + inner_s)
