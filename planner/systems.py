"""Systems: the schemes that are compared, each with a placement for every phase and length bucket.

The chosen policy, the documents' FA Pool rule and static strategies, the best context parallel and the best pool by
search, MA Separation where experts are routed, and copies of the base alone that fill the same GPUs. A system is one
base group that grows by a pool, except the copies: several groups that share one queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.evaluate import Evaluated, evaluate, lacking, memory_of, tag_of
from planner.objective import weight
from planner.pair import race_pair
from planner.problem import Problem
from planner.rivals import baselines, rule_placement
from planner.search import Race, race
from planner.space import Question, Scheme, enumerate_space, micro_batch_counts
from planner.step_times import Region, StepTimes, simulate_surface
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.profile import Tag
from simulator.program import Program
from simulator.serving.batch import Batching
from simulator.serving.pool_policy import NO_POOL, PoolPolicy, PoolRules, policy
from simulator.workload import Bucket, Phase

CHOSEN, RULE, COPIES = "chosen policy", "FA Pool by the rule", "copies of the base"
FAMILIES: dict[str, tuple[Scheme, ...]] = {
    "best context parallel": (Scheme.CONTEXT,),
    "best pool": (Scheme.POOL, Scheme.JOINED),
    "best MA Separation": (Scheme.SEPARATED,),
}
PHASES: tuple[Phase, Phase] = ("prefill", "decode")
SEARCHED = 3  # simulations a family and question: enough to rank the best bounds; the gap is stated


@dataclass(frozen=True, slots=True)
class Entry:
    """A bucket's two placements."""

    bucket: Bucket
    prefill: Placement
    decode: Placement

    def placement(self, phase: Phase) -> Placement:
        return self.prefill if phase == "prefill" else self.decode


@dataclass(frozen=True, slots=True)
class Step:
    """One step at a bucket's planned length and the workload's batch."""

    phase: Phase
    bucket: str
    placement: str
    num_gpus: int
    seconds: float


@dataclass(frozen=True, slots=True)
class System:
    """A scheme ready to serve. ``gap``: how far its search may be from its family's best (0: none)."""

    name: str
    num_groups: int
    base_gpus: int
    pool_gpus: int
    rules: PoolRules
    batching: Batching
    times: StepTimes
    steps: tuple[Step, ...]
    tag: Tag
    gap: float = 0.0

    @property
    def most_gpus(self) -> int:
        return self.num_groups * self.base_gpus + self.pool_gpus


def names(problem: Problem) -> tuple[str, ...]:
    """The systems of a problem, in the order they are shown. Copies need room for two."""
    question = problem.question("prefill", problem.workload.buckets[0])
    static = [one.split(":")[0] if isinstance(one, str) else one.name for one in baselines(question)]
    routed = any(layer.routed for layer in problem.model.layers)
    families = [name for name in FAMILIES if routed or name != "best MA Separation"]
    return (CHOSEN, RULE, *static, *families, *([COPIES] if _copies(problem) > 1 else []))


def _copies(problem: Problem) -> int:
    return problem.limits.max_gpus // (problem.limits.base_gpus or min(8, problem.limits.max_gpus))


@dataclass(frozen=True, slots=True)
class Found:
    """A bucket's entry of a searched scheme, or why there is none."""

    entry: Entry | None
    gap: float
    reason: str = ""


def search_bucket(problem: Problem, bucket: Bucket) -> dict[str, Found]:
    """The searched schemes' entries for one bucket, by name. A family takes part in the search for the chosen policy,
    so it gets the best that was met there if its own search met nothing better."""
    pair = race_pair(problem, bucket)
    decode, prefill = pair.decode, pair.prefill
    found = {CHOSEN: Found(Entry(bucket, _best(prefill), _best(decode)), max(decode.gap, prefill.gap))}
    for name in names(problem):
        if name in FAMILIES:
            try:
                found[name] = _family(problem, bucket, name, decode, prefill)
            except InfeasibleError as error:
                found[name] = Found(None, 0.0, str(error))
    return found


