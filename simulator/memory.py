"""Memory of every rank while a program runs: weights, KV cache, the peak of live activations, and buffers.

Weights are the distinct slices the rank's operations name; the cache is what ``Program.caches`` says; activations
follow from the order of operations and the last reader of every value, as the executor frees them, with what an
operation holds meanwhile (``simulator.workspace``). Views keep their source alive; an all-reduce sums in place; what a
collective reads lives until its value is there. What it ignores: allocators' fragmentation and what kernels allocate
inside. ``benchmarks.memory_peak`` holds it to torch's own peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from simulator import program as p
from simulator.cluster import Gpu
from simulator.costs.work import TOKEN_BYTES
from simulator.model import Model
from simulator.storages import live_bytes
from simulator.units import DTYPE_BYTES, MiB
from simulator.weight_image import image_of
from simulator.workspace import GPUS, Machine, angle_bytes

CUDA_CONTEXT_BYTES = 512 * MiB  # assumed: driver context and loaded kernels of a process
COLLECTIVE_BUFFER_BYTES = 392 * MiB  # NCCL's buffers for 8 GPUs; AIConfigurator 0.12 a100_sxm.yaml, misc.nccl_mem


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes a rank needs at its peak."""

    weights: int
    kv_cache: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.buffers


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank needs of one program: the distinct weights, and the bytes of its cache and peak activations. Of a
    program lowered shallow, a weight named ``layers.*.`` stands for as many as the model has layers."""

    weights: frozenset[p.WeightSlice]
    kv_cache: int
    activations: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """One program's share of every rank's memory (None: the rank has no part in it)."""

    dtype: str
    ranks: tuple[Share | None, ...]


def footprint(model: Model, program: p.Program, machine: Machine = GPUS) -> Footprint:
    """Every rank's share, from its operations and caches; of a folded program from those of the rank it is like."""
    ranks: list[Share | None] = [None] * len(program.ranks)
    for rank, operations in enumerate(program.ranks):
        listed = program.fold is None or rank in program.fold.kept
        if listed and (operations or program.caches[rank]):
            weights = frozenset(alike_weights(program, weight_slices(model, operations)))
            activations = peak_activation_bytes(program, rank, machine)
            ranks[rank] = Share(weights, cache_bytes(model, program, rank), activations)
    if program.fold is not None:
        for rank, (block, kept) in program.fold.place.items():
            ranks[rank] = _image(model, ranks[kept], block, program.fold.blocks)
    return Footprint(program.dtype, tuple(ranks))


def _image(model: Model, share: Share | None, block: int, blocks: int) -> Share | None:
    """What a rank of another block needs."""
    if share is None or not block:
        return share
    return replace(share, weights=frozenset(image_of(model, weight, block, blocks) for weight in share.weights))


def rank_memory(model: Model, footprints: Sequence[Footprint], gpus: Sequence[Gpu]) -> tuple[RankMemory, ...]:
    """Peak of every rank over several programs (e.g. the prefill and the decode step of one policy).

    Weights of all programs stay resident; the cache and activations are the largest of any. ``gpus[rank]`` is the
    rank's device.
    """
    size = min(DTYPE_BYTES[dtype] for dtype in (model.weight_dtype, *(one.dtype for one in footprints)))
    found = []
    for rank, gpu in enumerate(gpus):
        used = [share for share in (one.ranks[rank] for one in footprints) if share is not None]
        weights = frozenset[p.WeightSlice]().union(*[share.weights for share in used])
        found.append(
            RankMemory(
                weights=num_parameters(weights, model.num_layers) * size,
                kv_cache=max((share.kv_cache for share in used), default=0),
                activations=max((share.activations for share in used), default=0),
                buffers=CUDA_CONTEXT_BYTES + COLLECTIVE_BUFFER_BYTES if used and gpu.kind == "gpu" else 0,
            )
        )
    return tuple(found)


def weight_slices(model: Model, operations: Sequence[p.Operation]) -> set[p.WeightSlice]:
    """The distinct parameters a rank's operations use; a tied output head is the embedding it already has."""
    found: set[p.WeightSlice] = set()
    for operation in operations:
        if isinstance(operation, (p.Send, p.Recv)):  # most of a program
            continue
        match operation:
            case p.Linear(weights=weights):
                found.update(weights)
            case p.Embed(weight=weight) | p.Route(weight=weight):
                found.add(weight)
            case p.Norm(weight=name, width=width):
                found.add(p.WeightSlice(name, (0, 1), (0, width)))
            case p.Experts():
                found.update(_expert_slices(operation))
            case _:
                pass
    if model.tie_word_embeddings:
        tables = {weight.inputs for weight in found if weight.name == "embed"}
        found = {weight for weight in found if weight.name != "lm_head" or weight.outputs not in tables}
    return found


EVERY_LAYER = "layers.*."


def alike_weights(program: p.Program, weights: set[p.WeightSlice]) -> set[p.WeightSlice]:
    """Of a program lowered shallow: the ends, and one layer's weights under a name that stands for every layer."""
    if program.repeated is None:
        return weights
    prefix = f"layers.{program.repeated[0]}."
    inner = [weight for weight in weights if weight.name.startswith(prefix)]
    return {weight for weight in weights if not weight.name.startswith("layers.")} | {
        replace(weight, name=EVERY_LAYER + weight.name.removeprefix(prefix)) for weight in inner
    }


def num_parameters(weights: frozenset[p.WeightSlice], num_layers: int) -> int:
    """Of distinct weights. Where one program was lowered shallow and another whole, every layer is written out."""
    alike = {weight for weight in weights if weight.name.startswith(EVERY_LAYER)}
    rest = weights - alike
    if not any(weight.name.startswith("layers.") for weight in rest):
        return sum(weight.num_parameters for weight in rest) + num_layers * sum(w.num_parameters for w in alike)
    written = {
        replace(weight, name=f"layers.{layer}." + weight.name.removeprefix(EVERY_LAYER))
        for weight in alike
        for layer in range(num_layers)
    }
    return sum(weight.num_parameters for weight in rest | written)


def _expert_slices(operation: p.Experts) -> list[p.WeightSlice]:
    hidden, width = (0, operation.hidden), operation.intermediate
    slices = []
    for expert in range(*operation.experts):
        name = f"layers.{operation.layer}.experts.{expert}"
        slices.append(p.WeightSlice(f"{name}.up", hidden, width))
        slices.append(p.WeightSlice(f"{name}.down", width, hidden))
        if operation.gated:
            slices.append(p.WeightSlice(f"{name}.gate", hidden, width))
    return slices


def cache_bytes(model: Model, program: p.Program, rank: int) -> int:
    """K and V of every cached row of the rank's shards."""
    size = 2 * model.head_dim * DTYPE_BYTES[program.dtype]
    counts = [group.count for group in program.step.batch]
    return sum(
        program.times(shard.layer)
        * shard.tile.num_cells
        * size
        // shard.slices
        * sum(c * rows for c, rows in zip(counts, shard.rows_per_sequence, strict=True))
        for shard in program.caches[rank]
    )


def peak_activation_bytes(program: p.Program, rank: int, machine: Machine = GPUS) -> int:
    """Largest sum of live values while the rank's operations run in order."""
    tokens = TOKEN_BYTES * program.step.num_tokens if any("tokens" in one.reads for one in program.ranks[rank]) else 0
    return max(live_bytes(program, rank, machine), default=0) + angle_bytes(program.ranks[rank]) + tokens
