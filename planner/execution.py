"""Execution: from an allocation to the programs of one generation, and to what was measured when they ran.

The programs are lowered anew from the placements in the file, so what runs is what was planned. A generation uses the
prefill entry's batch for both phases; its KV cache is left where the decode entry's placement reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from planner.all_reduce import with_algorithms
from simulator import presets
from simulator.allocation import Allocation, Choice, digest
from simulator.cluster import Cluster
from simulator.errors import InfeasibleError, SpecError
from simulator.lowering import lower
from simulator.measurement import Measurement, Place, Question
from simulator.model import Model
from simulator.packing import packed
from simulator.placement import Placement
from simulator.profile import Profile, load_profile
from simulator.program import Packing, Program
from simulator.workload import Sequences, Step, Workload, prefill_step

if TYPE_CHECKING:
    from executor.compression_report import CompressionReport
    from executor.sampling import Sampling
    from executor.session import Generation

Candidate = Literal["chosen", "pool", "rule"]
On = Literal["auto", "cpu", "emulated", "cuda", "replay"]
SEED = 0
CHECKABLE_PARAMETERS = 100_000_000  # a second or two a token for the eager reference on one core


@dataclass(frozen=True, slots=True)
class Inputs:
    """An allocation's inputs, as its ``sources`` say."""

    model: Model
    cluster: Cluster
    workload: Workload
    profiles: Mapping[str, Profile]


def read_inputs(allocation: Allocation) -> Inputs:
    """Model, cluster, workload and profiles from where they were planned from."""
    from planner.problem import profiles_for

    sources = allocation.sources
    cluster = presets.cluster(sources.cluster)
    profiles = profiles_for(cluster, load_profile(sources.profile))
    return Inputs(presets.model(sources.model), cluster, presets.workload(sources.workload), profiles)


def inputs(allocation: Allocation) -> Inputs:
    """As ``read_inputs``; SpecError if the model or the cluster has changed since it was planned."""
    found = read_inputs(allocation)
    for name, record in (("model", found.model), ("cluster", found.cluster)):
        if digest(record) != getattr(allocation.digests, name):
            source = getattr(allocation.sources, name)
            raise SpecError(f"{allocation.name}: {name} {source!r} has changed since it was planned; plan again")
    return found


def programs(allocation: Allocation, found: Inputs, question: Question) -> tuple[Program, ...]:
    """The prefill program and one a decoded token."""
    prefill = placement_of(entry(allocation, "prefill", question.tokens), question.candidate)
    decode = placement_of(entry(allocation, "decode", question.tokens), question.candidate)
    nodes = tuple(node for node, _, _ in found.cluster.rank_nodes())
    step = prefill_step(question.batch, question.tokens)
    made = [lower(found.model, step, prefill, nodes=nodes, dtype=allocation.dtype, cache=decode)]
    for number in range(question.decoded_tokens):
        context = Sequences(question.batch, question.tokens + number, 1, question.tokens)
        made.append(lower(found.model, Step("decode", (context,)), decode, nodes=nodes, dtype=allocation.dtype))
    made = [with_algorithms(program, found.cluster, found.profiles) for program in made]
    return tuple(made if question.packing == "none" else [packed(program, question.packing) for program in made])


def entry(allocation: Allocation, phase: Literal["prefill", "decode"], tokens: int) -> Choice:
    """The policy's entry, or SpecError naming the lengths it covers."""
    try:
        return allocation.choice(phase, tokens)
    except LookupError as error:
        raise SpecError(f"--tokens {tokens}: {error}") from error


def placement_of(choice: Choice, candidate: Candidate) -> Placement:
    """The chosen placement, the best pool, or the documents' rule."""
    match candidate:
        case "chosen":
            return choice.placement
        case "pool":
            alternative = choice.best_pool
        case "rule":
            alternative = choice.rule
    if alternative is None or alternative.placement is None:
        raise InfeasibleError(f"{choice.phase} at {choice.tokens} tokens: no {candidate} candidate fits here")
    return alternative.placement


