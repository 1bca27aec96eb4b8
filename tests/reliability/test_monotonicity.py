"""More work is never less time, and more of a resource never more: a hundred random cases each, five hundred for the
report.

The exceptions, which are not defects:

* A *learned* kernel time may dip where the measured kernel does: a GEMM of more rows can fill its tiles and waves better
  (FACTS of every GPU's own tables), so predictions are held to their bounds, not to monotonicity; the bounds are monotone.
* Links are shared max-min fairly. As with any greedy sharing, one flow's delay can let another through sooner, and a step
  end earlier by a little. Without contention (every pair its own link) steps are strictly monotone; with it, the test
  allows the last flow's share and counts how often it happens.
* A plan under a limit on simulations may be worse with more GPUs allowed; exact plans cannot.
"""  # noqa: E501

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.problem import Problem
from planner.search import race
from simulator.costs.collective_cost import Call, collective_cost
from simulator.costs.work import kernels_of
from simulator.errors import InfeasibleError
from simulator.fabric.topology import Topology
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, Kernel, Moe, flops, memory_bytes
from simulator.lowering import lower
from simulator.memory import footprint, rank_memory
from simulator.simulation.engine import run
from simulator.simulation.timeline import Timeline
from simulator.workload import prefill_step
from tests.hand_made import GPU, cluster, durations
from tests.instances import random_problem
from tests.random_programs import SHAPES, random_program
from tests.reliability.scale import of, record
from tests.schemes import static, tiny_model

EXAMPLES = settings(max_examples=of(100, 500), deadline=None)
FACTOR = st.sampled_from([1.0, 1.5, 2.0, 10.0])
Shape = list[tuple[str, int, int, int]]
ANOMALY = 1.5  # a greedy schedule's worst case over the best is 2 − 1/m (Graham 1969); two flows a link here


def step(shape: Shape, compute_s: float = 1e-3, **about: float | str) -> Timeline:
    built = random_program(shape)
    return run(built, cluster(**about), durations(built, compute_s))  # type: ignore[arg-type]


@EXAMPLES
@given(SHAPES, FACTOR)
def test_slower_kernels_never_shorten_a_step_without_contention(shape: Shape, factor: float) -> None:
    slow, fast = (step(shape, 1e-3 * f, link=1e15).makespan_ps for f in (factor, 1.0))
    assert slow >= fast


@EXAMPLES
@given(SHAPES, FACTOR)
def test_a_longer_latency_never_shortens_a_step_without_contention(shape: Shape, factor: float) -> None:
    slow, fast = (step(shape, link=1e15, latency_s=1e-4 * f).makespan_ps for f in (factor, 1.0))
    assert slow >= fast


@EXAMPLES
@given(SHAPES, FACTOR)
def test_a_slower_link_shortens_a_step_by_no_more_than_its_sharing(shape: Shape, factor: float) -> None:
    slow, fast = (step(shape, link=1e9 / f).makespan_ps for f in (factor, 1.0))
    assert slow * ANOMALY >= fast


def test_sharing_anomalies_are_rare() -> None:
    """The exception, counted: how often a slower link made a step of random messages end earlier, and by how much."""
    import random

    chance, count, earlier, worst = random.Random(0), of(200, 2000), 0, 0.0
    kinds = ("compute", "message", "collective")
    for _ in range(count):
        shape = [
            (chance.choice(kinds), chance.randrange(4), chance.randrange(1, 4), chance.randrange(10))
            for _ in range(chance.randrange(1, 15))
        ]
        slow, fast = (step(shape, link=1e9 / f).makespan_ps for f in (1.5, 1.0))
        if slow < fast:
            earlier, worst = earlier + 1, max(worst, 1.0 - slow / fast)
    record("monotonicity", random_steps=count, sharing_anomalies=earlier, worst_gain_percent=round(100 * worst, 2))
    assert earlier <= count // 50


@EXAMPLES
@given(
    st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]),
    st.integers(2, 8), st.integers(1, 10**9), st.integers(0, 10**9), FACTOR,
)  # fmt: skip
def test_more_bytes_or_a_slower_link_never_shorten_a_collective(
    kind: str, ranks: int, num_bytes: int, more: int, factor: float
) -> None:
    def seconds(size: int, rate: float) -> float:
        topology = Topology(cluster(4, 2, link=4 * rate, nic=rate, latency_s=1e-6, nic_latency_s=1e-6))
        call = Call(kind, "auto", tuple(range(ranks)), float(size))  # type: ignore[arg-type]
        return collective_cost(call, topology).seconds

    base = seconds(num_bytes, 1e9)
    assert seconds(num_bytes + more, 1e9) >= base * (1 - 1e-12)
    assert seconds(num_bytes, 1e9 / factor) >= base * (1 - 1e-12)


