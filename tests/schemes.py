"""Small models and one placement of every kind, for tests of lowering, engine and executor."""

from __future__ import annotations

from collections.abc import Sequence

from planner.documents.placements import across, one_stage
from planner.documents.placements import static as static
from simulator.model import Experts, Layer, Model
from simulator.placement import AttentionGrid, Placement, even_split


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


def pooled(model: Model, base: int, grid: AttentionGrid, **options: object) -> Placement:
    """FA Pool and hybrids: ``base`` ranks, then the pool's."""
    ranks = range(base, base + grid.num_ranks), range(base)
    return one_stage(model, f"pool{grid.num_ranks}", grid, ranks, base, **options)


def joined(model: Model, base: int, grid: AttentionGrid, **options: object) -> Placement:
    """A pool that joins a base which attends too: the first ``base`` ranks are in both groups."""
    return one_stage(model, f"joined{grid.num_ranks}", grid, (range(grid.num_ranks), range(base)), base, **options)


def context_parallel(model: Model, tensor: int, replicas: int, **options: object) -> Placement:
    grid = AttentionGrid(heads=even_split(model.num_attention_heads, tensor), query_blocks=replicas)
    ranks = across(tensor, replicas), range(tensor * replicas)
    return one_stage(model, f"tp{tensor}-cp{replicas}", grid, ranks, tensor, **options)


def separated(model: Model, attention: int, experts: int, **options: object) -> Placement:
    """MA Separation: ``attention`` ranks with whole heads, then ``experts`` ranks with whole experts."""
    grid = AttentionGrid(heads=even_split(model.num_attention_heads, attention))
    degree = experts if options.get("exit") == "all_reduce_broadcast" else 1
    ranks = range(attention), range(attention, attention + experts)
    return one_stage(model, f"ma{attention}-{experts}", grid, ranks, degree, projections="attention", **options)


def two_level(model: Model, groups: int, slices: int, **options: object) -> Placement:
    """``groups`` head groups × ``slices`` dimension slices; the feed-forward is cut over all of them."""
    grid = AttentionGrid(heads=even_split(model.num_attention_heads, groups), dim_slices=slices)
    ranks = range(groups * slices)
    return one_stage(model, f"two-level{groups}x{slices}", grid, (ranks, ranks), len(ranks), **options)