def default_question(
    allocation: Allocation, tokens: int | None, decoded_tokens: int, candidate: str, *, packing: Packing = "none"
) -> Question:
    """``tokens`` None: the first prefill entry's."""
    first = next((choice for choice in allocation.policy if choice.phase == "prefill"), None)
    if first is None:
        raise SpecError(f"{allocation.name}: has no prefill entry to run")
    length = first.tokens if tokens is None else tokens
    chosen = entry(allocation, "prefill", length)
    return Question.model_validate(
        {
            "tokens": length,
            "batch": chosen.batch,
            "decoded_tokens": decoded_tokens,
            "candidate": candidate,
            "packing": packing,
        }
    )


def place_of(on: On, cluster: Cluster) -> Place:
    """auto: nccl under torchrun, gloo for a CPU node, emulated hosts for several, else replay on one device."""
    import os

    if on in ("replay", "emulated"):
        return on
    if on == "cpu":
        return "gloo"
    if on == "cuda" or "WORLD_SIZE" in os.environ:
        return "nccl"
    if any(gpu.kind != "cpu" for gpu in cluster.gpus):
        return "replay"
    return "emulated" if cluster.rank_nodes()[-1][0] > 0 else "gloo"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run: where, how often, and for how long at most; a directory of weights (None: seeded), how tokens are
    chosen (None: greedily), the attention backend (None: the first that works), whether decode steps are replayed as
    CUDA graphs, and how CPU ranks' values travel (``executor.world``)."""

    on: On = "auto"
    repeats: int = 3
    timeout_s: float = 60.0
    limit_s: float = 300.0
    directory: Path | None = None
    check: bool = True
    weights: str | None = None
    sampling: Sampling | None = None
    backend: str | None = None
    graphs: bool = False
    transport: str = "mesh"


@dataclass(frozen=True, slots=True)
class Executed:
    """A run's measurement, how many generated tokens equal the reference's, and what packing did to the prefill (None:
    not checked)."""

    measurement: Measurement
    matching_tokens: int | None
    compression: CompressionReport | None = None


def execute(
    allocation: Allocation, question: Question, options: RunOptions, on_step: Callable[[int, int], None] | None = None
) -> Executed:
    """Run one generation of the plan. Raises ExecutionError naming the rank and operation that failed."""
    from executor.compression_report import report
    from executor.runner import run
    from executor.sampling import Sampling
    from executor.session import Generation

    found = inputs(allocation)
    made = programs(allocation, found, question)
    generation = Generation(
        found.model,
        made,
        seed=SEED,
        repeats=options.repeats,
        weights=options.weights,
        sampling=options.sampling or Sampling(),
        backend=options.backend,
        graphs=options.graphs,
    )
    generation.source()  # refuses a wrong directory before any process starts
    measured = run(
        generation,
        place=place_of(options.on, found.cluster),
        hosts=found.cluster,
        directory=options.directory,
        timeout_s=options.timeout_s,
        limit_s=options.limit_s,
        transport=options.transport,
        on_step=on_step,
    )
    measured = measured.model_copy(update={"question": question, "allocation": digest(allocation)})
    matching = matching_tokens(generation, measured.generated) if checkable(found.model, options) else None
    if question.packing == "none" or not checkable(found.model, options):
        return Executed(measured, matching)
    plain = programs(allocation, found, question.model_copy(update={"packing": "none"}))
    return Executed(measured, matching, report(replace(generation, programs=plain), question.packing))


def checkable(model: Model, options: RunOptions) -> bool:
    """Whether the reference is quick enough to be asked."""
    return options.check and model.num_parameters() <= CHECKABLE_PARAMETERS


def matching_tokens(generation: Generation, generated: tuple[tuple[int, ...], ...]) -> int:
    """Generated tokens that equal the one-device fp64 reference's, up to each sequence's first difference."""
    from executor.reference import Reference
    from executor.sampling import chooser
    from executor.session import prompts_of

    reference = Reference(generation.model, source=generation.source())
    expected = reference.generate(prompts_of(generation), len(generation.programs), choose=chooser(generation.sampling))
    count = 0
    for ours, theirs in zip(generated, expected, strict=True):
        equal = [a == b for a, b in zip(ours, theirs, strict=True)]
        count += equal.index(False) if False in equal else len(equal)
    return count
