"""Placement: where attention and feed-forward run, as a point of one lattice.

Every scheme of the documents is a ``Placement``: stages of layers, each with an attention group cut along
``AttentionGrid(heads × query_blocks × kv_blocks × dim_slices)`` and a feed-forward group of
``tensor_degree`` × token replicas (dense) or whole experts (routed). The groups are the same ranks (co-located),
disjoint (FA Pool, MA Separation), or attention has the feed-forward ranks and more (a pool joins a base that attends
too).

    static TP=t, PP=s       heads=t on the same ranks, s stages
    FA Pool, prefill        query_blocks=p on a pool, projections on the base
    FA Pool, decode         kv_blocks=p on a pool, merged by log-sum-exp on the base
    MA Separation           heads=[3,3,…,2,2] with projections on the attention ranks, experts elsewhere
    two-level               heads=n × dim_slices=m on the same ranks
    context parallel        heads=t × query_blocks=c, feed-forward tensor degree t × c token replicas
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from simulator.formats.files import Record

BlockRule = Literal["contiguous", "zigzag", "sqrt"]
Multicast = Literal["direct", "tree", "chain"]
DimMode = Literal["per_slice", "score_sum", "gather_qk", "all_to_all"]
Exit = Literal["all_reduce_broadcast", "all_to_all"]


class AttentionGrid(Record):
    """How one layer's attention is cut. Ranks are numbered row-major: head group, query block, KV block, slice."""

    heads: tuple[int, ...] = Field(min_length=1, description="query heads of each head group; may be uneven")
    query_blocks: int = Field(default=1, ge=1)
    kv_blocks: int = Field(default=1, ge=1)
    dim_slices: int = Field(default=1, ge=1)

    @property
    def num_ranks(self) -> int:
        return len(self.heads) * self.query_blocks * self.kv_blocks * self.dim_slices

    def coordinates(self, index: int) -> tuple[int, int, int, int]:
        """(head group, query block, KV block, dim slice) of the group's rank number ``index``."""
        index, dim = divmod(index, self.dim_slices)
        index, kv = divmod(index, self.kv_blocks)
        head, query = divmod(index, self.query_blocks)
        return head, query, kv, dim


class Stage(Record):
    """Layers [first_layer, last_layer) and the two groups that run them."""

    first_layer: int = Field(ge=0)
    last_layer: int = Field(ge=1)
    attention_ranks: tuple[int, ...] = Field(min_length=1)
    grid: AttentionGrid
    feed_forward_ranks: tuple[int, ...] = Field(min_length=1)
    tensor_degree: int = Field(ge=1, description="dense feed-forward (and its projections) are cut this many ways")
    projections: Literal["feed_forward", "attention"] = "feed_forward"
    experts: tuple[int, ...] | None = Field(default=None, description="experts held by each feed-forward rank")

    @model_validator(mode="after")
    def _shapes_agree(self) -> Stage:
        if self.last_layer <= self.first_layer:
            raise ValueError(f"last_layer {self.last_layer} must exceed first_layer {self.first_layer}")
        if self.grid.num_ranks != len(self.attention_ranks):
            raise ValueError(
                f"grid has {self.grid.num_ranks} cells but attention_ranks lists {len(self.attention_ranks)}"
            )
        if len(self.feed_forward_ranks) % self.tensor_degree:
            raise ValueError(
                f"{len(self.feed_forward_ranks)} feed_forward_ranks do not divide by tensor_degree {self.tensor_degree}"
            )
        for name in ("attention_ranks", "feed_forward_ranks"):
            ranks = getattr(self, name)
            if len(set(ranks)) != len(ranks) or min(ranks) < 0:
                raise ValueError(f"{name} must be distinct and not negative")
        attention, feed_forward = set(self.attention_ranks), set(self.feed_forward_ranks)
        if attention & feed_forward and not feed_forward <= attention:
            raise ValueError("attention_ranks must include all feed_forward_ranks or none of them")
        return self

    @property
    def separated(self) -> bool:
        """Some ranks only attend."""
        return len(self.attention_ranks) > len(self.feed_forward_ranks) or not self.joined

    @property
    def joined(self) -> bool:
        """The feed-forward ranks attend too."""
        return set(self.feed_forward_ranks) <= set(self.attention_ranks)

    @property
    def token_replicas(self) -> int:
        """Groups of ``tensor_degree`` ranks that share the tokens among them (context parallelism)."""
        return len(self.feed_forward_ranks) // self.tensor_degree


class Placement(Record):
    """One placement: its stages and the algorithm of every transfer."""

    name: str
    stages: tuple[Stage, ...] = Field(min_length=1)
    block_rule: BlockRule = "sqrt"
    micro_batches: int = Field(default=1, ge=1)
    kv_multicast: Multicast = Field(default="direct", description="how queries, keys and values reach the pool")
    transfer_chunks: int = Field(default=1, ge=1, description="pieces a chain is pipelined in")
    kv_streams: int = Field(
        default=1, ge=1, description="pieces in which keys are sent and attended to, so that the two overlap"
    )
    all_reduce: Literal["auto", "ring", "tree", "hierarchical"] = "auto"
    dim_mode: DimMode = Field(
        default="gather_qk", description="two-level: what happens between a head's slices; per_slice is another model"
    )
    exit: Exit = Field(default="all_to_all", description="MA Separation: how attention output reaches the experts")
    kv_ring: bool = Field(default=False, description="context parallel: pass KV round a ring instead of gathering it")

    @model_validator(mode="after")
    def _stages_follow(self) -> Placement:
        expected = 0
        for index, stage in enumerate(self.stages):
            if stage.first_layer != expected:
                raise ValueError(f"stages[{index}].first_layer is {stage.first_layer}, must be {expected}")
            expected = stage.last_layer
        return self

    @property
    def ranks(self) -> tuple[int, ...]:
        """Every rank used, ascending."""
        used: set[int] = set()
        for stage in self.stages:
            used.update(stage.attention_ranks, stage.feed_forward_ranks)
        return tuple(sorted(used))

    @property
    def pool_ranks(self) -> tuple[int, ...]:
        """Ranks that only compute attention."""
        pool: set[int] = set()
        for stage in self.stages:
            pool.update(set(stage.attention_ranks) - set(stage.feed_forward_ranks))
        return tuple(sorted(pool))


def even_split(total: int, parts: int) -> tuple[int, ...]:
    """``total`` in ``parts`` sizes that differ by at most one, larger first: 32 over 12 → 3×8 + 2×4."""
    base, extra = divmod(total, parts)
    return tuple(base + 1 if index < extra else base for index in range(parts))
