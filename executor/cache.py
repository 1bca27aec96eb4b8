"""KV cache of one rank: per layer, one buffer [sequences held, capacity, 2, kv_heads, head_dim] and each
sequence's length.

Rows are in the order of the positions stored. A layer's capacity grows by doubling; ragged batches pay for the
longest sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from executor.rows import columns_of, common_pieces, rows_of
from simulator.errors import ExecutionError
from simulator.program import Recall, Store
from simulator.tile import Tile

MIN_CAPACITY = 16


@dataclass
class LayerCache:
    """``buffer`` has the sequences from ``first`` on that the rank holds; ``lengths`` every sequence's."""

    buffer: Tensor
    lengths: list[int]
    first: int = 0


class Cache:
    """The caches of one rank, alive across steps. ``capacity_rows``: rows to reserve a sequence, if known; ``held``:
    the sequences that the rank has rows of (None: any)."""

    def __init__(self, num_sequences: int, capacity_rows: int = 0, held: range | None = None) -> None:
        self.num_sequences, self.capacity_rows = num_sequences, capacity_rows
        self.held = range(num_sequences) if held is None else held
        self.layers: dict[int, LayerCache] = {}

    def clear(self) -> None:
        """Forget every row; buffers are kept."""
        for layer in self.layers.values():
            layer.lengths = [0] * self.num_sequences

    def store(self, operation: Store, kv: Tensor) -> None:
        """Append the rows of ``target`` found in ``kv``, which holds ``source``."""
        kv = columns_of(kv, operation.source, operation.target)
        sequence = 0
        for group, spans in zip(operation.batch, operation.target.block, strict=True):
            if spans:
                self._reserve(operation, kv, sequence, group.count, sum(stop - start for start, stop in spans))
            sequence += group.count
        source = Tile(operation.target.columns, operation.source.block)
        for piece in common_pieces(operation.batch, source, operation.target):
            layer = self.layers[operation.layer]
            first, start = piece.sequence - layer.first, layer.lengths[piece.sequence] + piece.inner[2]
            place = layer.buffer[first : first + piece.count, start : start + piece.length]
            place.copy_(rows_of(kv, piece.outer, piece.count, piece.length))
        self._lengthen(operation)

    def recall(self, operation: Recall) -> Tensor:
        """[T, 2, kv_heads, head_dim]: the rows of ``target``, of the rows of ``source`` that are held."""
        layer = self.layers[operation.layer]
        buffer = layer.buffer
        kv = buffer.new_empty((operation.num_tokens, *buffer.shape[2:]))
        for piece in common_pieces(operation.batch, operation.source, operation.target):
            first, start = piece.sequence - layer.first, piece.outer[2]
            held = buffer[first : first + piece.count, start : start + piece.length]
            rows_of(kv, piece.inner, piece.count, piece.length).copy_(held)
        return kv

    def _lengthen(self, operation: Store) -> None:
        sequence = 0
        for group, spans in zip(operation.batch, operation.target.block, strict=True):
            if spans:
                lengths = self.layers[operation.layer].lengths
                for index in range(sequence, sequence + group.count):
                    lengths[index] += sum(stop - start for start, stop in spans)
            sequence += group.count

    def _reserve(self, operation: Store, kv: Tensor, first: int, count: int, length: int) -> None:
        """Room for ``length`` more rows of ``count`` sequences, which must be equally long so far."""
        layer = self.layers.get(operation.layer)
        held = 0 if layer is None else layer.lengths[first]
        if layer is not None and any(layer.lengths[i] != held for i in range(first, first + count)):
            raise ExecutionError(f"cache.{operation.layer}: sequences [{first}, {first + count}) differ in length")
        needed = held + length
        if layer is not None and needed <= layer.buffer.shape[1]:
            return
        old = 0 if layer is None else layer.buffer.shape[1]
        capacity = max(needed, self.capacity_rows, 2 * old, MIN_CAPACITY)
        assert self.held.start <= first <= first + count <= self.held.stop, f"sequences {first}… of {self.held}"
        buffer = torch.empty((len(self.held), capacity, *kv.shape[1:]), dtype=kv.dtype, device=kv.device)
        if layer is None:
            self.layers[operation.layer] = LayerCache(buffer, [0] * self.num_sequences, self.held.start)
        else:
            buffer[:, :old] = layer.buffer
            layer.buffer = buffer

    def rows(self, layer: int, first: int, count: int, num_rows: int) -> Tensor | None:
        """[count, num_rows, 2, kv_heads, head_dim]: the first rows of ``count`` sequences; None if none are held."""
        held = self.layers.get(layer)
        if not num_rows or held is None:
            return None
        return held.buffer[first - held.first : first - held.first + count, :num_rows]
