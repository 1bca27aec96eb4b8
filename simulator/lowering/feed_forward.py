"""Feed-forward of one layer: dense (column- then row-cut, one all-reduce) or routed experts, with the residual.

Routed, every rank holds all tokens (one replica): each computes its experts and the partial sums are all-reduced.
Routed, tokens spread over ranks (a replica each): Dispatch · all-to-all · Experts · all-to-all · Combine, in capacity
slots, so that the bytes moved do not depend on the data.
"""

from __future__ import annotations

from collections.abc import Generator
from math import ceil

from simulator import program as p
from simulator.cache_layout import head_spans
from simulator.errors import InfeasibleError
from simulator.lowering.builder import Where
from simulator.lowering.context import Context, Residual
from simulator.model import Experts
from simulator.placement import Stage, even_split
from simulator.tile import Span


def feed_forward(context: Context, stage: Stage, where: Where, residual: Residual) -> Generator[str, None, Residual]:
    """Lower one layer's feed-forward block, with its residual connection."""
    prefix = f"layers.{where.layer}.feed_forward"
    normed = {
        rank: context.norm(rank, where, residual.names[rank], f"{prefix}_norm", context.count(residual.blocks[rank]))
        for rank in residual.names
    }
    routed = context.model.layers[where.layer].routed
    if not routed:
        partial = _dense(context, stage, where, residual, normed, prefix, context.model.intermediate_size)
    elif stage.token_replicas == 1:
        partial = _experts_in_place(context, stage, where, residual, normed)
    else:
        partial = yield from _experts_by_all_to_all(context, stage, where, residual, normed)
    summed = yield from context.all_reduce(stage, where, partial, residual.blocks, "feed_forward")
    names = {
        rank: context.add(rank, where, residual.names[rank], name, "x", context.count(residual.blocks[rank]))
        for rank, name in summed.items()
    }
    return Residual(names, residual.blocks)


def _dense(
    context: Context,
    stage: Stage,
    where: Where,
    residual: Residual,
    normed: dict[int, str],
    prefix: str,
    width: int,
) -> dict[int, str]:
    """Every shard's partial sum of a dense feed-forward of ``width``."""
    cuts = context.cuts(width, stage.tensor_degree)
    what = prefix.rsplit(".", 1)[-1]
    return {
        rank: _dense_shard(
            context,
            where,
            rank,
            normed[rank],
            prefix,
            cuts[shard],
            context.count(residual.blocks[rank]),
            what,
        )
        for rank, shard, _ in context.feed_forward(stage, where.micro_batch)
    }


def _dense_shard(
    context: Context, where: Where, rank: int, value: str, prefix: str, cut: Span, tokens: int, what: str
) -> str:
    model = context.model
    hidden = (0, model.hidden_size)
    matrices = ("gate", "up") if model.gated else ("up",)
    weights = tuple(p.WeightSlice(f"{prefix}.{name}", hidden, cut) for name in matrices)
    up = context.linear(rank, where, value, f"{what}.up", tokens, weights)
    active = context.builder.emit(
        rank,
        p.Activation(
            reads=(up,),
            writes=(where.name(f"{what}.active"),),
            layer=where.layer,
            micro_batch=where.micro_batch,
            num_tokens=tokens,
            width=cut[1] - cut[0],
            kind=model.hidden_act,
            gated=model.gated,
        ),
    )
    return context.linear(rank, where, active, what, tokens, (p.WeightSlice(f"{prefix}.down", cut, hidden),))


def expert_spans(context: Context, stage: Stage, experts: Experts) -> tuple[Span, ...]:
    """The experts each feed-forward rank holds: as placed, or evenly."""
    sizes = stage.experts or even_split(experts.num_experts, len(stage.feed_forward_ranks))
    if len(sizes) != len(stage.feed_forward_ranks) or sum(sizes) != experts.num_experts or min(sizes) < 1:
        raise InfeasibleError(
            f"placement {context.placement.name}: experts {list(sizes)} must give each of "
            f"{len(stage.feed_forward_ranks)} feed-forward ranks at least one of {experts.num_experts}"
        )
    return head_spans(sizes)


def _capacity(experts: Experts, tokens: int) -> int | None:
    """Slots an expert has: ceil(capacity_factor · tokens · top_k / num_experts), never more than tokens."""
    if experts.capacity_factor is None:
        return None
    return min(tokens, ceil(experts.capacity_factor * tokens * experts.top_k / experts.num_experts))


def _route(context: Context, where: Where, rank: int, value: str, tokens: int, capacity: int | None) -> str:
    model, experts = context.model, _experts(context)
    return context.builder.emit(
        rank,
        p.Route(
            reads=(value,),
            writes=(where.name("assignment"),),
            layer=where.layer,
            micro_batch=where.micro_batch,
            num_tokens=tokens,
            hidden=model.hidden_size,
            num_experts=experts.num_experts,
            top_k=experts.top_k,
            capacity=capacity,
            weight=p.WeightSlice(f"layers.{where.layer}.router", (0, model.hidden_size), (0, experts.num_experts)),
        ),
    )


def _experts(context: Context) -> Experts:
    assert context.model.experts is not None
    return context.model.experts


