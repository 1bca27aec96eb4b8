"""Verify what holds a policy together: weights of all its placements on every rank, GPUs that join, what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose

from planner.verification.choice import Inputs, weight_of
from planner.verification.memory import TOLERANCE, weight_bytes
from simulator.allocation import Choice, Switching

EXACTLY = 1e-6
UNITS = {
    "ttft": "s to the first token",
    "tpot": "s an output token",
    "tps": "s a request",
    "tps_per_gpu": "GPU-s a request",
    "cost": "GPU-s a request",
    "joule": "J a request, at most",
}


def check_switching(inputs: Inputs) -> Iterator[str]:
    """One line a fault. Files from before switching was planned have none."""
    switching = inputs.allocation.switching
    if switching is None:
        return
    pairs = _pairs(inputs)
    if pairs is None:
        return  # a bucket lacks an entry, which is said elsewhere
    yield from _activation(inputs, switching)
    yield from _costs(inputs, switching, pairs)
    yield from _residents(inputs, switching)


def _pairs(inputs: Inputs) -> list[tuple[Choice, Choice]] | None:
    """(prefill, decode) of every bucket of the workload, in its order."""
    policy = {(choice.bucket, choice.phase): choice for choice in inputs.allocation.policy}
    names = [bucket.name for bucket in inputs.workload.buckets]
    if any((name, phase) not in policy for name in names for phase in ("prefill", "decode")):
        return None
    return [(policy[name, "prefill"], policy[name, "decode"]) for name in names]


def _activation(inputs: Inputs, switching: Switching) -> Iterator[str]:
    stated, cluster = inputs.allocation.limits.activation_s, inputs.cluster
    if len(cluster.nodes) > 1 or cluster.nodes[0].count > 1:
        way_s = max(node.nics.latency_s for node in cluster.nodes if node.nics) + 3 * cluster.fabric.latency_s
    else:
        way_s = cluster.nodes[0].link.latency_s
    expected, why = (2 * way_s, "there and back over the longest way") if stated is None else (stated, "as stated")
    if not isclose(switching.activation_s, expected, rel_tol=EXACTLY):
        yield f"switching.activation_s: {switching.activation_s:.6g}; {why} it is {expected:.6g}"
    if switching.activation_tag != "assumed":
        yield f"switching.activation_tag: {switching.activation_tag!r}; nothing here was measured, so 'assumed'"


def _costs(inputs: Inputs, switching: Switching, pairs: list[tuple[Choice, Choice]]) -> Iterator[str]:
    buckets, objective = inputs.workload.buckets, inputs.allocation.objective
    held = [{*a.placement.ranks, *b.placement.ranks} for a, b in pairs]
    own = [_request(inputs, number, pair) for number, pair in enumerate(pairs)]
    chance = activations = 0.0
    for j, into in enumerate(held):
        each = {"ttft": 1.0, "tpot": 1 / buckets[j].output_tokens}.get(objective, 1 / inputs.workload.prefill_batch)
        each *= weight_of(inputs, into)
        for i, before in enumerate(held):
            if into - before:
                chance += buckets[i].share * buckets[j].share
                activations += buckets[i].share * buckets[j].share * each * switching.activation_s
    mean = sum(bucket.share * cost for bucket, cost in zip(buckets, own, strict=True))
    for name, expected in (
        ("probability", chance),
        ("switching_cost", activations),
        ("policy_cost", mean + activations),
        ("gap", 1 - switching.free_cost / switching.policy_cost),
    ):
        value = getattr(switching, name)
        if not isclose(value, expected, rel_tol=EXACTLY, abs_tol=1e-12):
            yield f"switching.{name}: {value:.6g}; from the policy's placements and steps it is {expected:.6g}"
    if switching.unit != UNITS[objective]:
        yield f"switching.unit: {switching.unit!r}; objective {objective} is in {UNITS[objective]!r}"
    if not switching.moved and not isclose(switching.free_cost, mean, rel_tol=EXACTLY):
        yield f"switching.free_cost: {switching.free_cost:.6g}; no bucket gave its best up, so it is {mean:.6g}"
    if set(switching.moved) - {bucket.name for bucket in buckets}:
        yield f"switching.moved: {list(switching.moved)} are not all buckets of the workload"


def _request(inputs: Inputs, number: int, pair: tuple[Choice, Choice]) -> float:
    """A request's share of the objective in one bucket."""
    (prefill, decode), bucket = pair, inputs.workload.buckets[number]
    first_s, next_s = prefill.metrics.step_s.value, decode.metrics.step_s.value
    match inputs.allocation.objective:
        case "ttft":
            return first_s
        case "tpot":
            return next_s
        case "tps":
            return first_s / prefill.batch + bucket.output_tokens * next_s / decode.batch
        case _:
            paid = first_s * weight_of(inputs, prefill.placement.ranks) / prefill.batch
            return paid + bucket.output_tokens * next_s * weight_of(inputs, decode.placement.ranks) / decode.batch


def _residents(inputs: Inputs, switching: Switching) -> Iterator[str]:
    """Every rank: no less than any placement needs there, no more weights than all of them together."""
    policy = inputs.allocation.policy
    rows = {row.rank: row for row in switching.residents}
    ranks = {rank for choice in policy for rank in choice.placement.ranks}
    if len(rows) != len(switching.residents) or set(rows) != ranks:
        yield f"switching.residents: of ranks {sorted(rows)[:4]}…; the policy uses {sorted(ranks)[:4]}…, each once"
    distinct = {choice.placement.model_dump_json(include={"stages"}): choice.placement for choice in policy}
    shards = [weight_bytes(inputs, placement) for placement in distinct.values()]
    for choice in policy:
        for row in choice.memory:
            mine = rows.get(row.rank)
            for name in ("weights_bytes", "kv_cache_bytes", "activations_bytes", "buffers_bytes"):
                if mine is not None and getattr(mine, name) < getattr(row, name):
                    needed = f"{choice.phase} of {choice.bucket} needs {getattr(row, name)}"
                    yield f"switching.residents: rank {row.rank} has {name} {getattr(mine, name)}; {needed}"
    for rank, row in sorted(rows.items()):
        high = sum(shard.get(rank, 0.0) for shard in shards) * (1 + TOLERANCE) + 2**20  # norms
        if row.weights_bytes > high:
            yield f"switching.residents: rank {rank} has weights_bytes {row.weights_bytes}; all shards: {high:.0f}"
        for name in ("kv_cache_bytes", "activations_bytes", "buffers_bytes"):
            most = max((getattr(m, name) for c in policy for m in c.memory if m.rank == rank), default=0)
            if getattr(row, name) > most:
                yield f"switching.residents: rank {rank} has {name} {getattr(row, name)}; no entry needs over {most}"
        if row.headroom_bytes < 0:
            yield f"switching.residents: rank {rank} lacks {-row.headroom_bytes} bytes"
        yield from _capacity(inputs, rank, row.capacity_bytes)


def _capacity(inputs: Inputs, rank: int, capacity_bytes: int) -> Iterator[str]:
    devices = [node.gpu for node in inputs.cluster.nodes for _ in range(node.count * node.gpus)]
    capacity = {gpu.name: gpu.memory_bytes for gpu in inputs.cluster.gpus}
    if rank < len(devices) and capacity_bytes != capacity[devices[rank]]:
        yield f"switching.residents: rank {rank} has capacity_bytes {capacity_bytes}; not its {devices[rank]}'s"
