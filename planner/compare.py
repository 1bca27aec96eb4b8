"""Compare: every scheme serves the same requests; the documents' statistics on what came out.

1000 sequences of each length category in 3 trials arrive as one Poisson stream at the same rate for every scheme: the
workload's, or else ``LOAD`` of what the slowest scheme can sustain, so that no queue grows without bound. Speed-ups
are over the documents' baseline, TP 8 × PP 2, with the GPUs each holds beside them: a speed-up of 2 from 3 times the
GPUs is an efficiency of 0.67. p-values are Holm-adjusted over the categories of a scheme.

What it ignores: several batches in flight in one pipeline (a stage waits between its micro-batches), chunked prefill,
prefill beside decode on the same GPUs (a prefill stops its group's decodes), moving a KV cache when a decode batch
changes its pool.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from planner.problem import Problem
from planner.processes import process_pool
from planner.systems import CHOSEN, FAMILIES, Found, System, build, names, search_bucket
from simulator.errors import InfeasibleError
from simulator.formats.trace import Request
from simulator.serving.comparison import Comparison
from simulator.serving.comparison import compare as compare_served
from simulator.serving.queue import serve
from simulator.serving.sampling import NUM_TRIALS, PER_CATEGORY, Sample, sample_trials
from simulator.serving.served import Served
from simulator.serving.statistics import Summary, summarise
from simulator.workload import Bucket

LOAD = 0.7  # of the slowest scheme's capacity
SATURATING = 100  # requests a category, all at once, that measure a capacity
DOCUMENTS_BASELINE = "tp8-pp2"
MOST_WORKERS = 8
OnDone = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How much is served. ``requests_per_s`` None: the workload's rate, or ``LOAD`` of the slowest capacity."""

    seed: int = 0
    per_category: int = PER_CATEGORY
    num_trials: int = NUM_TRIALS
    requests_per_s: float | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Numbers:
    """A system's metrics, each summarised over trials. GPUs held: bases, and the pool while leased."""

    ttft_s: Summary
    tpot_s: Summary
    tokens_per_s: Summary
    tokens_per_s_per_gpu: Summary
    gpus_held: Summary
    base_utilisation: Summary
    pool_utilisation: Summary | None


@dataclass(frozen=True, slots=True)
class Row:
    """One scheme. ``infeasible``: why it cannot run; then there is nothing else. Speed-ups: baseline over ours."""

    name: str
    infeasible: str | None = None
    system: System | None = None
    capacity_per_s: float | None = None
    numbers: Numbers | None = None
    ttft: tuple[Comparison, ...] = ()
    tpot: tuple[Comparison, ...] = ()
    gpu_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Compared:
    """All schemes at one offered load."""

    baseline: str
    requests_per_s: float
    rate_source: str
    per_category: int
    num_trials: int
    seed: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """A system with its capacity: requests/s when all are there at once."""

    system: System
    capacity_per_s: float


def compare(problem: Problem, options: Options = Options(), on_done: OnDone | None = None) -> Compared:
    """Every scheme on the problem's workload. InfeasibleError if none can serve it."""
    schemes = names(problem)
    searching = any(name == CHOSEN or name in FAMILIES for name in schemes)
    buckets = problem.workload.buckets if searching else ()
    with _Workers(options, len(buckets) + 3 * len(schemes), on_done) as workers:
        searched = workers.map(partial(_search, problem), buckets)
        found = dict(zip(schemes, workers.map(partial(_ready, problem, searched), schemes), strict=True))
        ready = {name: one for name, one in found.items() if isinstance(one, Ready)}
        if not ready:
            raise InfeasibleError(f"{problem.name}: no scheme can serve the workload: {found[schemes[0]]}")
        rate, source = _rate(problem, options, list(ready.values()))
        samples = sample_trials(
            problem.workload,
            np.random.default_rng(options.seed),
            requests_per_s=rate,
            per_category=options.per_category,
            num_trials=options.num_trials,
        )
        served = workers.map(partial(_serve, samples), [one.system for one in ready.values()])
        baseline = next(name for name in (DOCUMENTS_BASELINE, *schemes[2:], *schemes) if name in ready)
        against = served[list(ready).index(baseline)]
        judged = workers.map(partial(_judge, problem, samples, against, options.seed), served)
    rows = {name: Row(name, infeasible=one if isinstance(one, str) else None) for name, one in found.items()}
    for (name, one), trials, (ttft, tpot, ratio) in zip(ready.items(), served, judged, strict=True):
        rows[name] = Row(name, None, one.system, one.capacity_per_s, _numbers(trials), ttft, tpot, ratio)
    return Compared(
        baseline, rate, source, options.per_category, options.num_trials, options.seed, tuple(rows.values())
    )


