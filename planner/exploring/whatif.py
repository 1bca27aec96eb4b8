"""What if: who wins at every prompt length and pool size, and how that moves with batch and network.

A cell of the grid is (prompt tokens, pool GPUs) and compares one canonical placement a scheme on base + pool GPUs; the
planner's search tries all of them (``plan make``). Every candidate is lowered and simulated at four network rates
(``RATES``); between them its time is interpolated linearly in 1/rate, between batches linearly in the batch: a step's
time is close to the maximum over paths of (compute + bytes/rate), which is convex in 1/rate, so that errs upwards.
NICs a node and bandwidth of a NIC enter as their product; the grid was made with the cluster file's number of NICs.
What it leaves out: block rules, multicasts and micro-batch counts other than the canonical ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import gcd

import numpy as np
import numpy.typing as npt

from planner.problem import Problem
from planner.space import ROW, Question, Scheme, placement_of, row
from simulator.cluster import Cluster
from simulator.costs.pricing import as_measured, measured_collectives, price
from simulator.errors import AttnplanError
from simulator.lowering import lower
from simulator.memory import rank_memory
from simulator.placement import Placement
from simulator.program import Program
from simulator.simulation.engine import World, run
from simulator.simulation.timeline import Timeline
from simulator.workload import Phase

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
RATES = (1 / 16, 1 / 4, 1.0, 4.0)
"""Multiples of the cluster file's NIC bandwidth at which candidates are simulated."""
BATCHES = (1, 4, 16, 32, 64)
LENGTHS = tuple(1024 * 2**power for power in range(8))
SCHEMES = (
    "base alone", "tensor parallel", "pipeline", "context parallel", "FA Pool", "FA Pool + base", "MA Separation",
)  # fmt: skip
POOLED = ("FA Pool", "FA Pool + base")


@dataclass(frozen=True, slots=True)
class Where:
    """What a grid is about: everything but batch and network."""

    problem: Problem
    phase: Phase
    base_gpus: int
    lengths: tuple[int, ...] = LENGTHS

    @property
    def pools(self) -> tuple[int, ...]:
        """No pool, then whole nodes (or single GPUs where the cluster is that small) as far as GPUs go."""
        node = max(group.gpus for group in self.problem.cluster.nodes)
        step = node if self.problem.limits.max_gpus - self.base_gpus >= node else 1
        return tuple(range(0, self.problem.limits.max_gpus - self.base_gpus + 1, step))

    def question(self, tokens: int, batch: int, pool: int) -> Question:
        model, cluster = self.problem.model, self.problem.cluster
        return Question(model, cluster, self.phase, tokens, batch, self.base_gpus + pool, self.base_gpus)


@dataclass(frozen=True, slots=True)
class Slice:
    """One batch. ``seconds[l, p, s, r]``: length, pool, scheme, rate; NaN where a scheme does not apply.
    ``free_bytes[l, p, s]``: the tightest rank's headroom."""

    batch: int
    seconds: Floats
    free_bytes: Floats


