"""Policy: the placements of all length buckets side by side: weights that stay resident, GPUs that come and go.

Every rank keeps the weights of every placement that the policy uses (their union), the largest cache and the largest
activations of any of them. A batch holds the GPUs of its bucket's two placements; one that is given GPUs which the
batch before did not hold starts ``activation_s`` later, GPUs given back are free (``simulator/serving``'s resource
manager charges the same). Batches come independently, by the buckets' shares, so in the mean over requests

    cost(policy) = Σᵢ shareᵢ·costᵢ + Σᵢⱼ shareᵢ·shareⱼ·[GPUs of j ⊄ GPUs of i]·price(j)

The best policy is the least cost whose residents fit: branch and bound over the buckets' options, exact among them.
Options are what a bucket's races simulated. Decode stays every bucket's own best, as where decode is planned first,
unless nothing then fits. Ignored: moving caches between placements (a request keeps its bucket), idle GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

from planner.cache_fit import sliced
from planner.evaluate import Evaluated, resident_bytes
from planner.objective import weight
from planner.pair import race_pair, race_prefill, request_cost
from planner.problem import Problem
from planner.search import Race
from simulator.allocation import RankBytes, Switching
from simulator.cluster import Cluster
from simulator.errors import InfeasibleError
from simulator.memory import Footprint
from simulator.placement import Placement
from simulator.scenario import Objective
from simulator.workload import Bucket

Cost = tuple[float, float]
DECODERS = 3  # beside the best, whose prefills are raced too
SMALL_GAP = 1e-3  # of its cost: every bucket's own best is taken where it waits no longer, unless all must be exact
CHECKS = 2000  # unions of weights looked at while searching
LONGEST_HOPS = 3  # leaf, spine, leaf
UNITS: dict[Objective, str] = {
    "ttft": "s to the first token",
    "tpot": "s an output token",
    "tps": "s a request",
    "tps_per_gpu": "GPU-s a request",
    "cost": "GPU-s a request",
    "joule": "J a request, at most",
}


@dataclass(frozen=True)
class Option:
    """One way to serve a bucket: its two placements, what they cost a request (and a tie-break), their memory."""

    prefill: Placement
    decode: Placement
    cost: Cost
    footprints: tuple[Footprint, Footprint]

    @cached_property
    def gpus(self) -> frozenset[int]:
        """Ranks that a batch holds."""
        return frozenset((*self.prefill.ranks, *self.decode.ranks))


def option_of(problem: Problem, bucket: Bucket, prefill: Evaluated, decode: Evaluated) -> Option:
    footprints = problem.footprint(prefill.program), problem.footprint(decode.program)
    cost = request_cost(problem, bucket, prefill, decode)
    return Option(prefill.placement, decode.placement, cost, footprints)


def options_of(problem: Problem, bucket: Bucket, *, others: bool, limit: int | None = None) -> list[Option]:
    """What was simulated for a bucket: prefills into its best decoder's cache; ``others``: a few decoders more."""
    pair = race_pair(problem, bucket, limit=limit)
    found = [option_of(problem, bucket, prefill, pair.decoder) for prefill in _distinct(pair.prefill)]
    rest = [one for one in _distinct(pair.decode) if one.placement.stages != pair.decoder.placement.stages]
    for decoder in [one for one in rest if others and not sliced(one.placement)][:DECODERS]:
        try:
            prefills = _distinct(race_prefill(problem, bucket, decoder, limit))
        except InfeasibleError:
            continue
        found += [option_of(problem, bucket, prefill, decoder) for prefill in prefills]
    return found


def _distinct(found: Race) -> list[Evaluated]:
    """What fits of what was simulated, best first; of like stages (so like weights) the best."""
    ranked = [found.simulated[rival.row] for rival in found.ranking()]
    return list({one.placement.stages: one for one in reversed(ranked)}.values())[::-1]


def simulated(found: Race, placement: Placement) -> Evaluated:
    """A race's evaluation of a placement that it is known to have simulated."""
    return next(one for one in found.simulated.values() if one.placement == placement)


def activation_s(problem: Problem) -> float:
    """Seconds a batch waits for more GPUs: as stated, or a control message there and back over the longest way."""
    stated = problem.limits.activation_s
    return 2 * longest_way_s(problem.cluster) if stated is None else stated


def longest_way_s(cluster: Cluster) -> float:
    """Latency between two ranks, at most."""
    inside = max(node.link.latency_s for node in cluster.nodes)
    nics = [node.nics.latency_s for node in cluster.nodes if node.nics is not None]
    return max(nics) + LONGEST_HOPS * cluster.fabric.latency_s if sum(n.count for n in cluster.nodes) > 1 else inside


def price(problem: Problem, bucket: Bucket, option: Option) -> float:
    """What an activation costs a request of the batch that waits for it, in the objective's unit (UNITS)."""
    seconds, batch = activation_s(problem), problem.workload.prefill_batch
    match problem.objective:
        case "ttft":
            return seconds
        case "tpot":
            return seconds / bucket.output_tokens
        case "tps":
            return seconds / batch
        case _:
            return seconds * weight(problem, option.gpus) / batch


