"""Candidates: plans that answer one question on a few ranks, of every family that fits, and rivals across two hosts.

The list is fixed before anything is predicted, so that it cannot flatter the predictor. A candidate's placement
depends on the phase: a pool cuts queries in prefill and keys in decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.model import Model
from simulator.placement import AttentionGrid, Placement, Stage, even_split
from simulator.workload import Phase

Ranks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A named plan and the family it belongs to."""

    name: str
    scheme: str
    placement: Placement


def candidates(model: Model, phase: Phase, nodes: Ranks) -> tuple[Candidate, ...]:
    """A dozen plans on four ranks, ``nodes`` being every rank's host: on several hosts, plans of two ranks use a rank
    of each (but for one)."""
    family = [*statics(model), *contexts(model), *pools(model, phase)]
    if model.experts is not None:
        family.append(separated(model))
    if len(set(nodes)) > 1:
        order = interleaved(nodes)
        family = [across(one, order) if len(one.placement.ranks) == 2 else one for one in family]
        family.append(next(one for one in statics(model) if one.name == "tp2"))
        family = [reducing(one, "ring") if one.name in ("tp2-across", "tp4") else one for one in family]
        if len({nodes.count(node) for node in nodes}) == 1:
            family.append(reducing(next(one for one in family if one.name == "tp4"), "hierarchical", "tp4-two-level"))
    return tuple(family)


def reducing(candidate: Candidate, algorithm: Literal["ring", "hierarchical"], name: str = "") -> Candidate:
    """The same plan with its all-reduces, which span hosts, by ``algorithm`` (inside a host there is only gloo's)."""
    changed = {"all_reduce": algorithm, "name": name or candidate.name}
    return Candidate(changed["name"], candidate.scheme, candidate.placement.model_copy(update=changed))


def interleaved(nodes: Ranks) -> Ranks:
    """All ranks, one host after the other in turn: (0, 0, 1, 1) → 0, 2, 1, 3."""
    turns = [[rank for rank, node in enumerate(nodes) if node == host] for host in sorted(set(nodes))]
    longest = max(map(len, turns))
    return tuple(ranks[turn] for turn in range(longest) for ranks in turns if turn < len(ranks))


def statics(model: Model) -> list[Candidate]:
    pairs = ((1, 1), (2, 1), (4, 1), (1, 2))
    return [
        Candidate(name, "tp-pp", static(model, name, tensor, stages))
        for tensor, stages in pairs
        for name in [f"tp{tensor}" if stages == 1 else f"tp{tensor}-pp{stages}" if tensor > 1 else f"pp{stages}"]
    ]


def static(model: Model, name: str, tensor: int, num_stages: int) -> Placement:
    """TP × PP; two stages take two micro-batches."""
    stages, first = [], 0
    for index, size in enumerate(even_split(model.num_layers, num_stages)):
        ranks = tuple(range(index * tensor, (index + 1) * tensor))
        grid = AttentionGrid(heads=even_split(model.num_attention_heads, tensor))
        stages.append(one_stage(model, grid, ranks, ranks, tensor, (first, first + size)))
        first += size
    return Placement(name=name, stages=tuple(stages), micro_batches=num_stages)


def contexts(model: Model) -> list[Candidate]:
    """Token-parallel; in decode whole sequences are dealt out."""
    found = []
    for name, tensor, replicas in (("cp2", 1, 2), ("cp4", 1, 4), ("tp2-cp2", 2, 2)):
        if tensor > 1 and model.experts is not None:
            continue
        ranks = tuple(range(tensor * replicas))
        attention = tuple(replica * tensor + shard for shard in range(tensor) for replica in range(replicas))
        grid = AttentionGrid(heads=even_split(model.num_attention_heads, tensor), query_blocks=replicas)
        stage = one_stage(model, grid, attention, ranks, tensor)
        found.append(Candidate(name, "context", Placement(name=name, stages=(stage,), block_rule="zigzag")))
    return found


def pools(model: Model, phase: Phase) -> list[Candidate]:
    """FA Pool: a base with ranks that only attend (1+1 …), or with ranks that join a base that attends too."""
    found = []
    for base, pool, joined in ((1, 1, False), (1, 2, False), (2, 2, False), (1, 1, True), (2, 2, True)):
        name = f"{'joined' if joined else 'pool'}{base}+{pool}"
        first, cells = (0, base + pool) if joined else (base, pool)
        grid = AttentionGrid(heads=(model.num_attention_heads,), query_blocks=cells)
        if phase == "decode":
            grid = AttentionGrid(heads=(model.num_attention_heads,), kv_blocks=cells)
        ranks = tuple(range(first, first + cells))
        stage = one_stage(model, grid, ranks, tuple(range(base)), base)
        found.append(Candidate(name, "joined" if joined else "pool", Placement(name=name, stages=(stage,))))
    return found


def separated(model: Model) -> Candidate:
    """MA Separation: two ranks attend, two hold the experts; two micro-batches keep both busy."""
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=(0, 1),
        grid=AttentionGrid(heads=even_split(model.num_attention_heads, 2)),
        feed_forward_ranks=(2, 3),
        tensor_degree=1,
        projections="attention",
    )
    return Candidate("ma2+2", "separated", Placement(name="ma2+2", stages=(stage,), micro_batches=1))


def one_stage(
    model: Model,
    grid: AttentionGrid,
    attention: Ranks,
    feed_forward: Ranks,
    tensor: int,
    layers: tuple[int, int] | None = None,
) -> Stage:
    first, last = layers or (0, model.num_layers)
    return Stage(
        first_layer=first,
        last_layer=last,
        attention_ranks=attention,
        grid=grid,
        feed_forward_ranks=feed_forward,
        tensor_degree=tensor,
    )


def across(candidate: Candidate, order: Ranks) -> Candidate:
    """The same plan on the first ranks of ``order``."""
    stages = tuple(
        stage.model_copy(
            update={
                "attention_ranks": tuple(order[rank] for rank in stage.attention_ranks),
                "feed_forward_ranks": tuple(order[rank] for rank in stage.feed_forward_ranks),
            }
        )
        for stage in candidate.placement.stages
    )
    name = f"{candidate.name}-across"
    placement = candidate.placement.model_copy(update={"name": name, "stages": stages})
    return Candidate(name, candidate.scheme, placement)