def _family(problem: Problem, bucket: Bucket, name: str, decode: Race, prefill: Race) -> Found:
    """Decode first, then prefill into the cache it reads."""
    first = race(problem, decode.question, rows=_mask(decode.question, name), limit=SEARCHED)
    cache = _better(problem, decode.question, [_best(first), *_met(decode, name)], None)
    second = race(problem, prefill.question, cache=cache, rows=_mask(prefill.question, name), limit=SEARCHED)
    best = _better(problem, prefill.question, [_best(second), *_met(prefill, name)], cache)
    return Found(Entry(bucket, best, cache), max(first.gap, second.gap))


def _met(found: Race, name: str) -> list[Placement]:
    """The best of a family in a search over everything; none if it was not among the simulated."""
    rows = [rival.row for rival in found.ranking() if found.table[rival.row]["scheme"] in FAMILIES[name]]
    return [found.simulated[row].placement for row in rows[:1]]


def _better(problem: Problem, question: Question, placements: list[Placement], cache: Placement | None) -> Placement:
    """The least in the objective; the first, if equal."""
    if len(placements) == 1:
        return placements[0]

    def score(placement: Placement) -> float:
        return evaluate(problem, question, placement, cache).step_s * weight(problem, placement.ranks)

    return min(placements, key=score)


def build(problem: Problem, searched: Sequence[Mapping[str, Found]], name: str) -> System | str:
    """A system by its name, or why it cannot run here. ``searched``: of every bucket."""
    try:
        if name != CHOSEN and name not in FAMILIES:
            return _system(
                problem, name, tuple(_fixed(problem, bucket, name) for bucket in problem.workload.buckets), 0.0
            )
        found = [one[name] for one in searched]
        entries = tuple(one.entry for one in found if one.entry is not None)
        if len(entries) < len(found):
            return next(one.reason for one in found if one.entry is None)
        return _system(problem, name, entries, max(one.gap for one in found))
    except InfeasibleError as error:
        return str(error)


def _fixed(problem: Problem, bucket: Bucket, name: str) -> Entry:
    """The rule or a static strategy. InfeasibleError where it needs more GPUs than there are."""
    decode = _filled(problem, problem.question("decode", bucket), name, None)
    return Entry(bucket, _filled(problem, problem.question("prefill", bucket), name, decode), decode)


def _filled(problem: Problem, question: Question, name: str, cache: Placement | None) -> Placement:
    """A pipeline gets the micro-batches that are fastest: unfilled it would be no rival."""
    found = _named(question, name)
    if len(found.stages) == 1:
        return found
    counts = micro_batch_counts(question)
    tried = [
        found.model_copy(update={"micro_batches": n, "name": f"{found.name}-mb{n}" if n > 1 else found.name})
        for n in counts
    ]
    return min(tried, key=lambda placement: evaluate(problem, question, placement, cache).step_s)


def _named(question: Question, name: str) -> Placement:
    if name == RULE:
        found = rule_placement(question)
    else:
        static = baselines(question)
        wanted = [one for one in static if (one if isinstance(one, str) else one.name).split(":")[0] == name]
        found = wanted[0] if wanted else static[0]
    if isinstance(found, str):
        raise InfeasibleError(found)
    return found


def _best(found: Race) -> Placement:
    return found.simulated[found.ranking()[0].row].placement


def _mask(question: Question, name: str) -> npt.NDArray[np.bool_]:
    """The rows of a family."""
    mask = np.isin(enumerate_space(question)["scheme"], FAMILIES[name])
    if not mask.any():
        raise InfeasibleError(f"{name}: no candidate in {question.phase} on {question.max_gpus} GPUs")
    return np.asarray(mask)


