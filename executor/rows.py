"""Rows: where the tokens of a tile lie in a packed value, and how parts are viewed, cut out and put together.

A value packs its tokens group by group, sequence by sequence, span by span (``simulator.tile``). Columns (heads, KV
heads) are axis 1 of [T, heads, d], axis 2 of [T, 2, kv_heads, d], and runs of ``row_width`` elements of [T, w].
Dimension slices are runs of the last axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simulator.costs.work import contiguous_rows
from simulator.tile import Batch, Block, Tile, num_tokens
from simulator.workspace import BLOCK_ROWS


def blocks(num_rows: int, device: torch.device, *, at_once: int = 1) -> Iterator[slice]:
    """Runs of rows to go over one after another, so that intermediate values are small; on a GPU all at once.
    ``at_once``: of how many sequences each row is taken."""
    step = max(1, BLOCK_ROWS // at_once) if device.type == "cpu" else max(1, num_rows)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` tokens of each of ``count`` sequences (from number ``sequence`` of the batch), in two values: first
    row, rows a sequence, and offset."""

    sequence: int
    count: int
    length: int
    outer: tuple[int, int, int]
    inner: tuple[int, int, int]


def common_pieces(batch: Batch, outer: Tile, inner: Tile) -> Iterator[Piece]:
    """The token runs that values of ``outer`` and ``inner`` have in common."""
    outer_row = inner_row = sequence = 0
    for group, outer_spans, inner_spans in zip(batch, outer.block, inner.block, strict=True):
        outer_length = sum(stop - start for start, stop in outer_spans)
        inner_length = sum(stop - start for start, stop in inner_spans)
        outer_seen = 0
        for start, stop in outer_spans:
            inner_seen = 0
            for first, last in inner_spans:
                low, high = max(start, first), min(stop, last)
                if low < high:
                    yield Piece(
                        sequence,
                        group.count,
                        high - low,
                        (outer_row, outer_length, outer_seen + low - start),
                        (inner_row, inner_length, inner_seen + low - first),
                    )
                inner_seen += last - first
            outer_seen += stop - start
        outer_row += group.count * outer_length
        inner_row += group.count * inner_length
        sequence += group.count


def rows_of(value: Tensor, place: tuple[int, int, int], count: int, length: int) -> Tensor:
    """View [count, length, …] of a packed value: ``length`` rows of each sequence, from ``offset`` on."""
    first, per_sequence, offset = place
    return sequences_of(value.narrow(0, first, count * per_sequence), count).narrow(1, offset, length)


def sequences_of(value: Tensor, count: int) -> Tensor:
    """[count·rows, …] as [count, rows, …]."""
    return value.view(count, value.shape[0] // count, *value.shape[1:])


def columns_of(value: Tensor, held: Tile, wanted: Tile) -> Tensor:
    """View of the columns and slices ``wanted`` of a value that holds those of ``held``."""
    if held.dims != wanted.dims:
        width = value.shape[-1] // (held.dims[1] - held.dims[0])
        start = (wanted.dims[0] - held.dims[0]) * width
        value = value.narrow(-1, start, (wanted.dims[1] - wanted.dims[0]) * width)
    if held.columns == wanted.columns:
        return value
    axis = 2 if value.ndim == 4 else 1
    width = value.shape[1] // held.num_columns if value.ndim == 2 else 1
    start = (wanted.columns[0] - held.columns[0]) * width
    return value.narrow(axis, start, wanted.num_columns * width)


def take(value: Tensor, batch: Batch, source: Tile, target: Tile) -> Tensor:
    """The part ``target`` of a value that holds ``source``; a view where it is one run of whole rows."""
    value = columns_of(value, source, target)
    same_columns = replace(target, block=source.block)
    rows = contiguous_rows(batch, same_columns, target)
    if rows is not None:
        return value[rows[0] : rows[1]].contiguous()
    taken = value.new_empty((num_tokens(target.block, batch), *value.shape[1:]))
    for piece in common_pieces(batch, source, target):
        place = rows_of(taken, piece.inner, piece.count, piece.length)
        place.copy_(rows_of(value, piece.outer, piece.count, piece.length))
    return taken


def join(values: Sequence[Tensor], batch: Batch, parts: Sequence[Tile], target: Tile) -> Tensor:
    """One value holding ``target`` out of values that hold ``parts``."""
    joined = values[0].new_empty(_joined_shape(values[0], batch, parts[0], target))
    for value, part in zip(values, parts, strict=True):
        columns = columns_of(joined, target, part)
        for piece in common_pieces(batch, target, part):
            place = rows_of(columns, piece.outer, piece.count, piece.length)
            place.copy_(rows_of(value, piece.inner, piece.count, piece.length))
    return joined


def _joined_shape(value: Tensor, batch: Batch, part: Tile, target: Tile) -> list[int]:
    shape = [num_tokens(target.block, batch), *value.shape[1:]]
    axis = 2 if value.ndim == 4 else 1
    if value.ndim > 1:
        shape[axis] = shape[axis] // part.num_columns * target.num_columns
        shape[-1] = shape[-1] // (part.dims[1] - part.dims[0]) * (target.dims[1] - target.dims[0])
    return shape


def positions_of(batch: Batch, block: Block, device: torch.device | None = None) -> Tensor:
    """Position of every packed token, [T] int64, made on the device: a copy would make the host wait."""
    parts = []
    for group, spans in zip(batch, block, strict=True):
        if spans:
            one = torch.cat([torch.arange(start, stop, device=device) for start, stop in spans])
            parts.append(one.repeat(group.count))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=device)
