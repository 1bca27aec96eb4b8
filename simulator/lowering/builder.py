"""Builder: appends operations to every rank's list while a step is lowered.

Names are unique on a rank: ``m{micro-batch}.l{layer}.{what}``. A layout says how a value's columns lie in its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import Any

from simulator import program as p
from simulator.costs.work import contiguous_rows
from simulator.fold import Fold
from simulator.lowering.alike import check_alike, check_pairs
from simulator.lowering.redistribution import Holding, Move, Plan
from simulator.tile import Batch, Span, Tile, num_tokens
from simulator.units import DTYPE_BYTES

OVER = object()  # what a generator that has ended gives


@dataclass(frozen=True, slots=True)
class Layout:
    """A value of T tokens and C columns has shape [T, *before, C, *after]; ``columns`` False: no column axis. Dimension
    slices of a column lie in the last of ``after``, which says the width of one."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    dtype: str
    columns: bool = True

    def shape(self, part: Tile, batch: Batch) -> tuple[int, ...]:
        """Of a value that holds ``part``."""
        slices = part.dims[1] - part.dims[0]
        after = (*self.after[:-1], self.after[-1] * slices) if self.after else ()
        columns = (part.num_columns,) if self.columns else ()
        return (num_tokens(part.block, batch), *self.before, *columns, *after)

    @property
    def row_width(self) -> int:
        """Elements of one column (of one slice of it) of one token."""
        return prod(self.before) * prod(self.after)


@dataclass(frozen=True, slots=True)
class Where:
    """A layer and micro-batch, and the prefix of the names written there."""

    layer: int
    micro_batch: int

    def name(self, what: str) -> str:
        return f"m{self.micro_batch}.l{self.layer}.{what}"