def _system(problem: Problem, name: str, entries: tuple[Entry, ...], gap: float) -> System:
    groups = _copies(problem) if name == COPIES else 1
    sizes = [len(entry.placement(phase).ranks) for entry in entries for phase in PHASES]
    base = min(sizes)
    steps, tags, capacities = [], set(), []
    for entry in entries:
        decode = evaluate(problem, problem.question("decode", entry.bucket), entry.decode, None)
        prefill = evaluate(problem, problem.question("prefill", entry.bucket), entry.prefill, entry.decode)
        capacities.append(_kv_capacity(problem, entry, [prefill.program, decode.program]))
        found: tuple[tuple[Phase, Evaluated], ...] = (("prefill", prefill), ("decode", decode))
        for phase, one in found:
            tags.add(tag_of(problem, one))
            steps.append(Step(phase, entry.bucket.name, one.placement.name, one.num_gpus, one.step_s))
    return System(
        name=name,
        num_groups=groups,
        base_gpus=base,
        pool_gpus=max(sizes) - base,
        rules=PoolRules(
            num_groups=groups,
            pool_gpus=max(sizes) - base,
            prefill=_pool_policy(entries, "prefill", base),
            decode=_pool_policy(entries, "decode", base),
        ),
        batching=Batching(
            base_gpus=base,
            prefill_batch=problem.workload.prefill_batch,
            decode_batch=problem.workload.decode_batch,
            kv_capacity_tokens=min(capacities),
        ),
        times=_times(problem, entries, base),
        steps=tuple(steps),
        tag="assumed" if "assumed" in tags else "fitted",
        gap=gap,
    )


def _kv_capacity(problem: Problem, entry: Entry, programs: list[Program]) -> int:
    """Tokens of KV cache that fit beside everything else: the planned cache, scaled until the tightest rank is full."""
    memory = memory_of(problem, programs)
    short = lacking(memory)
    if short is not None:
        raise InfeasibleError(f"{entry.decode.name}: rank {short.rank} lacks {-short.headroom_bytes} bytes")
    planned = problem.workload.decode_batch * entry.bucket.tokens
    return min(
        int((row.kv_cache_bytes + row.headroom_bytes) / row.kv_cache_bytes * planned)
        for row in memory
        if row.kv_cache_bytes
    )


def _pool_policy(entries: tuple[Entry, ...], phase: Phase, base: int) -> PoolPolicy:
    """Beyond the GPUs every entry uses: the pool that a length is given."""
    steps = [
        (0 if index == 0 else entry.bucket.min_tokens, len(entry.placement(phase).ranks) - base)
        for index, entry in enumerate(entries)
    ]
    return policy(steps) if any(gpus for _, gpus in steps) else NO_POOL


def _times(problem: Problem, entries: tuple[Entry, ...], base: int) -> StepTimes:
    """A surface for each distinct placement, over every length it may be asked for."""
    shortest = max(1, problem.workload.buckets[0].min_tokens)
    regions = []
    for phase in PHASES:
        for number, entry in enumerate(entries):
            placement = entry.placement(phase)
            same = [other.placement(phase) == placement for other in entries]
            if placement in [other.placement(phase) for other in entries[:number]]:
                continue  # the region of the first entry that uses it reaches up to the last
            last = max(index for index, equal in enumerate(same) if equal)
            single = phase == "prefill" and problem.workload.prefill_batch == 1
            low = max(1, entry.bucket.min_tokens) if single else shortest
            surface = simulate_surface(
                problem,
                problem.question(phase, entry.bucket),
                placement,
                cache=entry.decode if phase == "prefill" else None,
                lengths=(low, _longest(entries[last].bucket, phase)),
            )
            regions.append(Region(phase, entry.bucket.min_tokens, len(placement.ranks) - base, surface))
    return StepTimes(tuple(regions))


def _longest(bucket: Bucket, phase: Phase) -> int:
    """As ``simulator.serving.sampling`` draws: an open bucket ends at twice its planned length."""
    most = 2 * bucket.tokens if bucket.max_tokens is None else bucket.max_tokens
    return most + (bucket.output_tokens if phase == "decode" else 0)