def _permute(
    kind: type[p.Dispatch] | type[p.Combine],
    context: Context,
    where: Where,
    rank: int,
    reads: tuple[str, str],
    tokens: int,
    held: Span,
    capacity: int | None,
) -> str:
    """Tokens to expert rows (Dispatch) or back (Combine); ``reads``: the value and the assignment."""
    experts = _experts(context)
    return context.builder.emit(
        rank,
        kind(
            reads=reads,
            writes=(where.name("dispatched" if kind is p.Dispatch else "routed"),),
            layer=where.layer,
            micro_batch=where.micro_batch,
            num_tokens=tokens,
            hidden=context.model.hidden_size,
            num_experts=experts.num_experts,
            top_k=experts.top_k,
            experts=held,
            capacity=capacity,
        ),
    )


def _compute(
    context: Context,
    where: Where,
    rank: int,
    values: tuple[str, ...],
    tokens: int,
    held: Span,
    capacity: int | None,
    peers: int,
) -> str:
    model, experts = context.model, _experts(context)
    return context.builder.emit(
        rank,
        p.Experts(
            reads=values,
            writes=(where.name("expert.out"),),
            layer=where.layer,
            micro_batch=where.micro_batch,
            num_tokens=tokens,
            hidden=model.hidden_size,
            intermediate=(0, experts.intermediate_size),
            num_experts=experts.num_experts,
            top_k=experts.top_k,
            experts=held,
            capacity=capacity,
            peers=peers,
            kind=model.hidden_act,
            gated=model.gated,
        ),
    )


def _with_shared(
    context: Context,
    stage: Stage,
    where: Where,
    residual: Residual,
    normed: dict[int, str],
    routed: dict[int, str],
) -> dict[int, str]:
    """Shared experts are a dense feed-forward beside the routed one; partial sums add up."""
    width = _experts(context).shared_intermediate_size
    if not width:
        return routed
    shared = _dense(context, stage, where, residual, normed, f"layers.{where.layer}.shared", width)
    return {
        rank: context.add(rank, where, name, shared[rank], "experts.sum", context.count(residual.blocks[rank]))
        for rank, name in routed.items()
    }


def _experts_in_place(
    context: Context, stage: Stage, where: Where, residual: Residual, normed: dict[int, str]
) -> dict[int, str]:
    """All tokens on every rank: route everywhere alike, compute the own experts, leave a partial sum."""
    experts = _experts(context)
    routed = {}
    spans = expert_spans(context, stage, experts)
    for rank, shard, block in context.feed_forward(stage, where.micro_batch):
        tokens = context.count(block)
        capacity, held = _capacity(experts, tokens), spans[shard]
        assignment = _route(context, where, rank, normed[rank], tokens, capacity)
        rows = _permute(p.Dispatch, context, where, rank, (normed[rank], assignment), tokens, held, capacity)
        done = _compute(context, where, rank, (rows, assignment), tokens, held, capacity, 1)
        routed[rank] = _permute(p.Combine, context, where, rank, (done, assignment), tokens, held, capacity)
    return _with_shared(context, stage, where, residual, normed, routed)


def _check_all_to_all(context: Context, stage: Stage, busy: int) -> None:
    """Equal parts for all: InfeasibleError where they cannot be. ``busy``: ranks with tokens."""
    experts, ranks, name = _experts(context), stage.feed_forward_ranks, f"placement {context.placement.name}"
    if stage.tensor_degree > 1 or busy < len(ranks) or experts.num_experts % len(ranks):
        raise InfeasibleError(
            f"{name}: all-to-all dispatch needs tensor_degree 1, tokens on each of {len(ranks)} ranks, and experts "
            f" ({experts.num_experts}) that divides by them"
        )
    if experts.capacity_factor is None:
        raise InfeasibleError(
            f"{name}: all-to-all dispatch needs experts.capacity_factor in the model; set it, e.g. 1.25"
        )
    if stage.experts is not None and len(set(stage.experts)) > 1:
        raise InfeasibleError(f"{name}: all-to-all dispatch needs the same number of experts on every rank")


def _experts_by_all_to_all(
    context: Context, stage: Stage, where: Where, residual: Residual, normed: dict[int, str]
) -> Generator[str, None, dict[int, str]]:
    """Each rank routes its own tokens and sends them, in capacity slots, to the ranks that hold the experts."""
    experts, ranks = _experts(context), stage.feed_forward_ranks
    _check_all_to_all(context, stage, len(normed))
    capacity = _capacity(experts, max(context.count(block) for block in residual.blocks.values()))
    assert capacity is not None
    spans, hidden = expert_spans(context, stage, experts), context.model.hidden_size
    everyone, shape = (0, experts.num_experts), (experts.num_experts * capacity, hidden)
    assignments, sent = {}, {}
    for rank in ranks:
        tokens = context.count(residual.blocks[rank])
        assignments[rank] = _route(context, where, rank, normed[rank], tokens, capacity)
        sent[rank] = _permute(
            p.Dispatch, context, where, rank, (normed[rank], assignments[rank]), tokens, everyone, capacity
        )
    arrived = context.collective("all_to_all", ranks, where, sent, "arrived", shape)
    yield "reduce"
    total = sum(context.count(block) for block in residual.blocks.values())
    done = {
        rank: _compute(context, where, rank, (arrived[rank],), total, held, capacity, len(ranks))
        for rank, held in zip(ranks, spans, strict=True)
    }
    back = context.collective("all_to_all", ranks, where, done, "returned", shape)
    yield "reduce"
    routed = {
        rank: _permute(
            p.Combine,
            context,
            where,
            rank,
            (back[rank], assignments[rank]),
            context.count(residual.blocks[rank]),
            everyone,
            capacity,
        )
        for rank in ranks
    }
    return _with_shared(context, stage, where, residual, normed, routed)
