"""What holds of every scheme of the lattice: work and cache are conserved, bytes on links, bounds, symmetry."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import program as p
from simulator.cluster import Cluster, Fabric
from simulator.costs.collective_cost import Call, collective_cost
from simulator.costs.work import kernels_of
from simulator.fabric.topology import Topology
from simulator.kernel import attended_pairs, flops, memory_bytes
from simulator.simulation.engine import run
from simulator.simulation.timeline import Timeline
from tests.any_scheme import NODE_GPUS, NODES, NUM_RANKS, Case, cases
from tests.hand_made import cluster
from tests.reliability.scale import ENOUGH

PEAK_FLOP_PER_S, MEMORY_BYTES_PER_S = 1e12, 1e11
LATENCY_S = 1e-6


def machine(factor: float = 1.0, *, latency_s: float = LATENCY_S) -> Cluster:
    return cluster(
        NODE_GPUS, 2, link=8e9 * factor, nic=1e9 * factor, latency_s=latency_s, nic_latency_s=latency_s,
        fabric=Fabric(latency_s=latency_s),
    )  # fmt: skip


def seconds(built: p.Program) -> list[list[float]]:
    """Roofline of stated peaks."""
    return [
        [
            sum(max(flops(k) / PEAK_FLOP_PER_S, memory_bytes(k) / MEMORY_BYTES_PER_S) for k in kernels_of(op, "bf16"))
            for op in operations
        ]
        for operations in built.ranks
    ]


def play(built: p.Program) -> Timeline:
    return run(built, machine(), seconds(built))


def pairs_of(case: Case) -> int:
    causal = case.model.causal
    return sum(s.count * attended_pairs(s.new, s.total, causal=causal or s.new == 1) for s in case.step.batch)


@ENOUGH
@given(cases())
def test_flops_tokens_and_cache_are_conserved_over_ranks(case: Case) -> None:
    built = case.program()
    assert_every_head_scores_every_pair_once(case, built)
    assert_every_token_is_multiplied_once_by_every_weight(case, built)
    assert_the_cache_holds_every_token_as_often_as_head_groups_use_it(case, built)


def assert_every_head_scores_every_pair_once(case: Case, built: p.Program) -> None:
    """Attention's multiply-adds: 4·head_dim a pair and head. Gathered slices repeat Q·Kᵀ on each of m ranks: the kernel
    knows one width, so P·V is counted there as wide as Q·Kᵀ (m times the whole)."""
    slices = case.placement.stages[0].grid.dim_slices
    repeats = slices if case.placement.dim_mode == "gather_qk" else 1
    done = 0
    for operations in built.ranks:
        for op in operations:
            if isinstance(op, p.Attention):
                done += sum(flops(kernel) for kernel in kernels_of(op, "bf16"))
            elif isinstance(op, p.Scores | p.WeighValues):
                heads = op.heads[1] - op.heads[0]
                scored = sum(s.count * c.num_queries * (c.kv_stop - c.kv_start) for s in op.segments for c in s.chunks)
                done += 2 * heads * op.head_dim * scored
    whole = pairs_of(case)
    if slices > 1 and case.placement.dim_mode == "score_sum":  # unmasked: every query meets every key
        whole = sum(s.count * s.new * s.total for s in case.step.batch)
    assert done == case.model.num_layers * 4 * case.model.head_dim * case.model.num_attention_heads * whole * repeats


def assert_every_token_is_multiplied_once_by_every_weight(case: Case, built: p.Program) -> None:
    """Token × weight products of W_Q, W_O and the feed-forward, over all ranks: nothing left out, nothing twice. Keys
    and values: once for every head group that uses the KV head."""
    model, tokens = case.model, sum(s.count * s.new for s in case.step.batch)
    done: Counter[str] = Counter()
    for operations in built.ranks:
        for op in operations:
            if isinstance(op, p.Linear):
                for weight in op.weights:
                    done[weight.name] += op.num_tokens * weight.num_parameters
    attended, hidden = model.num_attention_heads * model.head_dim, model.hidden_size
    for layer in range(model.num_layers):
        prefix = f"layers.{layer}"
        assert done[f"{prefix}.attention.q"] == done[f"{prefix}.attention.o"] == tokens * hidden * attended
        for name in ("gate", "up", "down") if model.gated else ("up", "down"):
            assert done[f"{prefix}.feed_forward.{name}"] == tokens * hidden * model.intermediate_size
        kv = done[f"{prefix}.attention.k"]
        assert kv == done[f"{prefix}.attention.v"]
        assert kv >= tokens * hidden * model.num_key_value_heads * model.head_dim


def assert_the_cache_holds_every_token_as_often_as_head_groups_use_it(case: Case, built: p.Program) -> None:
    groups = case.placement.stages[0].grid
    edges = np.cumsum((0, *groups.heads))
    group = case.model.heads_per_kv_head
    users = [
        sum(a // group <= kv < -(-b // group) for a, b in pairwise(edges))
        for kv in range(case.model.num_key_value_heads)
    ]
    exchanged = groups.dim_slices > 1 and case.placement.dim_mode == "all_to_all"
    held = np.zeros((case.model.num_layers, case.model.num_key_value_heads))
    for shards in built.caches:
        for shard in shards:
            rows = sum(s.count * rows for s, rows in zip(built.step.batch, shard.rows_per_sequence, strict=True))
            share = (shard.tile.dims[1] - shard.tile.dims[0]) / shard.slices
            held[shard.layer, shard.tile.columns[0] : shard.tile.columns[1]] += rows * share
    tokens = sum(s.count * s.total for s in case.step.batch)
    if groups.dim_slices > 1 and case.placement.dim_mode == "gather_qk":  # prefills only
        assert (held == 0).all()
    elif exchanged:  # whole heads again, h_g/m a rank: KV heads that several of them share are kept by each
        assert (held >= tokens).all()
    else:
        assert (held == tokens * np.array(users)).all()


@ENOUGH
@given(cases())
def test_links_carry_what_is_sent_and_no_step_beats_its_flops_its_bytes_or_its_hops(case: Case) -> None:
    built = case.program()
    timeline = play(built)
    assert_what_is_sent_is_received_and_every_link_carries_just_that(built, timeline)
    assert_no_step_beats_its_flops_its_bytes_or_its_hops(built, timeline)


def assert_what_is_sent_is_received_and_every_link_carries_just_that(built: p.Program, timeline: Timeline) -> None:
    topology = Topology(machine())
    planned: Counter[int] = Counter()
    seen = set()
    for rank, operations in enumerate(built.ranks):
        for op in operations:
            if isinstance(op, p.Send):
                for resource in topology.route(rank, op.to).resources:
                    planned[resource] += op.num_bytes
            elif isinstance(op, p.Collective) and op.tag not in seen:
                seen.add(op.tag)
                cost = collective_cost(Call(op.kind, op.algorithm, op.ranks, op.num_bytes), topology)
                for resource, num_bytes in cost.traffic:
                    planned[resource] += num_bytes  # type: ignore[assignment]
    sent = Counter(
        (r, op.to, op.tag, op.num_bytes) for r, o in enumerate(built.ranks) for op in o if isinstance(op, p.Send)
    )
    got = Counter(
        (op.source, r, op.tag, op.num_bytes) for r, o in enumerate(built.ranks) for op in o if isinstance(op, p.Recv)
    )
    assert sent == got
    carried = timeline.resource_units
    assert carried == pytest.approx([planned[resource] for resource in range(len(topology.resources))], rel=1e-9)
    names = {resource.name: units for resource, units in zip(topology.resources, carried, strict=True)}
    for kind in ("gpu", "nic"):
        out = sum(units for name, units in names.items() if f" {kind} " in name and name.endswith(" out"))
        into = sum(units for name, units in names.items() if f" {kind} " in name and name.endswith(" in"))
        assert out == pytest.approx(into, rel=1e-9)


@ENOUGH
@given(cases(), st.sampled_from([2, 4, 16]), st.booleans())
def test_time_is_inverse_in_bandwidth(case: Case, factor: int, computing: bool) -> None:
    """k times the links and NICs, without latency and compute (or with compute k times as fast): 1/k of the time, to a
    picosecond an operation."""
    built = case.program()
    durations = [[s * computing for s in row] for row in seconds(built)]
    slow = run(built, machine(latency_s=0.0), durations)
    fast = run(built, machine(factor, latency_s=0.0), [[s / factor for s in row] for row in durations])
    rounding_ps = 2 * max(len(operations) for operations in built.ranks) * NUM_RANKS
    assert fast.makespan_ps * factor == pytest.approx(slow.makespan_ps, abs=factor * rounding_ps)


@ENOUGH
@given(cases())
def test_sequences_twice_as_long_never_take_less_time(case: Case) -> None:
    """Priced by their work, lengths that every cut of the lattice divides (24). Exceptions with other lengths and other
    prices: docs/scenarios.md, "Where more is not slower"."""
    before, after = play(case.times(24).program()), play(case.times(48).program())
    assert after.makespan_ps >= before.makespan_ps


def assert_no_step_beats_its_flops_its_bytes_or_its_hops(built: p.Program, timeline: Timeline) -> None:
    topology = Topology(machine())
    for operations in built.ranks:
        kernels = [kernel for op in operations for kernel in kernels_of(op, "bf16")]
        assert timeline.duration_s >= sum(flops(k) for k in kernels) / PEAK_FLOP_PER_S * (1 - 1e-9) - 1e-12 * len(
            operations
        )
        moved = sum(memory_bytes(k) for k in kernels)
        assert timeline.duration_s >= moved / MEMORY_BYTES_PER_S * (1 - 1e-9) - 1e-12 * len(operations)
    for resource, units in zip(topology.resources, timeline.resource_units, strict=True):
        assert timeline.duration_s >= units / resource.bandwidth_bytes_per_s * (1 - 1e-9)
    assert timeline.duration_s >= longest_hops(built) * LATENCY_S * (1 - 1e-9)


def longest_hops(built: p.Program) -> int:
    """Most transfers on a chain of dependencies (a collective counts one hop): each waits a latency at least."""
    before: list[dict[str, int]] = [{} for _ in built.ranks]
    places = [0] * len(built.ranks)
    sends: dict[tuple[int, int, int], int] = {}
    arrivals: dict[tuple[tuple[int, ...], int], dict[int, int]] = {}
    longest, moved = 0, True
    while moved:
        moved = False
        for rank, operations in enumerate(built.ranks):
            while places[rank] < len(operations):
                op = operations[places[rank]]
                depth = max((before[rank].get(name, 0) for name in op.reads), default=0)
                if isinstance(op, p.Send):
                    sends[rank, op.to, op.tag] = depth + 1
                elif isinstance(op, p.Recv):
                    if (op.source, rank, op.tag) not in sends:
                        break
                    depth = sends[op.source, rank, op.tag]
                elif isinstance(op, p.Collective) and len(op.ranks) > 1:
                    arrived = arrivals.setdefault((op.ranks, op.tag), {})
                    arrived[rank] = depth
                    if len(arrived) < len(op.ranks):
                        break
                    depth = max(arrived.values()) + 1
                for name in op.writes:
                    before[rank][name] = depth
                longest, moved = max(longest, depth), True
                places[rank] += 1
    assert places == [len(operations) for operations in built.ranks]
    return longest


@ENOUGH
@given(cases(), st.permutations(range(NODE_GPUS)), st.booleans())
def test_relabelling_nodes_and_their_gpus_changes_nothing(case: Case, order: list[int], swap: bool) -> None:
    """Nodes exchanged, and GPU i of every node made GPU order[i] (rails stay rails)."""
    label = [(NODES[r] ^ swap) * NODE_GPUS + order[r % NODE_GPUS] for r in range(NUM_RANKS)]
    built = case.program()
    lists: list[tuple[p.Operation, ...]] = [()] * NUM_RANKS
    for rank, operations in enumerate(built.ranks):
        lists[label[rank]] = tuple(relabelled(op, label) for op in operations)
    other = p.Program(built.step, built.dtype, tuple(lists), built.caches, built.next_tokens)
    plain, moved = play(built), play(other)
    for rank in range(NUM_RANKS):
        # ties are broken in another order: a picosecond of rounding may follow each event
        slack = 4 * sum(len(operations) for operations in built.ranks)
        assert np.abs(plain.end_ps[rank] - moved.end_ps[label[rank]]).max(initial=0) <= slack


def relabelled(op: p.Operation, label: list[int]) -> p.Operation:
    match op:
        case p.Send():
            return replace(op, to=label[op.to])
        case p.Recv():
            return replace(op, source=label[op.source])
        case p.Collective():
            return replace(op, ranks=tuple(label[rank] for rank in op.ranks))
        case _:
            return op
