"""What every part of lowering needs: the model, the placement, the groups, and helpers that emit common operations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from simulator import program as p
from simulator.cache_layout import head_spans
from simulator.groups import Groups
from simulator.lowering.builder import Builder, Where
from simulator.model import Model
from simulator.placement import Placement, Stage, even_split
from simulator.tile import Block, Span, is_empty, num_tokens, query_blocks
from simulator.units import DTYPE_BYTES
from simulator.workload import Phase

Share = TypeVar("Share")


@dataclass(frozen=True, slots=True)
class Residual:
    """The residual stream between layers: each feed-forward rank's value name and the tokens it holds."""

    names: dict[int, str]
    blocks: dict[int, Block]

    def of(self, ranks: Collection[int]) -> Residual:
        """Of some of the ranks."""
        return Residual(
            {rank: name for rank, name in self.names.items() if rank in ranks},
            {rank: block for rank, block in self.blocks.items() if rank in ranks},
        )


@dataclass(frozen=True, slots=True)
class Context:
    """One lowering in progress."""

    model: Model
    placement: Placement
    groups: Groups
    builder: Builder
    nodes: tuple[int, ...]
    dtype: str
    phase: Phase

    def narrowed(self) -> Context:
        """For the ranks that have lists alone, once their moves are known to be the other blocks' too."""
        return replace(self, builder=self.builder.narrowed())

    @property
    def narrow(self) -> bool:
        return self.builder.narrow

    def wants(self, rank: int) -> bool:
        """Whether a rank's share is worked out."""
        return not self.builder.narrow or self.builder.keeps(rank)

    def cuts(self, total: int, parts: int) -> tuple[Span, ...]:
        """[0, total) in ``parts`` even ranges."""
        return head_spans(even_split(total, parts))

    def token_blocks(self, parts: int, *, attending: bool = True) -> tuple[Block, ...]:
        """The step's new tokens for ``parts`` replicas: cut within each sequence (prefill) or by sequence (decode).

        ``attending``: by the placement's block rule, which balances attention; else in even numbers of tokens."""
        everything = self.groups.everything
        if parts == 1:
            return (everything,)
        if self.phase == "decode":
            return tuple(self.groups.select(everything, part=part) for part in range(parts))
        rule = self.placement.block_rule
        return query_blocks(self.groups.batch, parts, rule, causal=self.model.causal and attending)

    def once(
        self, what: str, stage: Stage, micro_batch: int, shares: Callable[[], Iterable[Share]]
    ) -> tuple[Share, ...]:
        """Ranks' shares of a micro-batch, which all layers of a stage have in common, worked out for one of them."""
        key = what, stage.first_layer, micro_batch
        if key not in self.builder.common:
            self.builder.common[key] = tuple(shares())
        found: tuple[Share, ...] = self.builder.common[key]
        return found

    def feed_forward(self, stage: Stage, micro_batch: int) -> tuple[tuple[int, int, Block], ...]:
        """(rank, tensor shard, tokens) of every feed-forward rank that has tokens of this micro-batch."""
        return self.once("feed-forward", stage, micro_batch, lambda: self._feed_forward(stage, micro_batch))

    def _feed_forward(self, stage: Stage, micro_batch: int) -> Iterator[tuple[int, int, Block]]:
        blocks = self.token_blocks(stage.token_replicas, attending=stage.joined)
        for index, rank in enumerate(stage.feed_forward_ranks):
            replica, shard = divmod(index, stage.tensor_degree)
            if not self.wants(rank):
                continue
            block = self.groups.select(blocks[replica], micro_batch=micro_batch)
            if not is_empty(block):
                yield rank, shard, block

    def blocks(self, stage: Stage, micro_batch: int) -> dict[int, Block]:
        return {rank: block for rank, _, block in self.feed_forward(stage, micro_batch)}

    def count(self, block: Block) -> int:
        return num_tokens(block, self.groups.batch)

    def tensor_groups(self, stage: Stage, names: dict[int, str]) -> list[tuple[int, ...]]:
        """Feed-forward ranks that hold shards of the same tokens, those that have a value."""
        ranks, degree = stage.feed_forward_ranks, stage.tensor_degree
        groups = [ranks[i : i + degree] for i in range(0, len(ranks), degree)]
        return [group for group in groups if group[0] in names]

    def norm(self, rank: int, where: Where, value: str, weight: str, tokens: int) -> str:
        if not self.builder.keeps(rank):
            return value
        return self.builder.emit(
            rank,
            p.Norm(
                reads=(value,),
                writes=(f"{value}.{weight.rsplit('.', 1)[-1]}",),
                layer=where.layer,
                micro_batch=where.micro_batch,
                num_tokens=tokens,
                width=self.model.hidden_size,
                weight=weight,
                eps=self.model.rms_norm_eps,
            ),
        )

    def linear(
        self,
        rank: int,
        where: Where,
        value: str,
        what: str,
        tokens: int,
        weights: tuple[p.WeightSlice, ...],
        *,
        bias: bool = False,
    ) -> str:
        if not self.builder.keeps(rank):
            return value
        return self.builder.emit(
            rank,
            p.Linear(
                reads=(value,),
                writes=(where.name(what),),
                layer=where.layer,
                micro_batch=where.micro_batch,
                num_tokens=tokens,
                weights=weights,
                bias=bias,
            ),
        )

    def add(self, rank: int, where: Where, left: str, right: str, what: str, tokens: int) -> str:
        if not self.builder.keeps(rank):
            return left
        return self.builder.emit(
            rank,
            p.Add(
                reads=(left, right),
                writes=(where.name(what),),
                layer=where.layer,
                micro_batch=where.micro_batch,
                num_tokens=tokens,
                width=self.model.hidden_size,
            ),
        )

    def collective(
        self,
        kind: p.CollectiveKind,
        ranks: tuple[int, ...],
        where: Where,
        names: dict[int, str],
        what: str,
        shape: tuple[int, int],
        *,
        along: str = "rows",
    ) -> dict[int, str]:
        """``kind`` over ``ranks`` on values of ``shape``; num_bytes counts the larger of input and output."""
        tag = self.builder.next_tag()
        size = shape[0] * shape[1] * DTYPE_BYTES[self.dtype] * (len(ranks) if kind == "all_gather" else 1)
        result = {}
        for rank in ranks:
            if not self.builder.keeps(rank):
                if not self.narrow:
                    result[rank] = names[rank]
                continue
            result[rank] = self.builder.emit(
                rank,
                p.Collective(
                    reads=(names[rank],),
                    writes=(where.name(what),),
                    layer=where.layer,
                    micro_batch=where.micro_batch,
                    kind=kind,
                    algorithm=self.placement.all_reduce,
                    ranks=ranks,
                    tag=tag,
                    num_bytes=size,
                    shape=shape,
                    dtype=self.dtype,
                    along="columns" if along == "columns" else "rows",
                ),
            )
        return result

    def all_reduce(
        self, stage: Stage, where: Where, names: dict[int, str], blocks: dict[int, Block], what: str
    ) -> Generator[str, None, dict[int, str]]:
        """Sum the tensor shards' partial hidden values; a pause if anything was issued."""
        if stage.tensor_degree == 1:
            self.builder.fill(where.micro_batch)
            return names
        result: dict[int, str] = {}
        for ranks in self.tensor_groups(stage, names):
            shape = (self.count(blocks[ranks[0]]), self.model.hidden_size)
            result |= self.collective("all_reduce", ranks, where, names, f"{what}.sum", shape)
        self.builder.fill(where.micro_batch)
        yield "reduce"
        return result
