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
from simulator.costs.work import LSE_BYTES, TOKEN_BYTES, contiguous_rows
from simulator.model import Model
from simulator.tile import num_tokens
from simulator.units import DTYPE_BYTES, MiB
from simulator.weight_image import image_of
from simulator.workspace import Machine, allocated_rows, angle_bytes, only_splits, received_bytes, workspace_bytes

CUDA_CONTEXT_BYTES = 512 * MiB  # assumed: driver context and loaded kernels of a process
GPUS = Machine()
BEFORE, AFTER = 0, 1  # an operation computes
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


def live_bytes(program: p.Program, rank: int, machine: Machine = GPUS) -> list[int]:
    """Live values at every operation's own peak, with what it holds besides: what it waits for has just arrived."""
    operations, found = program.ranks[rank], list[int]()
    storages = Storages(operations)
    expiring = storages.expiring()
    live: dict[str, int] = {}
    now = 0
    for index, operation in enumerate(operations):
        peak = now + storages.arriving(index, program.dtype, machine)
        for name in expiring.get((index, BEFORE), ()):
            now -= live.pop(name, 0)
        for name, num_bytes in storages.written(operation, program.dtype).items():
            live[name] = live.get(name, 0) + num_bytes
            now += num_bytes
        copied = operation.num_bytes if isinstance(operation, p.Send) and operation.reads[0] in storages.views else 0
        found.append(max(peak, now + copied + workspace_bytes(operation, program.dtype, machine)))
        for name in expiring.get((index, AFTER), ()):
            now -= live.pop(name, 0)
    return found


class Storages:
    """Which of a rank's values share memory, and until when. ``views``: values that are parts of each row of another;
    where rows of one have to follow one another, they are copied."""

    def __init__(self, operations: Sequence[p.Operation]) -> None:
        self.operations = operations
        self.owner: dict[str, str] = {}
        self.views: set[str] = set()
        self.collectives: dict[str, p.Collective] = {}
        self.last: dict[str, int] = {}
        self.first: dict[str, int] = {}
        for index, operation in enumerate(operations):
            for name in (*operation.reads, *operation.writes):
                self.last[name] = index
            for name in operation.reads:
                self.first.setdefault(name, index)
        for index, operation in enumerate(operations):
            self._share(index, operation)

    def _share(self, index: int, operation: p.Operation) -> None:
        owner = self.owner
        match operation:
            case p.Slice(reads=(source, *_), writes=(part,)) if source not in self.views and is_view(operation):
                owner[part] = owner.get(source, source)
            case p.Rope(reads=(source, *_), writes=(query, *_)):
                whole = owner.get(source, source) if only_splits(operation) else query
                owner.update(dict.fromkeys(operation.writes, whole))
                self.views.update(operation.writes)
            case p.Collective(reads=(source, *_), writes=(result,), kind=kind):
                self.collectives[result] = operation
                if kind == "all_reduce" and self.last[source] == index and source not in owner:
                    owner[result] = source

    def expiring(self) -> dict[tuple[int, int], list[str]]:
        """Storages by the operation AFTER which nobody reads them, or BEFORE which the collective that did is done."""
        last: dict[str, tuple[int, int]] = {}
        for name, at in self.last.items():
            whole = self.owner.get(name, name)
            last[whole] = max(last.get(whole, (0, BEFORE)), (at, AFTER))
        for name, collective in self.collectives.items():
            for source in collective.reads:
                whole = self.owner.get(source, source)
                last[whole] = max(last[whole], (self.first.get(name, 0), BEFORE))
        found: dict[tuple[int, int], list[str]] = {}
        for name, moment in last.items():
            found.setdefault(moment, []).append(name)
        return found

    def arriving(self, index: int, dtype: str, machine: Machine) -> int:
        """What the collectives have received whose values the operation is the first to read."""
        reads = (name for name in self.operations[index].reads if self.first[name] == index)
        collectives = (self.collectives[name] for name in reads if name in self.collectives)
        return sum(received_bytes(one, dtype, machine) for one in collectives)

    def written(self, operation: p.Operation, dtype: str) -> dict[str, int]:
        """Bytes that an operation adds to each storage."""
        found: dict[str, int] = {}
        if isinstance(operation, p.Slice) and operation.writes[0] not in self.owner:
            return {operation.writes[0]: _part_elements(operation) * DTYPE_BYTES[dtype]}
        if isinstance(operation, p.Rope) and only_splits(operation):
            return {}
        if isinstance(operation, p.Collective) and operation.writes[0] in self.owner:
            return {}
        for name, num_bytes in output_bytes(operation, dtype).items():
            whole = self.owner.get(name, name)
            found[whole] = found.get(whole, 0) + num_bytes
        return found


