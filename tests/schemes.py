"""Small models and one placement of every kind, for tests of lowering, engine and executor."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.model import Experts, Layer, Model
from simulator.placement import AttentionGrid, Placement, Stage, even_split


def tiny_model(
    *,
    heads: int = 8,
    kv_heads: int = 4,
    layers: int = 2,
    experts: Experts | None = None,
    windows: Sequence[int] = (),
    causal: bool = True,
    gated: bool = True,
) -> Model:
    kinds = tuple(Layer(window=windows[i] if windows else 0, routed=experts is not None) for i in range(layers))
    return Model(
        name="tiny",
        hidden_size=heads * 16,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        intermediate_size=heads * 32,
        layers=kinds,
        experts=experts,
        vocab_size=97,
        causal=causal,
        gated=gated,
    )


def static(model: Model, tensor: int, pipeline: int = 1, *, micro_batches: int = 1) -> Placement:
    """TP × PP on ranks 0…tensor·pipeline−1."""
    stages, first = [], 0
    for index, size in enumerate(even_split(model.num_layers, pipeline)):
        ranks = tuple(range(index * tensor, (index + 1) * tensor))
        stages.append(
            Stage(
                first_layer=first,
                last_layer=first + size,
                attention_ranks=ranks,
                grid=AttentionGrid(heads=even_split(model.num_attention_heads, tensor)),
                feed_forward_ranks=ranks,
                tensor_degree=tensor,
            )
        )
        first += size
    return Placement(name=f"tp{tensor}-pp{pipeline}", stages=tuple(stages), micro_batches=micro_batches)


def pooled(model: Model, base: int, grid: AttentionGrid, **options: object) -> Placement:
    """FA Pool and hybrids: ``base`` ranks, then the pool's."""
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=tuple(range(base, base + grid.num_ranks)),
        grid=grid,
        feed_forward_ranks=tuple(range(base)),
        tensor_degree=base,
    )
    return Placement.model_validate({"name": f"pool{grid.num_ranks}", "stages": (stage,), **options})


def joined(model: Model, base: int, grid: AttentionGrid, **options: object) -> Placement:
    """A pool that joins a base which attends too: the first ``base`` ranks are in both groups."""
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=tuple(range(grid.num_ranks)),
        grid=grid,
        feed_forward_ranks=tuple(range(base)),
        tensor_degree=base,
    )
    return Placement.model_validate({"name": f"joined{grid.num_ranks}", "stages": (stage,), **options})


def context_parallel(model: Model, tensor: int, replicas: int, **options: object) -> Placement:
    ranks = tuple(range(tensor * replicas))
    heads = even_split(model.num_attention_heads, tensor)
    by_head = tuple(replica * tensor + shard for shard in range(tensor) for replica in range(replicas))
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=by_head,
        grid=AttentionGrid(heads=heads, query_blocks=replicas),
        feed_forward_ranks=ranks,
        tensor_degree=tensor,
    )
    return Placement.model_validate({"name": f"tp{tensor}-cp{replicas}", "stages": (stage,), **options})


def separated(model: Model, attention: int, experts: int, **options: object) -> Placement:
    """MA Separation: ``attention`` ranks with whole heads, then ``experts`` ranks with whole experts."""
    everyone = options.get("exit") == "all_reduce_broadcast"
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=tuple(range(attention)),
        grid=AttentionGrid(heads=even_split(model.num_attention_heads, attention)),
        feed_forward_ranks=tuple(range(attention, attention + experts)),
        tensor_degree=experts if everyone else 1,
        projections="attention",
    )
    return Placement.model_validate({"name": f"ma{attention}-{experts}", "stages": (stage,), **options})


def two_level(model: Model, groups: int, slices: int, **options: object) -> Placement:
    """``groups`` head groups × ``slices`` dimension slices; the feed-forward is cut over all of them."""
    ranks = tuple(range(groups * slices))
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=ranks,
        grid=AttentionGrid(heads=even_split(model.num_attention_heads, groups), dim_slices=slices),
        feed_forward_ranks=ranks,
        tensor_degree=len(ranks),
    )
    return Placement.model_validate({"name": f"two-level{groups}x{slices}", "stages": (stage,), **options})
