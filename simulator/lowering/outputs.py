"""Attention's outputs: their way to the W_O ranks, the merge over KV blocks, W_O and the residual connection."""

from __future__ import annotations

from collections.abc import Generator

from simulator import program as p
from simulator.errors import InfeasibleError
from simulator.lowering.builder import Layout, Moved, Where
from simulator.lowering.context import Context, Residual
from simulator.lowering.ends import ONE, hidden_layout
from simulator.lowering.inputs import q_layout
from simulator.lowering.redistribution import Holding, plan
from simulator.lowering.shares import Attender, out_ranks
from simulator.placement import Stage
from simulator.tile import Block, Span, Tile


def send_outputs(
    context: Context, stage: Stage, where: Where, attenders: tuple[Attender, ...], outputs: list[str]
) -> list[tuple[Moved, ...]]:
    """o (and lse, if KV is split) on their way to the W_O ranks, one pair a KV block."""
    targets = out_ranks(context, stage, where.micro_batch)
    needs = tuple(Holding(target.rank, Tile(target.heads, target.block)) for target in targets)
    lse = Layout((), (), "fp32")
    found = []
    for kv in range(stage.grid.kv_blocks):
        chosen = [(a, name) for a, name in zip(attenders, outputs, strict=True) if a.kv_index == kv]
        held = tuple(Holding(a.rank, Tile(a.heads, a.block)) for a, _ in chosen)
        moves = plan(held, needs, context.nodes, "direct", 1)
        names = tuple(name for _, name in chosen)
        moved = [context.builder.move(moves, names, q_layout(context), where, f"o.in{kv}")]
        if stage.grid.kv_blocks > 1:
            sums = tuple(f"{name}.lse" for name in names)
            moved.append(context.builder.move(moves, sums, lse, where, f"lse.in{kv}"))
        found.append(tuple(moved))
    return found


def collect(context: Context, stage: Stage, where: Where, sent: list[tuple[Moved, ...]]) -> dict[int, str]:
    """o of every W_O rank's heads and tokens, merged over KV blocks."""
    targets = out_ranks(context, stage, where.micro_batch)
    parts: dict[int, list[str]] = {target.rank: [] for target in targets}
    for block in sent:
        for moved in block:
            for target, name in zip(targets, context.builder.assemble(moved), strict=True):
                parts[target.rank].append(name)
    if stage.grid.kv_blocks == 1:
        return {rank: names[0] for rank, names in parts.items()}
    return {
        target.rank: merge(context, where, target.rank, target.heads, target.block, parts[target.rank], "o.merged")
        for target in targets
    }


def merge(context: Context, where: Where, rank: int, heads: Span, block: Block, values: list[str], what: str) -> str:
    """One output from parts' (o, lse) pairs."""
    return context.builder.emit(
        rank,
        p.MergeAttention(
            reads=tuple(values),
            writes=(where.name(what),),
            layer=where.layer,
            micro_batch=where.micro_batch,
            num_tokens=context.count(block),
            heads=heads[1] - heads[0],
            head_dim=context.model.head_dim,
            parts=len(values) // 2,
        ),
    )


def project_out(
    context: Context, stage: Stage, where: Where, residual: Residual, outputs: dict[int, str]
) -> Generator[str, None, Residual]:
    """W_O, the sum over head shards, and the residual connection, on the feed-forward ranks."""
    model = context.model
    targets = out_ranks(context, stage, where.micro_batch)
    names, blocks = {}, {}
    for target in targets:
        a, b = target.heads
        rows = (a * model.head_dim, b * model.head_dim)
        weight = p.WeightSlice(f"layers.{where.layer}.attention.o", rows, (0, model.hidden_size))
        tokens = context.count(target.block)
        names[target.rank] = context.linear(target.rank, where, outputs[target.rank], "attention", tokens, (weight,))
        blocks[target.rank] = target.block
    if not set(names) <= set(residual.names):
        names = yield from _exit_by_broadcast(context, stage, where, names, blocks)
        return _add(context, where, residual, names)
    return (yield from add_attention(context, stage, where, residual, names))


def add_attention(
    context: Context, stage: Stage, where: Where, residual: Residual, names: dict[int, str]
) -> Generator[str, None, Residual]:
    """The sum of the feed-forward ranks' parts of W_O's product, and the residual connection."""
    summed = yield from context.all_reduce(stage, where, names, residual.blocks, "attention")
    return _add(context, where, residual, summed)


def _add(context: Context, where: Where, residual: Residual, names: dict[int, str]) -> Residual:
    summed = {
        rank: context.add(rank, where, residual.names[rank], name, "x.mid", context.count(residual.blocks[rank]))
        for rank, name in names.items()
    }
    return Residual(summed, residual.blocks)


def _exit_by_broadcast(
    context: Context, stage: Stage, where: Where, names: dict[int, str], blocks: dict[int, Block]
) -> Generator[str, None, dict[int, str]]:
    """MA Separation as written: all-reduce over the attention ranks, then the sum goes to every feed-forward rank."""
    ranks = tuple(names)
    if len(set(blocks.values())) > 1:
        raise InfeasibleError(
            f"placement {context.placement.name}: exit all_reduce_broadcast sums over heads; query_blocks must be 1"
        )
    if len(ranks) > 1:
        shape = (context.count(blocks[ranks[0]]), context.model.hidden_size)
        names = context.collective("all_reduce", ranks, where, names, "attention.sum", shape)
        context.builder.fill(where.micro_batch)
        yield "reduce"
    held = tuple(Holding(rank, Tile(ONE, blocks[rank])) for rank in ranks)
    needs = tuple(Holding(rank, Tile(ONE, block)) for rank, _, block in context.feed_forward(stage, where.micro_batch))
    moves = plan(held, needs, context.nodes, "tree", 1)
    came = context.builder.redistribute(
        moves, tuple(names[rank] for rank in ranks), hidden_layout(context), where, "attention.out"
    )
    return {need.rank: name for need, name in zip(needs, came, strict=True)}
