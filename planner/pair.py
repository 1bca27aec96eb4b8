"""Pair: the two placements of a bucket. Decode is planned first; prefill leaves the KV cache where it will be read.

Dimension slices keep their cache in slices that no other placement reads, so a sliced placement takes both phases or
none: it is taken where the pair is better in the objective. For ttft that is the prefill step, for tpot the decode
step; otherwise a request's share of a prefill step and of a decode step for every token it gets (GPU-seconds or
joules where the objective pays for GPUs or their power).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cache_fit import sliced
from planner.candidate import Scheme
from planner.evaluate import Evaluated
from planner.objective import weight
from planner.problem import Problem
from planner.search import Race, race, try_pools, try_static
from planner.space import enumerate_space
from simulator.errors import InfeasibleError
from simulator.workload import Bucket

POOL_SHARE = 20  # of a limit's simulations, one pool beside a race, to show the best even where none can win


@dataclass(frozen=True)
class Pair:
    """A bucket's two races and their winners."""

    decode: Race
    prefill: Race

    @property
    def decoder(self) -> Evaluated:
        return self.decode.simulated[self.decode.ranking()[0].row]

    @property
    def prefiller(self) -> Evaluated:
        return self.prefill.simulated[self.prefill.ranking()[0].row]


def race_pair(problem: Problem, bucket: Bucket, *, limit: int | None = None) -> Pair:
    """The best pair of placements. Pools are tried before a winner is taken, as under a limit one may be better."""
    decode = race(problem, problem.question("decode", bucket), limit=limit)
    try_static(problem, decode, ())
    try_pools(problem, decode, (), simulations=_pools(limit))
    winner = decode.simulated[decode.ranking()[0].row]
    if not sliced(winner.placement):
        return Pair(decode, race_prefill(problem, bucket, winner, limit))
    whole = enumerate_space(decode.question)["scheme"] != Scheme.TWO_LEVEL
    other = race(problem, decode.question, rows=np.asarray(whole), limit=limit)
    try_pools(problem, other, (), simulations=_pools(limit))
    second = other.simulated[other.ranking()[0].row]
    pair = Pair(other, race_prefill(problem, bucket, second, limit))
    try:
        one = Pair(decode, race_prefill(problem, bucket, winner, limit))
    except InfeasibleError:
        return pair
    return one if pair_cost(problem, bucket, one) < pair_cost(problem, bucket, pair) else pair


def _pools(limit: int | None) -> int | None:
    return None if limit is None else max(limit // POOL_SHARE, 1)


def race_prefill(problem: Problem, bucket: Bucket, decoder: Evaluated, limit: int | None) -> Race:
    """Prefill into the cache that ``decoder`` reads, beside its weights."""
    found = race(
        problem,
        problem.question("prefill", bucket),
        cache=decoder.placement,
        beside=(decoder.program,),
        limit=limit,
    )
    try_static(problem, found, (decoder.program,))
    try_pools(problem, found, (decoder.program,), simulations=_pools(limit))
    return found


def pair_cost(problem: Problem, bucket: Bucket, pair: Pair) -> tuple[float, float]:
    return request_cost(problem, bucket, pair.prefiller, pair.decoder)


def request_cost(problem: Problem, bucket: Bucket, prefill: Evaluated, decode: Evaluated) -> tuple[float, float]:
    """Lower is better: the step that the objective names, then the other; or a request's seconds, GPU-seconds or
    joules."""
    if problem.objective == "ttft":
        return prefill.step_s, decode.step_s
    if problem.objective == "tpot":
        return decode.step_s, prefill.step_s
    first = prefill.step_s * weight(problem, prefill.placement.ranks) / problem.workload.prefill_batch
    rest = decode.step_s * weight(problem, decode.placement.ranks) / problem.workload.decode_batch
    return first + bucket.output_tokens * rest, 0.0
