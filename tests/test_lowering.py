"""Lowering: every scheme gives a well-formed program that does the model's work exactly once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import program as p
from simulator.costs.work import kernels_of
from simulator.errors import InfeasibleError
from simulator.kernel import AttentionPrefill, attended_pairs, flops
from simulator.lowering import lower
from simulator.model import Experts, Model
from simulator.placement import AttentionGrid, Placement
from simulator.workload import Sequences, Step, decode_step, prefill_step
from tests.program_checks import assert_well_formed, sent_bytes
from tests.schemes import context_parallel, joined, pooled, separated, static, tiny_model

NODES = (0,) * 4 + (1,) * 4 + (2,) * 4
RAGGED = Step("prefill", (Sequences(2, 0, 37), Sequences(1, 0, 64), Sequences(1, 0, 5)))
MOE = tiny_model(experts=Experts(num_experts=8, top_k=2, intermediate_size=64, capacity_factor=1.0))


def attention_flops(program: p.Program) -> int:
    return sum(
        flops(kernel)
        for operations in program.ranks
        for operation in operations
        if isinstance(operation, p.Attention)
        for kernel in kernels_of(operation, "fp32")
    )


def placements(model: Model) -> list[Placement]:
    return [
        static(model, 1),
        static(model, 4),
        static(model, 2, 2),
        static(model, 4, micro_batches=2),
        pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=3)),
        pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=6), block_rule="zigzag", kv_multicast="tree"),
        pooled(
            model,
            2,
            AttentionGrid(heads=(8,), query_blocks=8),
            block_rule="contiguous",
            kv_multicast="chain",
            transfer_chunks=3,
        ),
        pooled(model, 2, AttentionGrid(heads=(3, 5), query_blocks=2), micro_batches=2),
        pooled(model, 2, AttentionGrid(heads=(8,), kv_blocks=3)),
        pooled(model, 3, AttentionGrid(heads=(4, 4), query_blocks=2, kv_blocks=2)),
        joined(model, 2, AttentionGrid(heads=(8,), query_blocks=5)),
        joined(model, 2, AttentionGrid(heads=(8,), kv_blocks=4)),
        pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=4), kv_streams=3, kv_multicast="chain"),
        context_parallel(model, 2, 2, kv_streams=2),
        context_parallel(model, 1, 4, block_rule="zigzag"),
        separated(model, 3, 2),
        separated(model, 3, 2, exit="all_reduce_broadcast"),
    ]


@pytest.mark.parametrize("placement", placements(tiny_model()), ids=lambda placement: placement.name)
@pytest.mark.parametrize("step", [RAGGED, decode_step(6, 40)], ids=["prefill", "decode"])
def test_every_scheme_lowers_to_a_well_formed_program(placement: Placement, step: Step) -> None:
    assert_well_formed(lower(tiny_model(), step, placement, nodes=NODES, dtype="fp32"))


@pytest.mark.parametrize("placement", placements(MOE)[-2:] + placements(MOE)[:2], ids=lambda placement: placement.name)
@pytest.mark.parametrize("step", [RAGGED, decode_step(6, 40)], ids=["prefill", "decode"])
def test_routed_layers_lower_in_place_and_by_all_to_all(placement: Placement, step: Step) -> None:
    assert_well_formed(lower(MOE, step, placement, nodes=NODES, dtype="fp32"))


@pytest.mark.parametrize("placement", placements(tiny_model()), ids=lambda placement: placement.name)
def test_attention_flops_are_conserved_over_ranks(placement: Placement) -> None:
    program = lower(tiny_model(), RAGGED, placement, nodes=NODES, dtype="fp32")
    # 4·head_dim FLOPs a scored pair, 8 heads, 2 layers
    pairs = (
        2 * attended_pairs(37, 37, causal=True)
        + attended_pairs(64, 64, causal=True)
        + attended_pairs(5, 5, causal=True)
    )
    assert attention_flops(program) == 4 * 16 * pairs * 8 * 2


def test_linear_flops_of_a_pool_equal_the_static_placements() -> None:
    model = tiny_model(kv_heads=8)

    def linear_flops(placement: Placement) -> int:
        program = lower(model, RAGGED, placement, nodes=NODES, dtype="fp32")
        ops = [op for ops in program.ranks for op in ops if isinstance(op, p.Linear)]
        return sum(flops(kernel) for op in ops for kernel in kernels_of(op, "fp32"))

    assert linear_flops(static(model, 2)) == linear_flops(pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=3)))


def test_direct_pool_traffic_is_queries_prefixes_and_outputs() -> None:
    model = tiny_model(kv_heads=8, layers=1)
    grid = AttentionGrid(heads=(8,), query_blocks=2)
    placement = pooled(model, 2, grid, block_rule="contiguous")
    program = lower(model, prefill_step(1, 100), placement, nodes=NODES, dtype="fp32", cache=static(model, 2))
    queries_and_outputs = 2 * 100 * 8 * 16 * 4  # tokens × heads × head_dim × 4 B, there and back
    prefixes = (50 + 100) * 2 * 8 * 16 * 4  # K and V of 50 and 100 tokens; the base keeps the cache it projected
    assert sent_bytes(program) == queries_and_outputs + prefixes


def test_a_tree_sends_each_key_into_a_node_once() -> None:
    model = tiny_model(kv_heads=8, layers=1)
    grid = AttentionGrid(heads=(8,), query_blocks=4)
    nodes = (0, 0, 1, 1, 1, 1)
    programs = {
        name: lower(
            model, prefill_step(1, 128), pooled(model, 2, grid, kv_multicast=name), nodes=nodes, cache=static(model, 2)
        )
        for name in ("direct", "tree", "chain")
    }

    def keys_into_node_1(program: p.Program) -> int:
        return sum(
            op.num_bytes
            for rank in (0, 1)
            for op in program.ranks[rank]
            if isinstance(op, p.Send) and nodes[op.to] == 1 and "kv" in op.reads[0] and "keep" not in op.reads[0]
        )

    whole = 128 * 2 * 8 * 16 * 2
    assert keys_into_node_1(programs["tree"]) == whole
    assert keys_into_node_1(programs["chain"]) == whole
    assert keys_into_node_1(programs["direct"]) > 2 * whole
    assert sent_bytes(programs["tree"]) > 0


def test_ping_pong_gives_the_base_feed_forward_work_while_the_pool_attends() -> None:
    model = tiny_model()
    placement = pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2), micro_batches=2)
    program = lower(model, prefill_step(4, 32), placement, nodes=NODES, dtype="fp32")
    order = [(type(op).__name__, op.layer, op.micro_batch) for op in program.ranks[0]]
    sent_for_second = last_send_of_queries(program, layer=0, micro_batch=1)
    first_feed_forward = order.index(("Activation", 0, 0))
    next_layer_of_first = order.index(("Rope", 1, 0))
    second_feed_forward = order.index(("Activation", 0, 1))
    assert sent_for_second < first_feed_forward < next_layer_of_first < second_feed_forward


def last_send_of_queries(program: p.Program, layer: int, micro_batch: int) -> int:
    prefix = f"m{micro_batch}.l{layer}.q"
    sends = [i for i, op in enumerate(program.ranks[0]) if isinstance(op, p.Send) and op.reads[0].startswith(prefix)]
    return sends[-1]


def test_what_only_the_cache_needs_goes_where_compute_waits_for_an_all_reduce() -> None:
    model = tiny_model()
    placement, cache = context_parallel(model, 2, 2), static(model, 2)
    program = lower(model, prefill_step(1, 32), placement, nodes=NODES, dtype="fp32", cache=cache)
    assert any(isinstance(op, p.Store) for op in program.ranks[0])
    for rank in range(4):
        layer = [op for op in program.ranks[rank] if op.layer == 0]
        kinds = [type(op).__name__ for op in layer]
        kept = [i for i, op in enumerate(layer) if any("kv.keep" in name for name in (*op.reads, *op.writes))]
        attention_sum, feed_forward_sum = (i for i, kind in enumerate(kinds) if kind == "Collective")
        first_add, second_add = (i for i, kind in enumerate(kinds) if kind == "Add")
        assert "Store" not in kinds or feed_forward_sum < kinds.index("Store") < second_add
        assert all(attention_sum < i < first_add or feed_forward_sum < i < second_add for i in kept)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    query=st.integers(1, 4),
    kv=st.integers(1, 3),
    rule=st.sampled_from(["contiguous", "zigzag", "sqrt"]),
    multicast=st.sampled_from(["direct", "tree", "chain"]),
    causal=st.booleans(),
    heads=st.sampled_from([(8,), (3, 5), (2, 2, 4)]),
    streams=st.integers(1, 3),
)
def test_any_pool_grid_computes_every_pair_once(
    lengths: list[int],
    query: int,
    kv: int,
    rule: str,
    multicast: str,
    causal: bool,
    heads: tuple[int, ...],
    streams: int,
) -> None:
    model = tiny_model(layers=1, causal=causal)
    grid = AttentionGrid(heads=heads, query_blocks=query, kv_blocks=kv)
    placement = pooled(
        model, 2, grid, block_rule=rule, kv_multicast=multicast, transfer_chunks=2, kv_streams=streams if kv == 1 else 1
    )
    step = Step("prefill", tuple(Sequences(1, 0, length) for length in lengths))
    nodes = tuple(index // 4 for index in range(2 + grid.num_ranks))
    program = lower(model, step, placement, nodes=nodes, dtype="fp32")
    assert_well_formed(program)
    pairs = sum(attended_pairs(length, length, causal=causal) for length in lengths)
    assert attention_flops(program) == 4 * 16 * 8 * pairs


def test_decode_deals_new_tokens_to_kv_blocks_in_turn() -> None:
    model = tiny_model(layers=1)
    placement = pooled(model, 1, AttentionGrid(heads=(8,), kv_blocks=3))
    for appended in range(4):
        step = Step("decode", (Sequences(2, 10 + appended, 1, 10),))
        program = lower(model, step, placement, nodes=NODES, dtype="fp32")
        storing = [rank for rank, ops in enumerate(program.ranks) if any(isinstance(op, p.Store) for op in ops)]
        assert storing == [1 + appended % 3]
        rows = [shard.rows_per_sequence[0] for shards in program.caches for shard in shards]
        assert sum(rows) == 10 + appended + 1
        assert max(rows) - min(rows) <= 2


def test_prefill_leaves_the_cache_where_the_decoder_reads_it() -> None:
    model = tiny_model(layers=1)
    decoder = pooled(model, 2, AttentionGrid(heads=(8,), kv_blocks=3))
    program = lower(model, prefill_step(2, 31), static(model, 2), nodes=NODES, dtype="fp32", cache=decoder)
    stored = {rank: op.target for rank, ops in enumerate(program.ranks) for op in ops if isinstance(op, p.Store)}
    assert {rank: tile.block for rank, tile in stored.items()} == {
        2: (((0, 10),),),
        3: (((10, 20),),),
        4: (((20, 31),),),
    }
    assert all(tile.columns == (0, 4) for tile in stored.values())


def test_sqrt_cuts_balance_causal_work_and_contiguous_ones_do_not() -> None:
    model = tiny_model(layers=1)

    def imbalance(rule: str) -> float:
        placement = pooled(model, 1, AttentionGrid(heads=(8,), query_blocks=4), block_rule=rule)
        program = lower(model, prefill_step(1, 4096), placement, nodes=NODES, dtype="fp32")
        work = [
            sum(flops(k) for op in ops if isinstance(op, p.Attention) for k in kernels_of(op, "fp32"))
            for ops in program.ranks[1:5]
        ]
        return max(work) / (sum(work) / 4)

    assert imbalance("contiguous") == pytest.approx(2 - 1 / 4, rel=1e-3)  # max/mean = 2 − 1/p
    assert imbalance("zigzag") < 1.0025
    assert imbalance("sqrt") < 1.0025


def test_infeasible_placements_are_refused_in_one_line() -> None:
    model = tiny_model()
    with pytest.raises(InfeasibleError, match=r"stages\[0\].grid.heads: \[4, 3\] must be positive and sum to"):
        lower(model, prefill_step(1, 8), pooled(model, 1, AttentionGrid(heads=(4, 3))), nodes=NODES)
    with pytest.raises(InfeasibleError, match="uses rank 12; the cluster has 12 ranks"):
        lower(
            model,
            prefill_step(1, 8),
            pooled(model, 1, AttentionGrid(heads=(8,), query_blocks=12)),
            nodes=NODES,
        )
    with pytest.raises(InfeasibleError, match="2 micro-batches of 1 sequences"):
        lower(model, prefill_step(1, 8), static(model, 1, micro_batches=2), nodes=NODES)


def test_kernels_of_attention_are_rectangular_blocks() -> None:
    model = tiny_model(layers=1, kv_heads=8)
    placement = pooled(model, 1, AttentionGrid(heads=(8,), query_blocks=2), block_rule="contiguous")
    program = lower(model, prefill_step(1, 10), placement, nodes=NODES, dtype="fp32")
    found = Counter(
        kernel
        for ops in program.ranks
        for op in ops
        if isinstance(op, p.Attention)
        for kernel in kernels_of(op, "fp32")
    )
    first = AttentionPrefill(1, 5, 5, 8, 8, 16, True, 0, "fp32")
    second = AttentionPrefill(1, 5, 10, 8, 8, 16, True, 0, "fp32")
    assert found == {first: 1, second: 1}


def test_a_stage_boundary_between_nodes_carries_each_hidden_value_once() -> None:
    model = tiny_model()
    program = lower(model, prefill_step(1, 64), static(model, 4, 2), nodes=(0,) * 4 + (1,) * 4, dtype="fp32")
    crossing = sum(
        op.num_bytes for rank in range(4) for op in program.ranks[rank] if isinstance(op, p.Send) and op.to >= 4
    )
    assert crossing == 64 * model.hidden_size * 4
    assert_well_formed(program)


def test_ping_pong_assembles_the_pools_answer_after_the_other_micro_batch_is_sent_off() -> None:
    model = tiny_model()
    placement = pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2), micro_batches=2)
    program = lower(model, prefill_step(4, 32), placement, nodes=NODES, dtype="fp32")
    order = [(type(op).__name__, op.layer, op.micro_batch) for op in program.ranks[0]]
    first_answer = order.index(("Concat", 0, 0))
    second_sent = last_send_of_queries(program, layer=0, micro_batch=1)
    assert second_sent < first_answer


def test_expert_ranks_share_tokens_evenly_whatever_balances_attention() -> None:
    placement = separated(MOE, 3, 2, block_rule="sqrt")
    program = lower(MOE, prefill_step(1, 100), placement, nodes=NODES, dtype="fp32")
    tokens = [op.num_tokens for rank in (3, 4) for op in program.ranks[rank] if isinstance(op, p.Route)]
    assert set(tokens) == {50}
