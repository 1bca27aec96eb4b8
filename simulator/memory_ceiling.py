"""Memory ceiling: what no rank of a program can need more than, for a fraction of the exact figure's cost.

As if every value written lived to the end beside the largest workspace: most candidates fit even so, and only of the
others (and of those that are reported) is the exact peak worked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator import program as p
from simulator.costs.work import TOKEN_BYTES
from simulator.memory import (
    COLLECTIVE_BUFFER_BYTES,
    CUDA_CONTEXT_BYTES,
    alike_weights,
    cache_bytes,
    num_parameters,
    weight_slices,
)
from simulator.model import Model
from simulator.units import DTYPE_BYTES
from simulator.value_bytes import output_bytes
from simulator.workspace import GPUS, Machine, angle_bytes, received_bytes, workspace_bytes


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most parameters, cache bytes and activation bytes of any rank."""

    dtype: str
    parameters: int
    kv_cache: int
    activations: int


def ceiling_of(model: Model, program: p.Program, machine: Machine = GPUS) -> Ceiling:
    """Over the ranks that have lists: a folded program's others hold parts of the same sizes."""
    ranks = [rank for rank, operations in enumerate(program.ranks) if operations or program.caches[rank]]
    if program.fold is not None:
        ranks = [rank for rank in ranks if rank in program.fold.kept]
    weights = (frozenset(alike_weights(program, weight_slices(model, program.ranks[rank]))) for rank in ranks)
    return Ceiling(
        program.dtype,
        max((num_parameters(held, model.num_layers) for held in weights), default=0),
        max((cache_bytes(model, program, rank) for rank in ranks), default=0),
        max((_activations(program, rank, machine) for rank in ranks), default=0),
    )


def most_bytes(model: Model, ceilings: Sequence[Ceiling]) -> int:
    """Of a rank over several programs whose weights stay resident side by side."""
    size = min(DTYPE_BYTES[dtype] for dtype in (model.weight_dtype, *(one.dtype for one in ceilings)))
    weights = sum(one.parameters for one in ceilings) * size
    cache, activations = max(one.kv_cache for one in ceilings), max(one.activations for one in ceilings)
    return weights + cache + activations + CUDA_CONTEXT_BYTES + COLLECTIVE_BUFFER_BYTES


def _activations(program: p.Program, rank: int, machine: Machine) -> int:
    dtype, computed = program.dtype, []
    written, held = TOKEN_BYTES * program.step.num_tokens, 0
    for operation in program.ranks[rank]:
        if isinstance(operation, p.Recv):  # with sends, most of a program
            written += operation.num_bytes
        elif isinstance(operation, p.Send):  # copied, if it is a part of every row of a value
            held = max(held, operation.num_bytes)
        else:
            computed.append(operation)
    for operation in computed:
        written += sum(output_bytes(operation, dtype).values())
        if isinstance(operation, p.Collective):
            written += received_bytes(operation, dtype, machine)
        else:
            held = max(held, workspace_bytes(operation, dtype, machine))
    return written + held + angle_bytes(tuple(computed))
