"""Placing: a candidate of the lattice as a placement on the ranks of a question's cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.candidate import MODES, MULTICASTS, RULES, Scheme, name_of
from planner.dealing import dealt_heads
from planner.question import Question
from simulator.placement import AttentionGrid, Placement, Stage, even_split

CHAIN_CHUNKS = 4  # pieces of a pipelined chain; more only adds messages at our sizes
Groups = tuple[tuple[int, ...], ...]
"""The ranks of every head group."""


def placement_of(question: Question, candidate: np.void) -> Placement:
    """A candidate as a placement."""
    return Placement(
        name=name_of(candidate),
        stages=_stages(question, candidate),
        block_rule=RULES[candidate["rule"]],
        micro_batches=int(candidate["micro_batches"]),
        kv_multicast=MULTICASTS[candidate["multicast"]],
        transfer_chunks=CHAIN_CHUNKS if candidate["multicast"] == 2 else 1,
        kv_streams=int(candidate["streams"]),
        dim_mode=MODES[candidate["mode"]],
        exit="all_reduce_broadcast" if candidate["exit"] else "all_to_all",
        kv_ring=bool(candidate["ring"]),
    )


def _stages(question: Question, candidate: np.void) -> tuple[Stage, ...]:
    layers, order = question.model.num_layers, question.orders[candidate["order"]]
    tensor, stages = int(candidate["tensor"]), int(candidate["stages"])
    attending = attending_ranks(question, candidate)
    grids = [_grid(question, candidate, ranks) for ranks in attending]
    match Scheme(int(candidate["scheme"])):
        case Scheme.STATIC:
            sizes = even_split(layers, stages)
            edges = [(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(stages)]
            return tuple(
                _stage(edge, ranks, grid, (ranks, tensor))
                for edge, ranks, grid in zip(edges, attending, grids, strict=True)
            )
        case Scheme.SEPARATED:
            attention, experts = int(candidate["heads"]), int(candidate["experts"])
            stage = _stage((0, layers), attending[0], grids[0], (order[attention : attention + experts], tensor))
            return (stage.model_copy(update={"projections": "attention"}),)
        case _:
            feed_forward = _replicas(question, order, tensor, int(candidate["replicas"]))
            return (_stage((0, layers), attending[0], grids[0], (feed_forward, tensor)),)


def attending_ranks(question: Question, candidate: np.void) -> Groups:
    """The attention ranks of every stage, in the order of its grid."""
    order, tensor = question.orders[candidate["order"]], int(candidate["tensor"])
    heads, replicas = int(candidate["heads"]), int(candidate["replicas"])
    match Scheme(int(candidate["scheme"])):
        case Scheme.STATIC:
            return tuple(order[i * tensor : (i + 1) * tensor] for i in range(int(candidate["stages"])))
        case Scheme.CONTEXT:
            ranks = _replicas(question, order, tensor, replicas)
            return (tuple(ranks[replica * tensor + shard] for shard in range(tensor) for replica in range(replicas)),)
        case Scheme.POOL | Scheme.JOINED:
            first = tensor if candidate["scheme"] == Scheme.POOL else 0
            num = heads * int(candidate["queries"]) * int(candidate["keys"])
            return (_rail_aligned(order[first : first + num], heads, tensor),)
        case Scheme.TWO_LEVEL:
            return (order[:tensor],)
        case _:
            return (order[:heads],)


def _grid(question: Question, candidate: np.void, ranks: tuple[int, ...]) -> AttentionGrid:
    heads = int(candidate["heads"])
    if candidate["dealing"]:
        sizes = dealt_heads(question, candidate, ranks)
    else:
        sizes = even_split(question.model.num_attention_heads, heads)
    queries = int(candidate["queries"])
    return AttentionGrid(
        heads=sizes, query_blocks=queries, kv_blocks=int(candidate["keys"]), dim_slices=int(candidate["slices"])
    )


def _replicas(question: Question, order: Sequence[int], tensor: int, replicas: int) -> tuple[int, ...]:
    """The ranks of every replica's tensor shards, replica after replica.

    Several replicas that fill a switched node take turns at its GPUs, as do the nodes of one that fills several: heads
    then lie along the rails as they do under a tensor degree of the whole node, and a KV cache handed from one to the
    other stays near. Nodes of pairwise links keep a replica's shards together.
    """
    node = question.node_gpus
    alike = not question.mixed and all(one.gpus == node and one.link.kind == "switch" for one in question.cluster.nodes)
    ranks = list(order[: tensor * replicas])
    wide, here = tensor // node, node // tensor
    if alike and wide > 1 and not tensor % node:
        starts = range(0, len(ranks), tensor)
        return tuple(order[at + shard % wide * node + shard // wide] for at in starts for shard in range(tensor))
    for first in range(0, len(ranks) - node + 1, node) if alike and here > 1 else ():
        ranks[first : first + node] = [
            order[first + shard * here + replica] for replica in range(here) for shard in range(tensor)
        ]
    return tuple(ranks)


def _rail_aligned(ranks: Sequence[int], heads: int, tensor: int) -> tuple[int, ...]:
    """Each head group on the ranks, of every run of ``tensor``, that stand where the shards projecting its heads do:
    keys travel along one rail, and base ranks that attend take heads of their own. Where groups and shards do not
    nest, group i on every heads-th rank."""
    if heads % tensor and (tensor % heads or len(ranks) % tensor):
        group_of = [number % heads for number in range(len(ranks))]
    elif heads > tensor:
        group_of = [number % tensor * (heads // tensor) + number % heads // tensor for number in range(len(ranks))]
    else:
        group_of = [number % tensor * heads // tensor for number in range(len(ranks))]
    return tuple(rank for group in range(heads) for rank, own in zip(ranks, group_of, strict=True) if own == group)


def _stage(
    layers: tuple[int, int],
    attention: tuple[int, ...],
    grid: AttentionGrid,
    feed_forward: tuple[tuple[int, ...], int],
) -> Stage:
    """``feed_forward``: its ranks and tensor degree."""
    return Stage(
        first_layer=layers[0],
        last_layer=layers[1],
        attention_ranks=attention,
        grid=grid,
        feed_forward_ranks=feed_forward[0],
        tensor_degree=feed_forward[1],
    )