SIZE = st.integers(1, 8192)


@st.composite
def grown_kernels(draw: st.DrawFn) -> tuple[Kernel, Kernel]:
    """A kernel and one with one of its sizes larger."""
    more = draw(st.integers(1, 8192))
    match draw(st.integers(0, 3)):
        case 0:
            m, n, k = draw(SIZE), draw(SIZE), draw(SIZE)
            return Gemm(m, n, k), draw(
                st.sampled_from([Gemm(m + more, n, k), Gemm(m, n + more, k), Gemm(m, n, k + more)])
            )
        case 1:
            batch, new, past = draw(st.integers(1, 8)), draw(SIZE), draw(SIZE)
            one = AttentionPrefill(batch, new, new + past, 8, 2, 128)
            return one, draw(st.sampled_from([
                AttentionPrefill(batch + 1, new, new + past, 8, 2, 128),
                AttentionPrefill(batch, new + more, new + more + past, 8, 2, 128),
                AttentionPrefill(batch, new, new + past + more, 8, 2, 128),
            ]))  # fmt: skip
        case 2:
            batch, context = draw(st.integers(1, 256)), draw(SIZE)
            one_step = AttentionDecode(batch, context, 8, 2, 128)
            return one_step, draw(st.sampled_from([
                AttentionDecode(batch + 1, context, 8, 2, 128), AttentionDecode(batch, context + more, 8, 2, 128),
            ]))  # fmt: skip
        case _:
            tokens = draw(SIZE)
            return Moe(tokens, 256, 512, 2, 8), Moe(tokens + more, 256, 512, 2, 8)


@EXAMPLES
@given(grown_kernels())
def test_a_larger_kernel_never_has_fewer_flops_fewer_bytes_or_a_lower_bound(pair: tuple[Kernel, Kernel]) -> None:
    small, large = pair
    assert flops(large) >= flops(small)
    assert memory_bytes(large) >= memory_bytes(small)


@EXAMPLES
@given(st.integers(1, 4), st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2, 4]), st.booleans())
def test_a_longer_prompt_or_batch_never_needs_less_work_or_memory(
    batch: int, tokens: int, more: int, tensor: int, whole_batch: bool
) -> None:
    model = tiny_model(layers=1)
    placement, nodes = static(model, tensor), (0,) * tensor
    grown = prefill_step(batch + 1, tokens) if whole_batch else prefill_step(batch, tokens + more)
    programs = [lower(model, one, placement, nodes=nodes, dtype="bf16") for one in (prefill_step(batch, tokens), grown)]
    work = [
        sum(flops(kernel) for ops in program.ranks for op in ops for kernel in kernels_of(op, "bf16"))
        for program in programs
    ]
    used = [rank_memory(model, [footprint(model, program)], [GPU] * tensor) for program in programs]
    assert work[1] > work[0]
    for small, large in zip(*used, strict=True):
        assert large.kv_cache >= small.kv_cache
        assert large.weights == small.weights
        assert large.total >= small.total


@pytest.mark.parametrize("seed", range(of(4, 40)))
def test_more_gpus_allowed_never_make_the_exact_plan_worse(seed: int) -> None:
    """The space with fewer GPUs is part of the space with more."""
    problem = replace(random_problem(2000 + seed), objective="tpot")
    most = problem.limits.max_gpus or problem.cluster.num_ranks
    scores = [best(problem, gpus) for gpus in sorted({1, max(1, most // 2), most})]
    known = [score for score in scores if score is not None]
    assert known == sorted(known, reverse=True)
    assert None not in scores[scores.index(known[0]) :] if known else True


def best(problem: Problem, gpus: int) -> float | None:
    """The exact plan's decode score on at most ``gpus`` GPUs; None where nothing fits."""
    limits = problem.limits.model_copy(update={"max_gpus": gpus, "base_gpus": None})
    limited = replace(problem, limits=limits)
    try:
        found = race(limited, limited.question("decode", limited.workload.buckets[0]))
    except InfeasibleError:
        return None
    return round(found.ranking()[0].score, 15)