@dataclass(frozen=True, slots=True)
class Message:
    """Value ``value`` of rank ``source``, or contiguous rows of it, on its way to rank ``to``."""

    source: int
    to: int
    value: str
    rows: Span | None = None


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes from a rank to another: ``rows`` of a value (None: all of it) and the shape they arrive in."""

    source: int
    to: int
    rows: Span | None
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(slots=True)
class Moved:
    """A redistribution whose moves are emitted: ``values[i]`` names holding i; ``sliced`` the parts cut so far."""

    plan: Plan
    values: list[str]
    layout: Layout
    where: Where
    what: str
    sliced: dict[tuple[int, Tile], str] = field(default_factory=dict)


class Builder:
    """Mutable while lowering; ``ranks`` are the finished lists."""

    def __init__(self, num_ranks: int, batch: Batch, dtype: str, fold: Fold | None = None) -> None:
        self.ranks: list[list[p.Operation]] = [[] for _ in range(num_ranks)]
        self.fold = fold
        self.narrow = False
        self.common: dict[tuple[str, int, int], Any] = {}
        self._narrowed: Builder | None = None
        self._spare: dict[int, list[Iterator[None]]] = {}
        self._alike: dict[int, Plan] = {}
        self._parcels: dict[tuple[int, Layout], tuple[Plan, tuple[Parcel | None, ...]]] = {}
        self.batch = batch
        self.dtype = dtype
        self._tags = count(1)

    def emit(self, rank: int, operation: p.Operation) -> str:
        """Append, and return the name of the first value written. Ranks that others stand for have no lists."""
        if self.keeps(rank):
            self.ranks[rank].append(operation)
        return operation.writes[0] if operation.writes else ""

    def keeps(self, rank: int) -> bool:
        """Whether a rank's operations are written down: all ranks' but for those that a fold's block 0 stands for."""
        return self.fold is None or rank in self.fold.kept

    def narrowed(self) -> Builder:
        """This builder, writing the same lists, for the plans of block 0 alone."""
        if self._narrowed is None:
            self._narrowed = copy(self)
            self._narrowed.narrow, self._narrowed.common = True, {}
        return self._narrowed

    def spare(self, where: Where, work: Iterator[None]) -> None:
        """Work that nothing waits for: a turn of it is emitted wherever its micro-batch's compute would wait."""
        self._spare.setdefault(where.micro_batch, []).append(work)

    def fill(self, micro_batch: int) -> None:
        """Emit a turn of a micro-batch's spare work: called where an all-reduce has been issued."""
        waiting = self._spare.pop(micro_batch, [])
        left = [work for work in waiting if next(work, OVER) is not OVER]
        if left:
            self._spare[micro_batch] = left

    def finish(self, micro_batch: int) -> None:
        """Emit all that is left of it."""
        while micro_batch in self._spare:
            self.fill(micro_batch)

    def next_tag(self) -> int:
        return next(self._tags)

    def check_pairs(self, pairs: Sequence[tuple[int, int]]) -> None:
        """UnfoldableError unless messages (from, to) are the same within every block of the fold."""
        if self.fold is not None:
            check_pairs(pairs, self.fold)

    def redistribute(
        self, plan: Plan, names: Sequence[str], layout: Layout, where: Where, what: str
    ) -> tuple[str, ...]:
        """Emit a plan's moves and put the parts together; returns each need's value name.

        ``names[i]`` is the value of holding i; ``what`` names the result. An empty need has the name "".
        """
        return self.assemble(self.move(plan, names, layout, where, what))

    def move(self, plan: Plan, names: Sequence[str], layout: Layout, where: Where, what: str) -> Moved:
        """Emit a plan's sends and receives. Contiguous rows go straight out of the value that holds them."""
        moved = Moved(plan, list(names), layout, where, what)
        if self.fold is not None and not self.narrow and id(plan) not in self._alike:
            check_alike(plan, self.fold)
            self._alike[id(plan)] = plan
        prefix = where.name(what)
        for number, (move, parcel) in enumerate(zip(plan.moves, self._packed(plan, layout), strict=True)):
            name = f"{prefix}.{number}"
            if parcel is not None:
                held = parcel.rows is not None
                value = moved.values[move.source] if held else self._part(moved, move.source, move.part)
                self._transfer(parcel, value, layout.dtype, where, name)
            moved.values.append(name)
        return moved

    def _packed(self, plan: Plan, layout: Layout) -> tuple[Parcel | None, ...]:
        """Every move's parcel, worked out once: like layers share their plans. None: to a rank without a list."""
        key = id(plan), layout
        if key not in self._parcels:
            self._parcels[key] = plan, tuple(self._parcel(plan, move, layout) for move in plan.moves)
        return self._parcels[key][1]

    def _parcel(self, plan: Plan, move: Move, layout: Layout) -> Parcel | None:
        if not self.keeps(move.to):
            return None
        holding = plan.holdings[move.source]
        rows = contiguous_rows(self.batch, holding.tile, move.part) if move.part != holding.tile else None
        shape = layout.shape(move.part, self.batch)
        return Parcel(holding.rank, move.to, rows, shape, DTYPE_BYTES[layout.dtype] * prod(shape))

    def assemble(self, moved: Moved) -> tuple[str, ...]:
        """Emit the slices and concats that make every need's value from its parts."""
        results = []
        for index, parts in enumerate(moved.plan.parts):
            if not self.keeps(moved.plan.needs[index].rank):
                results.append(moved.what if parts else "")
                continue
            taken = [self._part(moved, source, part) for source, part in parts]
            results.append("" if not taken else taken[0] if len(taken) == 1 else self._concat(moved, index, taken))
        return tuple(results)

    def _part(self, moved: Moved, source: int, part: Tile) -> str:
        holding, key = moved.plan.holdings[source], (source, part)
        if part == holding.tile:
            return moved.values[source]
        if key not in moved.sliced:
            name = f"{moved.what}.s{len(moved.sliced)}"
            moved.sliced[key] = self.slice(holding, part, moved.values[source], moved.layout, moved.where, name)
        return moved.sliced[key]

    def slice(self, holding: Holding, part: Tile, value: str, layout: Layout, where: Where, what: str) -> str:
        """The part of a rank's value, as a value of its own."""
        return self.emit(
            holding.rank,
            p.Slice(
                reads=(value,),
                writes=(where.name(what),),
                layer=where.layer,
                micro_batch=where.micro_batch,
                batch=self.batch,
                source=holding.tile,
                target=part,
                row_width=layout.row_width,
            ),
        )

    def message(self, message: Message, shape: tuple[int, ...], dtype: str, where: Where, what: str) -> str:
        """Emit a send and its receive; returns the name of the value received."""
        name, num_bytes = where.name(what), DTYPE_BYTES[dtype] * prod(shape)
        if self.keeps(message.to):
            parcel = Parcel(message.source, message.to, message.rows, shape, num_bytes)
            self._transfer(parcel, message.value, dtype, where, name)
        return name

    def _transfer(self, parcel: Parcel, value: str, dtype: str, where: Where, name: str) -> None:
        """The send of ``value`` and the receive of ``name``."""
        tag = self.next_tag()
        self.emit(
            parcel.source,
            p.Send(
                reads=(value,),
                writes=(),
                layer=where.layer,
                micro_batch=where.micro_batch,
                to=parcel.to,
                tag=tag,
                num_bytes=parcel.num_bytes,
                rows=parcel.rows,
            ),
        )
        self.emit(
            parcel.to,
            p.Recv(
                reads=(),
                writes=(name,),
                layer=where.layer,
                micro_batch=where.micro_batch,
                source=parcel.source,
                tag=tag,
                num_bytes=parcel.num_bytes,
                shape=parcel.shape,
                dtype=dtype,
            ),
        )

    def _concat(self, moved: Moved, index: int, values: Sequence[str]) -> str:
        need = moved.plan.needs[index]
        return self.emit(
            need.rank,
            p.Concat(
                reads=tuple(values),
                writes=(moved.where.name(f"{moved.what}.all"),),
                layer=moved.where.layer,
                micro_batch=moved.where.micro_batch,
                batch=self.batch,
                parts=tuple(part for _, part in moved.plan.parts[index]),
                target=need.tile,
                row_width=moved.layout.row_width,
            ),
        )
