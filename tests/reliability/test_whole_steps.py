"""Conservation and lower bounds of whole steps: candidates of random planning questions, lowered and simulated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from planner.evaluate import Evaluated, try_evaluate
from planner.problem import Problem
from planner.space import Question, enumerate_space, placement_of
from simulator import program as p
from simulator.costs.work import kernels_of
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, GroupCollective, flops, memory_bytes
from simulator.lowering import lower
from simulator.program import Program
from tests.instances import random_problem
from tests.program_checks import assert_well_formed
from tests.reliability.scale import of, record
from tests.schemes import static

A_QUESTION = 4  # candidates


def candidates(count: int) -> Iterator[tuple[Problem, Question, Evaluated]]:
    """``count`` simulated candidates of random questions, prefill and decode in turn."""
    seed, given = 1000, 0
    while given < count:
        problem, random = random_problem(seed), np.random.default_rng(seed)
        question = problem.question("prefill" if seed % 2 else "decode", problem.workload.buckets[0])
        table = enumerate_space(question)
        for row in random.integers(len(table), size=A_QUESTION):
            found = try_evaluate(problem, question, placement_of(question, table[row]), None)
            if isinstance(found, Evaluated):
                given += 1
                yield problem, question, found
        seed += 1


def flops_of(program: Program, *kinds: type) -> int:
    return sum(
        flops(kernel)
        for operations in program.ranks
        for operation in operations
        for kernel in kernels_of(operation, program.dtype)
        if isinstance(kernel, kinds)
    )


def on_one_gpu(problem: Problem, question: Question) -> Program:
    """The same step of the same model on a single GPU."""
    return lower(problem.model, question.step, static(problem.model, 1), nodes=(0,), dtype=problem.dtype)


def test_flops_keys_messages_and_bytes_are_conserved_whatever_the_placement() -> None:
    """Attention's FLOPs are the single GPU's exactly, but for two-level grids. Projections may be repeated (a KV head
    that several ranks hold,
    a router in every rank) and are never fewer. What is sent is what is received, and what the links carry."""
    count = of(60, 600)
    for problem, question, found in candidates(count):
        name, program, alone = found.placement.name, found.program, on_one_gpu(problem, question)
        assert_well_formed(program)
        # two-level forms repeat or reshape the scores, and keep a cache only for a stated decoder: test_two_level
        if all(stage.grid.dim_slices == 1 for stage in found.placement.stages):
            attending = AttentionPrefill, AttentionDecode
            assert flops_of(program, *attending) == flops_of(alone, *attending), name
            assert flops_of(program, Gemm) >= flops_of(alone, Gemm), name
            assert stored_keys(program) >= stored_keys(alone), name  # every position of every head, at least once
            assert stored_keys(alone), name
        sent, received = traffic(program)
        assert sent == received, name
        assert_ports_carry(problem, found)
    record("conservation", plans=count)


def stored_keys(program: Program) -> Counter[tuple[int, int, int]]:
    """Positions cached by (layer, KV head, sequence), over all ranks: repeated where ranks hold replicas."""
    found = Counter[tuple[int, int, int]]()
    for shards in program.caches:
        for shard in shards:
            for head in range(*shard.tile.columns):
                for sequence, rows in enumerate(shard.rows_per_sequence):
                    found[shard.layer, head, sequence] += rows
    return found


def traffic(program: Program) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """Bytes by (from, to), as its senders and as its receivers count them."""
    sent, received = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for rank, operations in enumerate(program.ranks):
        for operation in operations:
            if isinstance(operation, p.Send):
                sent[rank, operation.to] += operation.num_bytes
            elif isinstance(operation, p.Recv):
                received[operation.source, rank] += operation.num_bytes
    return sent, received


def assert_ports_carry(problem: Problem, found: Evaluated) -> None:
    """A GPU's way out carries at least what its rank sends to others."""
    units = dict(zip((r.name for r in found.timeline.resources), found.timeline.resource_units, strict=True))
    sent, _ = traffic(found.program)
    out = sum(size for (rank, to), size in sent.items() if rank != to)
    carried = sum(value for name, value in units.items() if name.endswith(" out"))
    assert carried >= out * (1 - 1e-9), found.placement.name


