"""Context parallelism as a ring: its bytes, its overlap by program order, and its results on real ranks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.supervisor import Supervisor
from simulator import program as p
from simulator.costs.work import kernels_of
from simulator.errors import InfeasibleError
from simulator.kernel import attended_pairs, flops
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import AttentionGrid, Placement, Stage
from simulator.simulation.engine import run
from simulator.workload import Sequences, Step, prefill_step
from tests.executor_world import assert_like_reference, generation_of, replayed, run_on
from tests.hand_made import cluster
from tests.program_checks import assert_well_formed
from tests.schemes import context_parallel, tiny_model

NODES = (0,) * 4 + (1,) * 4
RAGGED = Step("prefill", (Sequences(2, 0, 37), Sequences(1, 0, 64), Sequences(1, 0, 5)))


def ring(model: Model, tensor: int, replicas: int, **options: object) -> Placement:
    return context_parallel(model, tensor, replicas, kv_ring=True, **{"block_rule": "zigzag", **options})


def attention_of(program: p.Program, rank: int) -> list[p.Attention]:
    return [op for op in program.ranks[rank] if isinstance(op, p.Attention)]


def key_bytes(program: p.Program) -> int:
    return sum(op.num_bytes for ops in program.ranks for op in ops if isinstance(op, p.Send) and ".kv" in op.reads[0])


def rank_flops(program: p.Program, rank: int) -> list[int]:
    return [sum(flops(kernel) for kernel in kernels_of(op, "fp32")) for op in attention_of(program, rank)]


@pytest.mark.parametrize("rule", ["zigzag", "contiguous", "sqrt"])
@pytest.mark.parametrize(("tensor", "replicas"), [(1, 2), (2, 2), (1, 5), (2, 4)])
def test_every_ring_is_well_formed_and_scores_every_pair_once(rule: str, tensor: int, replicas: int) -> None:
    model = tiny_model()
    placement = ring(model, tensor, replicas, block_rule=rule, micro_batches=2)
    program = lower(model, RAGGED, placement, nodes=NODES, dtype="fp32")
    assert_well_formed(program)
    pairs = sum(attended_pairs(n, n, causal=True) for n in (37, 37, 64, 5))
    assert sum(sum(rank_flops(program, rank)) for rank in range(8)) == 4 * 16 * pairs * 8 * 2


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    replicas=st.integers(1, 6),
    rule=st.sampled_from(["contiguous", "zigzag", "sqrt"]),
    causal=st.booleans(),
)
def test_any_ring_scores_every_pair_once(lengths: list[int], replicas: int, rule: str, causal: bool) -> None:
    model = tiny_model(layers=1, causal=causal)
    step = Step("prefill", tuple(Sequences(1, 0, length) for length in lengths))
    program = lower(model, step, ring(model, 1, replicas, block_rule=rule), nodes=(0,) * replicas, dtype="fp32")
    assert_well_formed(program)
    pairs = sum(attended_pairs(length, length, causal=causal) for length in lengths)
    assert sum(sum(rank_flops(program, rank)) for rank in range(replicas)) == 4 * 16 * 8 * pairs


def test_every_rank_sends_c_minus_1_blocks_of_keys() -> None:
    model = tiny_model(layers=1)
    program = lower(model, prefill_step(3, 128), ring(model, 2, 4), nodes=NODES, dtype="fp32")
    block = 3 * 128 // 4 * 2 * 2 * 16 * 4  # tokens × (K, V) × KV heads of a group × head_dim × 4 B
    for operations in program.ranks:
        sends = [op for op in operations if isinstance(op, p.Send) and "kv" in op.reads[0]]
        assert [op.num_bytes for op in sends] == [block] * 3
        assert len({op.to for op in sends}) == 1
    assert key_bytes(program) == 8 * 3 * block


def test_a_ring_that_hands_over_its_cache_sends_nothing_more() -> None:
    """Decoding deals whole sequences to the replicas; every rank has had every key in its hands."""
    model = tiny_model(layers=1)
    program = lower(model, prefill_step(4, 128), ring(model, 1, 4), nodes=NODES, dtype="fp32")
    block = 4 * 128 // 4 * 2 * 4 * 16 * 4
    assert key_bytes(program) == 4 * 3 * block
    stored = [op.target.block for ops in program.ranks for op in ops if isinstance(op, p.Store)]
    assert len(stored) == 4


def test_zigzag_steps_are_all_alike() -> None:
    """Own block: two causal squares and one full; later steps: two of four rectangles of the half-chunks a side."""
    model = tiny_model(layers=1)
    program = lower(model, prefill_step(1, 4096), ring(model, 1, 4), nodes=NODES, dtype="fp32")
    half = 4096 // 8
    for rank in range(4):
        own, *others = rank_flops(program, rank)
        assert own == 4 * 16 * 8 * (half * half + half * (half + 1))
        assert others == [4 * 16 * 8 * 2 * half * half] * 3


def test_contiguous_blocks_skip_the_steps_that_are_masked() -> None:
    model = tiny_model(layers=1)
    program = lower(model, prefill_step(1, 64), ring(model, 1, 4, block_rule="contiguous"), nodes=NODES, dtype="fp32")
    assert [len(attention_of(program, rank)) for rank in range(4)] == [1, 2, 3, 4]


def test_a_block_is_passed_on_before_it_is_attended_to() -> None:
    """Send, receive and compute are streams: issued in this order, the transfer runs under the attention."""
    model = tiny_model(layers=1)
    program = lower(model, prefill_step(1, 256), ring(model, 1, 4), nodes=NODES, dtype="fp32")
    for operations in program.ranks[:4]:
        order = [op for op in operations if isinstance(op, p.Send | p.Recv | p.Attention)]
        for step in range(3):
            passed, taken, attended = order[3 * step : 3 * step + 3]
            assert {type(passed), type(taken)} == {p.Send, p.Recv}
            send = passed if isinstance(passed, p.Send) else taken
            assert isinstance(attended, p.Attention)
            assert attended.reads[1] == send.reads[0]
        assert isinstance(order[9], p.Attention)
        (merge,) = (op for op in operations if isinstance(op, p.MergeAttention))
        assert merge.parts == 4


@pytest.mark.parametrize("rule", ["zigzag", "contiguous", "sqrt"])
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_rings_equal_the_reference_and_decode_after_them(rule: str, kv_heads: int) -> None:
    model = tiny_model(kv_heads=kv_heads)
    for tensor, replicas in ((1, 4), (2, 2), (1, 3)):
        generation = generation_of(model, ring(model, tensor, replicas, block_rule=rule))
        assert_like_reference(generation, replayed(generation))


def test_rings_equal_the_reference_without_a_mask_and_with_window_layers() -> None:
    for model in (tiny_model(causal=False), tiny_model(windows=(8, 0))):
        generation = generation_of(model, ring(model, 1, 4), num_decoded=0)
        assert_like_reference(generation, replayed(generation))


def test_rings_equal_the_reference_on_real_processes(world: Supervisor) -> None:
    model = tiny_model()
    for placement in (ring(model, 1, 4), ring(model, 2, 2, micro_batches=2), ring(model, 1, 3, block_rule="sqrt")):
        generation = generation_of(model, placement)
        assert_like_reference(generation, run_on(world, generation))


def test_rings_that_do_not_fit_are_refused_in_one_line() -> None:
    model = tiny_model()
    apart = Stage(
        first_layer=0,
        last_layer=2,
        attention_ranks=(2, 3),
        grid=AttentionGrid(heads=(8,), query_blocks=2),
        feed_forward_ranks=(0, 1),
        tensor_degree=1,
    )
    with pytest.raises(
        InfeasibleError, match=r"kv_ring needs 1 tensor shards × 2 token replicas on the ranks \[0, 1\]"
    ):
        lower(model, RAGGED, Placement(name="apart", stages=(apart,), kv_ring=True), nodes=NODES)
    with pytest.raises(InfeasibleError, match="kv_streams must be 1, not 2"):
        lower(model, RAGGED, ring(model, 1, 2, kv_streams=2), nodes=NODES)


@pytest.mark.parametrize("transfer_ms", [0.5, 1.0, 2.0])
def test_simulated_steps_take_the_longer_of_attention_and_transfer(transfer_ms: float) -> None:
    """c steps of a ms of attention, c − 1 transfers of t ms under the first c − 1: (c − 1)·max(a, t) + a."""
    model = tiny_model(layers=1)
    program = lower(model, prefill_step(1, 4096), ring(model, 1, 4), nodes=(0,) * 4, dtype="fp32")
    block = 1024 * 2 * 4 * 16 * 4  # tokens × (K, V) × KV heads × head_dim × 4 B
    durations = [[1e-3 if isinstance(op, p.Attention) else 0.0 for op in ops] for ops in program.ranks]
    timeline = run(program, cluster(gpus=4, link=block / (transfer_ms * 1e-3)), durations)
    # nothing else takes time but the sampled tokens, 8 bytes each
    assert timeline.duration_s == pytest.approx((3 * max(1.0, transfer_ms) + 1.0) * 1e-3, rel=1e-3)
