"""Filled cache: a rank's caches as a decode step finds them, without running the prefill that made them.

For timing: the values do not matter, only where they lie and how many there are.
"""

from __future__ import annotations

import torch

from executor.cache import LayerCache
from executor.weights import TORCH_DTYPES
from simulator.program import Program, Store

FILL = 0.01


def filled_layers(program: Program, rank: int, head_dim: int) -> dict[int, LayerCache]:
    """Layer → its cache before the step: what the rank holds afterwards less what it stores."""
    found: dict[int, LayerCache] = {}
    for shard in program.caches[rank] if rank < len(program.caches) else ():
        after = [
            rows
            for group, rows in zip(program.step.batch, shard.rows_per_sequence, strict=True)
            for _ in range(group.count)
        ]
        stored = stored_rows(program, rank, shard.layer)
        shape = (len(after), max(after), 2, shard.tile.num_columns, head_dim // shard.slices)
        buffer = torch.full(shape, FILL, dtype=TORCH_DTYPES[program.dtype])
        found[shard.layer] = LayerCache(buffer, [a - b for a, b in zip(after, stored, strict=True)])
    return found


def stored_rows(program: Program, rank: int, layer: int) -> list[int]:
    """Rows of every sequence that the rank's Stores of a layer append."""
    total = [0] * program.step.num_sequences
    for operation in program.ranks[rank]:
        if isinstance(operation, Store) and operation.layer == layer:
            counts = [
                sum(stop - start for start, stop in spans)
                for group, spans in zip(operation.batch, operation.target.block, strict=True)
                for _ in range(group.count)
            ]
            total = [a + b for a, b in zip(total, counts, strict=True)]
    return total


def as_found(full: dict[int, LayerCache]) -> dict[int, LayerCache]:
    """The same buffers with their first lengths again: a step may be repeated."""
    return {layer: LayerCache(cache.buffer, list(cache.lengths)) for layer, cache in full.items()}