def test_no_step_is_shorter_than_its_flops_its_bytes_or_its_hops() -> None:
    """max(FLOP/peak, bytes/bandwidth, α·hops): rank by rank at the datasheet's rates, and over the longest chain of
    messages that wait for one another."""
    count, tightest = of(60, 600), 0.0
    for problem, _, found in candidates(count):
        places, program = problem.cluster.rank_nodes(), found.program
        for rank, operations in enumerate(program.ranks):
            gpu = problem.cluster.gpu_named(places[rank][2].gpu)
            kernels = [
                kernel
                for operation in operations
                for kernel in kernels_of(operation, program.dtype)
                if not isinstance(kernel, GroupCollective)
            ]
            compute_s = sum(flops(kernel) for kernel in kernels) / gpu.compute_flop_per_s
            memory_s = sum(memory_bytes(kernel) for kernel in kernels if not_a_small_copy(kernel))
            bound_s = max(compute_s, memory_s / gpu.memory_bandwidth_bytes_per_s, port_s(problem, program, rank))
            assert found.step_s >= bound_s * (1 - 1e-9), f"{found.placement.name}, rank {rank}"
            tightest = max(tightest, bound_s / found.step_s)
        assert found.step_s >= hops(program) * least_latency_s(problem) * (1 - 1e-9), found.placement.name
    assert 0.2 < tightest <= 1.0, "no step came near its bound: is it one?"
    record("lower bounds", plans=count, violations=0, nearest_share_of_a_step=round(tightest, 3))


def not_a_small_copy(kernel: object) -> bool:
    """Attention and GEMM stream operands from memory; elementwise kernels may find theirs in the cache."""
    return isinstance(kernel, Gemm | AttentionPrefill | AttentionDecode)


def port_s(problem: Problem, program: Program, rank: int) -> float:
    """Seconds a rank's messages need to get out or in, through the node link and all NICs of its node together."""
    node = problem.cluster.rank_nodes()[rank][2]
    rate = node.link.bandwidth_bytes_per_s + (node.nics.count * node.nics.bandwidth_bytes_per_s if node.nics else 0.0)
    out = sum(o.num_bytes for o in program.ranks[rank] if isinstance(o, p.Send) and o.to != rank)
    back = sum(o.num_bytes for o in program.ranks[rank] if isinstance(o, p.Recv) and o.source != rank)
    return max(out, back) / rate


def least_latency_s(problem: Problem) -> float:
    return min(
        min(node.link.latency_s, node.nics.latency_s if node.nics else node.link.latency_s)
        for node in problem.cluster.nodes
    )


def hops(program: Program) -> int:
    """Messages on the longest chain through values: a rank sends what it made of what it received."""
    depth: dict[tuple[int, str], int] = {}
    arriving: dict[tuple[int, int, int], int] = {}
    longest, waiting = 0, [(rank, iter(operations)) for rank, operations in enumerate(program.ranks)]
    held: dict[int, p.Operation] = {}
    moved = True
    while moved:
        moved = False
        for rank, operations in waiting:
            while (operation := held.pop(rank, None) or next(operations, None)) is not None:
                at = max((depth.get((rank, name), 0) for name in operation.reads), default=0)
                if isinstance(operation, p.Recv):
                    key = (operation.source, rank, operation.tag)
                    if key not in arriving:
                        held[rank] = operation
                        break
                    at = arriving.pop(key)
                elif isinstance(operation, p.Send):
                    at += operation.to != rank
                    arriving[rank, operation.to, operation.tag] = at
                moved = True
                longest = max(longest, at)
                for name in operation.writes:
                    depth[rank, name] = max(at, depth.get((rank, name), 0))
    return longest


def test_hops_are_counted_along_values() -> None:
    """Three ranks in a row: two hops; two messages side by side: one."""
    from tests.hand_made import compute, program, recv, send

    row = program(
        [compute(writes=["a"]), send(1, "a", 1)],
        [recv(0, "b", 1), compute(["b"], ["c"]), send(2, "c", 1)],
        [recv(1, "d", 1)],
    )
    assert hops(row) == 2
    assert (
        hops(program([compute(writes=["a"]), send(1, "a", 1), send(2, "a", 1)], [recv(0, "b", 1)], [recv(0, "c", 1)]))
        == 1
    )


@pytest.mark.parametrize("lost", ["message", "rank"])
def test_the_checks_see_what_is_lost(lost: str) -> None:
    _, _, found = next(one for one in candidates(40) if len(traffic(one[2].program)[0]) > 1)
    ranks = [list(operations) for operations in found.program.ranks]
    if lost == "rank":
        ranks[max(range(len(ranks)), key=lambda rank: len(ranks[rank]))] = []
    else:
        sender = next(rank for rank, ops in enumerate(ranks) if any(isinstance(o, p.Send) for o in ops))
        ranks[sender] = [o for o in ranks[sender] if not isinstance(o, p.Send)]
    broken = Program(
        found.program.step,
        found.program.dtype,
        tuple(map(tuple, ranks)),
        found.program.caches,
        found.program.next_tokens,
    )
    sent, received = traffic(broken)
    assert sent != received
