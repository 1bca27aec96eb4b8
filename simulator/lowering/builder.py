"""Builder: appends operations to every rank's list while a step is lowered.

Names are unique on a rank: ``m{micro-batch}.l{layer}.{what}``. A layout says how a value's columns lie in its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator import program as p
from simulator.lowering.redistribution import Holding, Plan
from simulator.tile import Batch, Tile, num_tokens
from simulator.units import DTYPE_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """A value of T tokens and C columns has shape [T, *before, C, *after]; ``columns`` False: no column axis."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    dtype: str
    columns: bool = True

    def shape(self, tokens: int, columns: int) -> tuple[int, ...]:
        return (tokens, *self.before, *((columns,) if self.columns else ()), *self.after)

    @property
    def row_width(self) -> int:
        """Elements of one column of one token."""
        width = 1
        for size in (*self.before, *self.after):
            width *= size
        return width


@dataclass(frozen=True, slots=True)
class Where:
    """A layer and micro-batch, and the prefix of the names written there."""

    layer: int
    micro_batch: int

    def name(self, what: str) -> str:
        return f"m{self.micro_batch}.l{self.layer}.{what}"


class Builder:
    """Mutable while lowering; ``ranks`` are the finished lists."""

    def __init__(self, num_ranks: int, batch: Batch, dtype: str) -> None:
        self.ranks: list[list[p.Operation]] = [[] for _ in range(num_ranks)]
        self.batch = batch
        self.dtype = dtype
        self._tag = 0

    def emit(self, rank: int, operation: p.Operation) -> str:
        """Append, and return the name of the first value written."""
        self.ranks[rank].append(operation)
        return operation.writes[0] if operation.writes else ""

    def next_tag(self) -> int:
        self._tag += 1
        return self._tag

    def redistribute(
        self, plan: Plan, names: Sequence[str], layout: Layout, where: Where, what: str
    ) -> tuple[str, ...]:
        """Emit a plan's slices, sends, receives and concats; returns each need's value name.

        ``names[i]`` is the value of holding i; ``what`` names the result. An empty need has the name "".
        """
        values = list(names)
        sliced: dict[tuple[int, Tile], str] = {}
        for number, move in enumerate(plan.moves):
            value = self._part(plan, values, move.source, move.part, sliced, layout, where, what)
            values.append(
                self._send(
                    plan.holdings[move.source].rank,
                    move.to,
                    value,
                    move.part,
                    layout,
                    where,
                    f"{what}.{number}",
                )
            )
        results = []
        for index, parts in enumerate(plan.parts):
            if not parts:
                results.append("")
                continue
            taken = [self._part(plan, values, source, part, sliced, layout, where, what) for source, part in parts]
            results.append(taken[0] if len(parts) == 1 else self._concat(plan, index, taken, layout, where, what))
        return tuple(results)

    def _part(
        self,
        plan: Plan,
        values: Sequence[str],
        source: int,
        part: Tile,
        sliced: dict[tuple[int, Tile], str],
        layout: Layout,
        where: Where,
        what: str,
    ) -> str:
        holding = plan.holdings[source]
        if part == holding.tile:
            return values[source]
        key = (source, part)
        if key not in sliced:
            sliced[key] = self.slice(holding, part, values[source], layout, where, f"{what}.s{len(sliced)}")
        return sliced[key]

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

    def _send(self, source: int, to: int, value: str, part: Tile, layout: Layout, where: Where, what: str) -> str:
        shape = layout.shape(num_tokens(part.block, self.batch), part.num_columns)
        num_bytes = DTYPE_BYTES[layout.dtype]
        for size in shape:
            num_bytes *= size
        tag, name = self.next_tag(), where.name(what)
        place = {"layer": where.layer, "micro_batch": where.micro_batch, "tag": tag, "num_bytes": num_bytes}
        self.emit(source, p.Send(reads=(value,), writes=(), to=to, **place))
        self.emit(to, p.Recv(reads=(), writes=(name,), source=source, shape=shape, dtype=layout.dtype, **place))
        return name

    def _concat(self, plan: Plan, index: int, values: Sequence[str], layout: Layout, where: Where, what: str) -> str:
        need = plan.needs[index]
        return self.emit(
            need.rank,
            p.Concat(
                reads=tuple(values),
                writes=(where.name(f"{what}.all"),),
                layer=where.layer,
                micro_batch=where.micro_batch,
                batch=self.batch,
                parts=tuple(part for _, part in plan.parts[index]),
                target=need.tile,
                row_width=layout.row_width,
            ),
        )