def _search(problem: Problem, bucket: Bucket) -> dict[str, Found] | str:
    try:
        return search_bucket(problem, bucket)
    except InfeasibleError as error:
        return str(error)


def _ready(problem: Problem, searched: Sequence[dict[str, Found] | str], name: str) -> Ready | str:
    """Build a system and saturate it."""
    refused = [one for one in searched if isinstance(one, str)]
    if refused and (name == CHOSEN or name in FAMILIES):
        return refused[0]
    system = build(problem, [one for one in searched if not isinstance(one, str)], name)
    if isinstance(system, str):
        return system
    rng = np.random.default_rng(0)
    (sample,) = sample_trials(problem.workload, rng, requests_per_s=1.0, per_category=SATURATING, num_trials=1)
    requests = [Request(0.0, one.prompt_tokens, one.output_tokens) for one in sample.requests]
    try:
        served = serve(requests, system.times, system.batching, system.rules)
    except InfeasibleError as error:
        return str(error)
    return Ready(system, len(requests) / served.duration_s)


def _rate(problem: Problem, options: Options, ready: Sequence[Ready]) -> tuple[float, str]:
    if options.requests_per_s is not None:
        return options.requests_per_s, "as asked for"
    if problem.workload.requests_per_s is not None:
        return problem.workload.requests_per_s, f"workload {problem.workload.name}"
    slowest = min(ready, key=lambda one: one.capacity_per_s)
    rate = LOAD * slowest.capacity_per_s
    return rate, f"{LOAD:.0%} of what {slowest.system.name} sustains, the slowest"


def _serve(samples: Sequence[Sample], system: System) -> list[Served]:
    return [serve(sample.requests, system.times, system.batching, system.rules) for sample in samples]


Judged = tuple[tuple[Comparison, ...], tuple[Comparison, ...], float]


def _judge(
    problem: Problem, samples: Sequence[Sample], baseline: Sequence[Served], seed: int, ours: Sequence[Served]
) -> Judged:
    """TTFT and TPOT by category against the baseline, and how many times its GPUs are held."""
    categories = [sample.category for sample in samples]
    buckets = [bucket.name for bucket in problem.workload.buckets]
    rng = np.random.default_rng(seed)
    ttft = compare_served(buckets, categories, [one.ttft_s for one in baseline], [one.ttft_s for one in ours], rng)
    tpot: tuple[Comparison, ...] = ()
    if all(bucket.output_tokens > 1 for bucket in problem.workload.buckets):
        tpot = compare_served(buckets, categories, [one.tpot_s for one in baseline], [one.tpot_s for one in ours], rng)
    return ttft, tpot, _held(ours) / _held(baseline)


def _held(trials: Sequence[Served]) -> float:
    return float(np.mean([one.gpu_seconds / one.duration_s for one in trials]))


def _numbers(trials: Sequence[Served]) -> Numbers:
    pool = [one.pool_utilisation for one in trials]
    return Numbers(
        ttft_s=summarise([one.ttft_s.mean() for one in trials]),
        tpot_s=summarise([float(np.nanmean(one.tpot_s)) if (one.output_tokens > 1).any() else 0.0 for one in trials]),
        tokens_per_s=summarise([one.tokens_per_s for one in trials]),
        tokens_per_s_per_gpu=summarise([one.tokens_per_s_per_gpu for one in trials]),
        gpus_held=summarise([one.gpu_seconds / one.duration_s for one in trials]),
        base_utilisation=summarise([one.base_utilisation for one in trials]),
        pool_utilisation=None if None in pool else summarise([share for share in pool if share is not None]),
    )


Job = TypeVar("Job")
Answer = TypeVar("Answer")


class _Workers:
    """``map`` over processes, counting; the answers do not depend on how many there are."""

    def __init__(self, options: Options, num_jobs: int, on_done: OnDone | None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(options.workers or cores, MOST_WORKERS)
        self.pool = process_pool(count, start="spawn") if count > 1 else None
        self.on_done, self.num_jobs, self.num_done = on_done, num_jobs, 0

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Job], Answer], jobs: Sequence[Job]) -> list[Answer]:
        found = []
        for answer in map(function, jobs) if self.pool is None else self.pool.map(function, jobs):
            found.append(answer)
            self.num_done += 1
            if self.on_done is not None:
                self.on_done(self.num_done, self.num_jobs)
        return found