def is_view(operation: p.Slice) -> bool:
    return contiguous_rows(operation.batch, operation.source, operation.target) is not None


def _part_elements(operation: p.Slice) -> int:
    return num_tokens(operation.target.block, operation.batch) * operation.target.num_cells * operation.row_width


def output_bytes(operation: p.Operation, dtype: str) -> dict[str, int]:
    """Bytes of every value an operation writes (views and caches: 0)."""
    if isinstance(operation, (p.Send, p.Store)):
        return {}
    if isinstance(operation, p.Recv):  # with sends, most of a program
        return {operation.writes[0]: operation.num_bytes}
    elements = _output_elements(operation)
    size = DTYPE_BYTES[dtype]
    match operation:
        case p.Attention(writes=(output, lse)):
            heads = operation.heads[1] - operation.heads[0]
            return {output: elements * size, lse: operation.num_tokens * heads * LSE_BYTES}
        case p.Rope(writes=(query, *keys)):
            row = operation.num_tokens * operation.head_dim * size
            return {query: row * operation.heads} | dict.fromkeys(keys, row * 2 * operation.kv_heads // len(keys))
        case p.Route(writes=(name,)):
            return {name: operation.num_tokens * operation.top_k * 3 * TOKEN_BYTES}
        case p.Sample(writes=(name,)):
            return {name: operation.rows * TOKEN_BYTES}
        case _:
            return {operation.writes[0]: elements * size}


def _output_elements(operation: p.Operation) -> int:
    match operation:
        case p.Linear(num_tokens=tokens, n=width) | p.Norm(num_tokens=tokens, width=width):
            return tokens * width
        case p.Embed(num_tokens=tokens, weight=weight):
            return tokens * (weight.outputs[1] - weight.outputs[0])
        case p.Add(num_tokens=tokens, width=width) | p.Activation(num_tokens=tokens, width=width):
            return tokens * width
        case p.Attention(num_tokens=tokens, heads=heads, head_dim=head_dim, value_dim=value_dim):
            return tokens * (heads[1] - heads[0]) * (value_dim or head_dim)
        case p.Recall(num_tokens=tokens, target=target, head_dim=head_dim):
            return tokens * 2 * target.num_columns * head_dim
        case p.Scores(num_scores=num_scores):
            return num_scores
        case p.WeighValues(num_tokens=tokens, heads=heads, head_dim=head_dim):
            return tokens * (heads[1] - heads[0]) * head_dim
        case p.MergeAttention(num_tokens=tokens, heads=num_heads, head_dim=head_dim):
            return tokens * num_heads * head_dim
        case p.Dispatch(hidden=hidden):
            return allocated_rows(operation) * hidden
        case p.Experts(hidden=hidden, peers=peers):
            return allocated_rows(operation) * peers * hidden
        case p.Combine(num_tokens=tokens, hidden=hidden):
            return tokens * hidden
        case p.Slice():
            return 0 if is_view(operation) else _part_elements(operation)
        case p.Concat(batch=batch, target=target, row_width=width):
            return num_tokens(target.block, batch) * target.num_cells * width
        case p.Collective(shape=shape, kind=kind, ranks=ranks):
            scale = {"all_gather": len(ranks), "reduce_scatter": 1 / len(ranks)}.get(kind, 1)
            return int(shape[0] * shape[1] * scale)
        case _:
            return 0
