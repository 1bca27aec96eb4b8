"""The attention operation itself, and the merge of a rank's partial results."""

from __future__ import annotations

from simulator import program as p
from simulator.cache_layout import cover
from simulator.lowering.builder import Where
from simulator.lowering.context import Context
from simulator.lowering.outputs import merge
from simulator.lowering.shares import Attender


def attend(
    context: Context,
    where: Where,
    attender: Attender,
    reads: tuple[str, ...],
    segments: tuple[p.Segment, ...],
    *,
    what: str = "o",
    lse: bool = False,
    head_dim: int = 0,
    value_dim: int = 0,
) -> str:
    """Emit one attention operation; its lse, if wanted, is named ``<name>.lse``. ``head_dim`` 0: the model's."""
    model, name = context.model, where.name(what)
    if not context.builder.keeps(attender.rank):
        return name
    return context.builder.emit(
        attender.rank,
        p.Attention(
            reads=reads,
            writes=(name, f"{name}.lse") if lse else (name,),
            layer=where.layer,
            micro_batch=where.micro_batch,
            segments=segments,
            num_tokens=context.count(attender.block),
            heads=attender.heads,
            kv_heads=cover(attender.heads, model.heads_per_kv_head),
            group_size=model.heads_per_kv_head,
            head_dim=head_dim or model.head_dim,
            window=model.layers[where.layer].window,
            decode=context.phase == "decode",
            value_dim=value_dim,
        ),
    )


def merged(context: Context, where: Where, attender: Attender, partial: list[str]) -> str:
    """o of a rank from its partial ones, each with its lse."""
    if len(partial) == 1:
        return partial[0]
    values = [value for name in partial for value in (name, f"{name}.lse")]
    return merge(context, where, attender.rank, attender.heads, attender.block, values, "o")