def default_base(problem: Problem) -> int:
    """The scenario's base, or a node of the cluster (half the GPUs where there is but one)."""
    if problem.limits.base_gpus is not None:
        return problem.limits.base_gpus
    node = max(group.gpus for group in problem.cluster.nodes)
    return min(node, max(problem.limits.max_gpus // 2, 1))


def canonical(where: Where, question: Question) -> dict[str, Placement]:
    """One placement a scheme that uses exactly the question's GPUs."""
    base, total = where.base_gpus, question.max_gpus
    pool, heads = total - base, question.model.num_attention_heads
    found: dict[str, tuple[int, ...]] = {}
    if pool == 0:
        return _placements(question, {"base alone": row(Scheme.STATIC, tensor=base, heads=base)})
    if total <= heads and heads % total == 0:
        found["tensor parallel"] = row(Scheme.STATIC, tensor=total, heads=total)
    whole = total // base if total % base == 0 else 0
    if 1 < whole <= question.model.num_layers:
        micro = min(4, question.batch)
        found["pipeline"] = row(Scheme.STATIC, tensor=base, heads=base, stages=whole, micro_batches=micro)
    found |= _context(question, base, whole)
    found["FA Pool"] = _pool(question, Scheme.POOL, base, pool)
    found["FA Pool + base"] = _pool(question, Scheme.JOINED, base, total)
    if question.model.experts is not None and pool <= heads and question.model.experts.num_experts % base == 0:
        found["MA Separation"] = row(
            Scheme.SEPARATED, heads=pool, experts=base, exit=1, tensor=base, micro_batches=min(2, question.batch)
        )
    return _placements(question, found)


def _context(question: Question, base: int, replicas: int) -> dict[str, tuple[int, ...]]:
    routed = any(layer.routed for layer in question.model.layers)
    tensor = 1 if routed else base
    replicas = replicas * base if routed else replicas
    enough = question.batch if question.phase == "decode" else question.tokens
    if replicas < 2 or replicas > enough:
        return {}
    cut = {"rule": 1, "streams": 4} if question.phase == "prefill" else {}
    wide = {"heads": tensor, "replicas": replicas, "queries": replicas}
    return {"context parallel": row(Scheme.CONTEXT, tensor=tensor, **wide, **cut)}


def _pool(question: Question, scheme: Scheme, base: int, ranks: int) -> tuple[int, ...]:
    """Head groups first (they cost no extra bytes), then query blocks in prefill, KV blocks in decode."""
    heads = gcd(ranks, question.model.num_attention_heads, base) if base > 1 else 1
    rest = ranks // heads
    if question.phase == "decode" and not any(layer.window for layer in question.model.layers):
        return row(scheme, tensor=base, heads=heads, keys=rest)
    cut = {"streams": 4} if question.phase == "prefill" else {}
    return row(scheme, tensor=base, heads=heads, queries=rest, **cut)


def _placements(question: Question, rows: dict[str, tuple[int, ...]]) -> dict[str, Placement]:
    return {name: placement_of(question, np.array([columns], dtype=ROW)[0]) for name, columns in rows.items()}


def programs(where: Where, tokens: int, batch: int, pool: int) -> Iterator[tuple[str, Program]]:
    """(scheme, program) of a cell; schemes that do not fit the model are left out."""
    question = where.question(tokens, batch, pool)
    for scheme, placement in canonical(where, question).items():
        try:
            yield scheme, program_of(where.problem, question, placement)
        except AttnplanError:
            continue


def program_of(problem: Problem, question: Question, placement: Placement) -> Program:
    """Lowered; a prefill that used a pool leaves its KV cache on the base."""
    cache = None
    if placement.pool_ranks and question.phase == "prefill":
        base = replace(question, max_gpus=len(placement.stages[0].feed_forward_ranks))
        tensor = base.max_gpus
        cache = _placements(base, {"base": row(Scheme.STATIC, tensor=tensor, heads=tensor)})["base"]
    return lower(problem.model, question.step, placement, nodes=question.nodes, dtype=problem.dtype, cache=cache)


def scaled(cluster: Cluster, rate: float) -> Cluster:
    """The cluster with its NICs' bandwidth times ``rate``."""
    nodes = tuple(
        node
        if node.nics is None
        else node.model_copy(
            update={
                "nics": node.nics.model_copy(update={"bandwidth_bytes_per_s": node.nics.bandwidth_bytes_per_s * rate})
            }
        )
        for node in cluster.nodes
    )
    return cluster.model_copy(update={"nodes": nodes})


def timelines(problem: Problem, program: Program, rates: tuple[float, ...]) -> list[Timeline]:
    """The program at several network rates, priced once."""
    prices = price(program, problem.cluster, problem.profiles, predicted=problem.predicted)
    hosts = {name: profile.host for name, profile in problem.profiles.items() if profile.host is not None}
    world = World(
        in_node=measured_collectives(problem.profiles),
        hosts=hosts,
        moved_bytes=prices.moved_bytes,
        launch_s=prices.launch_s,
    )
    nodes = {problem.cluster.rank_nodes()[rank][0] for rank, found in enumerate(program.ranks) if found}
    links = as_measured(problem.cluster, problem.profiles)
    if len(nodes) < 2:
        return [run(program, links, prices.durations_s, world)] * len(rates)
    return [run(program, scaled(links, rate), prices.durations_s, world) for rate in rates]


def make_slice(where: Where, batch: int, progress: Progress = lambda done, total: None) -> Slice:
    """Simulate every cell of one batch. ``progress`` may raise to stop."""
    shape = len(where.lengths), len(where.pools), len(SCHEMES)
    seconds, free = np.full((*shape, len(RATES)), np.nan), np.full(shape, np.nan)
    cells = [(li, pi) for li in range(shape[0]) for pi in range(shape[1])]
    for done, (li, pi) in enumerate(cells):
        progress(done, len(cells))
        for scheme, program in programs(where, where.lengths[li], batch, where.pools[pi]):
            number = SCHEMES.index(scheme)
            seconds[li, pi, number] = [found.duration_s for found in timelines(where.problem, program, RATES)]
            free[li, pi, number] = free_bytes(where.problem, program)
    progress(len(cells), len(cells))
    return Slice(batch, seconds, free)


def free_bytes(problem: Problem, program: Program) -> float:
    """Headroom of the tightest rank."""
    gpus = [problem.cluster.gpu_named(node.gpu) for _, _, node in problem.cluster.rank_nodes()]
    memory = rank_memory(problem.model, [problem.footprint(program)], gpus)
    return min(gpu.memory_bytes - used.total for gpu, used in zip(gpus, memory, strict=True) if used.total)