def switching_cost(problem: Problem, options: Sequence[Option]) -> float:
    """Expected activations of a request, priced; ``options`` in the order of the workload's buckets."""
    buckets = problem.workload.buckets
    return sum(chance * price(problem, buckets[j], options[j]) for j, chance in _joins(problem, options))


def _joins(problem: Problem, options: Sequence[Option]) -> list[tuple[int, float]]:
    """(bucket, chance that a batch is of it and is given GPUs that the one before did not hold)."""
    shares = [bucket.share for bucket in problem.workload.buckets]
    found = []
    for j, into in enumerate(options):
        before = sum(shares[i] for i, one in enumerate(options) if not into.gpus <= one.gpus)
        found.append((j, shares[j] * before))
    return found


def policy_cost(problem: Problem, options: Sequence[Option]) -> Cost:
    """Mean over requests: the objective with its activations; the tie-break."""
    shares = [bucket.share for bucket in problem.workload.buckets[: len(options)]]
    main, rest = (sum(share * one.cost[i] for share, one in zip(shares, options, strict=True)) for i in (0, 1))
    return main + switching_cost(problem, options), rest


def residents(problem: Problem, options: Sequence[Option]) -> tuple[RankBytes, ...]:
    """Bytes of every rank that any placement uses, with all weights resident."""
    return resident_bytes(problem, [footprint for option in options for footprint in option.footprints])


def missing_bytes(problem: Problem, options: Sequence[Option]) -> int:
    """What the rank that lacks most lacks; 0: all residents fit."""
    return max(0, -min(row.headroom_bytes for row in residents(problem, options)))


def best_policy(
    options: Sequence[Sequence[Option]],
    shares: Sequence[float],
    cost: Callable[[Sequence[Option]], Cost],
    fits: Callable[[Sequence[Option]], bool],
) -> list[Option] | None:
    """The cheapest choice of one option a bucket that fits, by branch and bound; None where there is none.

    ``cost`` of the first few buckets' options: their shares' part of the whole, which further buckets add to; what does
    not fit with a few does not with more.
    """
    ordered = [sorted(some, key=lambda one: one.cost) for some in options]
    floors: list[Cost] = [(0.0, 0.0)]  # of the buckets from a number on, last first
    for some, share in zip(reversed(ordered), reversed(shares), strict=True):
        main, rest = (share * min(one.cost[i] for one in some) for i in (0, 1))
        floors.append((floors[-1][0] + main, floors[-1][1] + rest))
    best: list[Option] | None = None
    least: Cost = (float("inf"), float("inf"))

    def descend(taken: list[Option]) -> None:
        nonlocal best, least
        if len(taken) == len(ordered):
            best, least = taken, cost(taken)
            return
        floor = floors[len(ordered) - len(taken) - 1]
        for one in ordered[len(taken)]:
            some = [*taken, one]
            main, rest = cost(some)
            if (main + floor[0], rest + floor[1]) < least and fits(some):
                descend(some)

    descend([])
    return best


def switching_of(problem: Problem, chosen: Sequence[Option], own: Sequence[Option]) -> Switching:
    """The record of a policy. ``own``: every bucket's own best, which ``chosen`` may have to give up."""
    free = sum(bucket.share * one.cost[0] for bucket, one in zip(problem.workload.buckets, own, strict=True))
    cost, joins = policy_cost(problem, chosen)[0], _joins(problem, chosen)
    names = [bucket.name for bucket, a, b in zip(problem.workload.buckets, chosen, own, strict=True) if differ(a, b)]
    return Switching(
        activation_s=activation_s(problem),
        probability=min(sum(chance for _, chance in joins), 1.0),
        unit=UNITS[problem.objective],
        switching_cost=switching_cost(problem, chosen),
        policy_cost=cost,
        free_cost=free,
        gap=max(0.0, 1.0 - free / cost),
        moved=tuple(names),
        residents=residents(problem, chosen),
    )


def differ(one: Option, other: Option) -> bool:
    return (one.prefill, one.decode) != (other.prefill, other.decode)


def must_be_weighed(problem: Problem, own: Sequence[Option], *, exact: bool) -> bool:
    """Whether the buckets' own best placements may not be the best policy together: they do not fit, or wait long."""
    waits = switching_cost(problem, own) / policy_cost(problem, own)[0]
    return waits > (0.0 if exact else SMALL_GAP) or missing_bytes(problem, own) > 0


def weigh(problem: Problem, options: Sequence[Sequence[Option]]) -> list[Option] | None:
    """The best policy of these options; None where none fits memory. InfeasibleError after CHECKS unions."""
    checks = count(1)

    def fits(some: Sequence[Option]) -> bool:
        if next(checks) > CHECKS:
            raise InfeasibleError(f"{problem.name}: no policy found whose weights fit together in {CHECKS} tries")
        return missing_bytes(problem, some) == 0

    shares = [bucket.share for bucket in problem.workload.buckets]
    return best_policy(options, shares, lambda some: policy_cost(problem, some), fits)


def why_none(problem: Problem, own: Sequence[Option]) -> InfeasibleError:
    """Of buckets that have a plan each, but none together."""
    return InfeasibleError(
        f"{problem.name}: every bucket has a plan, but their weights do not fit side by side: a rank lacks "
        f"{missing_bytes(problem, own)} bytes with the best of each; allow fewer buckets or more GPUs, or --exact"
    )
