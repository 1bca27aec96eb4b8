"""The two ends of a step — embedding, logits and the sampled token — and the pipeline boundaries between stages."""

from __future__ import annotations

from collections.abc import Generator

from simulator import program as p
from simulator.lowering.builder import Layout, Message, Where
from simulator.lowering.context import Context, Residual
from simulator.lowering.redistribution import Holding, plan
from simulator.tile import Block, Tile, intersect, is_empty

TOKENS = Layout((), (), "int64", columns=False)
ONE = (0, 1)


def hidden_layout(context: Context) -> Layout:
    return Layout((), (context.model.hidden_size,), context.dtype, columns=False)


def embed(context: Context, micro_batch: int) -> Generator[str, None, Residual]:
    """Vocabulary-parallel table lookup on the first stage's feed-forward ranks."""
    stage, model, builder = context.placement.stages[0], context.model, context.builder
    where, everything = Where(-1, micro_batch), context.groups.everything
    cuts = context.cuts(model.vocab_size, stage.tensor_degree)
    names = {}
    for rank, shard, block in context.feed_forward(stage, micro_batch):
        tokens = "tokens"
        if block != everything:
            tokens = builder.slice(
                Holding(rank, Tile(ONE, everything)), Tile(ONE, block), tokens, TOKENS, where, "tokens"
            )
        names[rank] = builder.emit(
            rank,
            p.Embed(
                reads=(tokens,),
                writes=(where.name("embed"),),
                layer=where.layer,
                micro_batch=micro_batch,
                num_tokens=context.count(block),
                weight=p.WeightSlice("embed", cuts[shard], (0, model.hidden_size)),
            ),
        )
    blocks = context.blocks(stage, micro_batch)
    names = yield from context.all_reduce(stage, where, names, blocks, "embed")
    return Residual(names, blocks)


def hand_over(context: Context, number: int, micro_batch: int, residual: Residual) -> Residual:
    """The residual from the stage before ``number`` to it, rank to rank.

    Into another node every tensor shard takes a part of the rows over its own NIC and an all-gather gives all to all
    (Megatron-LM's scatter-gather; Narayanan et al. 2021, section 4.1). Rows that do not divide travel whole.
    """
    stage = context.placement.stages[number]
    where = Where(stage.first_layer - 1, micro_batch)
    blocks = context.blocks(stage, micro_batch)
    names: dict[int, str] = {}
    whole: list[Holding] = []
    for ranks in context.tensor_groups(stage, dict.fromkeys(blocks, "")):
        block = blocks[ranks[0]]
        senders = [rank for rank, held in residual.blocks.items() if held == block]
        apart = not {context.nodes[rank] for rank in senders} & {context.nodes[rank] for rank in ranks}
        if senders and apart and len(ranks) > 1 and context.count(block) % len(ranks) == 0:
            names |= _scattered(context, where, residual, senders, ranks, f"x.stage{number}")
        else:
            whole.extend(Holding(rank, Tile(ONE, block)) for rank in ranks)
    if whole:
        held = tuple(Holding(rank, Tile(ONE, residual.blocks[rank])) for rank in residual.names)
        moves = plan(held, tuple(whole), context.nodes, "direct", 1)
        values = tuple(residual.names.values())
        moved = context.builder.redistribute(moves, values, hidden_layout(context), where, f"x.stage{number}")
        names |= {need.rank: name for need, name in zip(whole, moved, strict=True)}
    return Residual(names, blocks)


def _scattered(
    context: Context, where: Where, residual: Residual, senders: list[int], ranks: tuple[int, ...], what: str
) -> dict[int, str]:
    """An even part of the rows from a sender to every rank, then all parts to all of them."""
    pairs = [(senders[index % len(senders)], rank) for index, rank in enumerate(ranks)]
    context.builder.check_pairs(pairs)
    rows = context.count(residual.blocks[senders[0]]) // len(ranks)
    shape = (rows, context.model.hidden_size)
    parts = {}
    for index, (source, rank) in enumerate(pairs):
        message = Message(source, rank, residual.names[source], (index * rows, (index + 1) * rows))
        parts[rank] = context.builder.message(message, shape, context.dtype, where, f"{what}.part")
    return context.collective("all_gather", ranks, where, parts, what, shape)


def head(context: Context, micro_batch: int, residual: Residual) -> Generator[str, None, list[tuple[Holding, str]]]:
    """Final norm and vocabulary-parallel logits of each sequence's last token; returns the sampled tokens' holdings."""
    model, builder, stage = context.model, context.builder, context.placement.stages[-1]
    where = Where(model.num_layers, micro_batch)
    last = context.groups.last_tokens(micro_batch)
    cuts = context.cuts(model.vocab_size, stage.tensor_degree)
    names: dict[int, str] = {}
    blocks: dict[int, Block] = {}
    for rank, shard, block in context.feed_forward(stage, micro_batch):
        mine = intersect(block, last)
        if is_empty(mine):
            continue
        hidden, rows = residual.names[rank], context.count(mine)
        if mine != block:
            holding = Holding(rank, Tile(ONE, block))
            hidden = builder.slice(holding, Tile(ONE, mine), hidden, hidden_layout(context), where, "last")
        hidden = context.norm(rank, where, hidden, "final_norm", rows)
        weight = p.WeightSlice("lm_head", (0, model.hidden_size), cuts[shard])
        names[rank] = context.linear(rank, where, hidden, "logits", rows, (weight,))
        blocks[rank] = mine
    if stage.tensor_degree > 1:
        names = _gather_logits(context, where, names, blocks)
        yield "reduce"
    return [
        (Holding(rank, Tile(ONE, blocks[rank])), _sample(context, where, rank, name, blocks))
        for rank, name in names.items()
    ]


def _gather_logits(context: Context, where: Where, names: dict[int, str], blocks: dict[int, Block]) -> dict[int, str]:
    """Every shard's columns side by side; shards are padded to the widest one."""
    stage = context.placement.stages[-1]
    width = -(-context.model.vocab_size // stage.tensor_degree)
    gathered: dict[int, str] = {}
    for ranks in context.tensor_groups(stage, names):
        shape = (context.count(blocks[ranks[0]]), width)
        gathered |= context.collective("all_gather", ranks, where, names, "logits.all", shape, along="columns")
    return gathered


def _sample(context: Context, where: Where, rank: int, logits: str, blocks: dict[int, Block]) -> str:
    return context.builder.emit(
        rank,
        p.Sample(
            reads=(logits,),
            writes=(where.name("sampled"),),
            layer=where.layer,
            micro_batch=where.micro_batch,
            rows=context.count(blocks[rank]),
            vocab=context.model.vocab_size,
            shards=context.placement.stages[-1].tensor_degree,
            batch=context.groups.batch,
            block=blocks[rank],
        ),
    )


def return_tokens(context: Context, sampled: list[tuple[Holding, str]]) -> dict[int, str]:
    """Every first-stage rank learns all sequences' next tokens; returns the name each has them under."""
    where = Where(context.model.num_layers, 0)
    last = Tile(ONE, context.groups.last_tokens())
    needs = tuple(Holding(rank, last) for rank in context.placement.stages[0].feed_forward_ranks)
    moves = plan(tuple(holding for holding, _ in sampled), needs, context.nodes, "direct", 1)
    names = context.builder.redistribute(moves, tuple(name for _, name in sampled), TOKENS, where, "next")
    return {need.rank: name for need, name in zip(needs, names, strict=True)}
