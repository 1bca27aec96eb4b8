"""Memory per rank: hand-counted weights, caches and activation peaks."""

from __future__ import annotations

from benchmarks.memory_peak import WITHIN, Size, error, rows
from executor.supervisor import Supervisor
from simulator import program as p
from simulator.cluster import Gpu
from simulator.lowering import lower
from simulator.memory import cache_bytes, footprint, peak_activation_bytes, rank_memory, weight_slices
from simulator.model import Experts
from simulator.placement import AttentionGrid
from simulator.workload import decode_step, prefill_step
from tests.executed_cases import cases
from tests.schemes import context_parallel, pooled, static, tiny_model

NODES = (0,) * 8
CORE = Gpu(
    name="core",
    kind="cpu",
    compute_flop_per_s=1e11,
    memory_bandwidth_bytes_per_s=1e10,
    memory_bytes=10**9,
    num_sms=1,
    source="test",
)


def test_weights_of_tensor_parallel_ranks_add_up_to_the_model() -> None:
    model = tiny_model(kv_heads=8)
    program = lower(model, prefill_step(1, 8), static(model, 4), nodes=NODES, dtype="fp32")
    matrices = sum(
        weight.num_parameters
        for operations in program.ranks
        for weight in weight_slices(model, operations)
        if not weight.name.endswith("norm")
    )
    assert matrices == model.num_parameters()


def test_expert_weights_are_held_once_over_the_ranks() -> None:
    model = tiny_model(experts=Experts(num_experts=8, top_k=2, intermediate_size=64), kv_heads=8)
    program = lower(model, prefill_step(1, 8), static(model, 4), nodes=NODES, dtype="fp32")
    held = [w for ops in program.ranks for w in weight_slices(model, ops) if ".experts." in w.name]
    assert len(held) == len(set(held)) == 2 * 8 * 3  # layers × experts × (gate, up, down)


def test_pool_ranks_hold_no_weights() -> None:
    model = tiny_model()
    program = lower(
        model,
        prefill_step(1, 8),
        pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2)),
        nodes=NODES,
        dtype="fp32",
    )
    memory = rank_memory(model, [footprint(model, program)], [CORE] * 8)
    assert memory[2].weights == memory[3].weights == 0
    assert memory[0].weights > 0


def test_kv_cache_over_all_shards_is_the_models_kv() -> None:
    model = tiny_model()
    placement = pooled(model, 2, AttentionGrid(heads=(8,), kv_blocks=3))
    program = lower(model, decode_step(5, 40), placement, nodes=NODES, dtype="fp32")
    total = sum(cache_bytes(model, program, rank) for rank in range(8))
    assert total == 5 * 41 * 2 * 4 * 16 * 4 * 2  # sequences · tokens · K,V · kv heads · head_dim · 4 B · layers


def test_activation_peak_of_a_hand_made_list_counts_what_is_alive() -> None:
    place = {"layer": 0, "micro_batch": 0}
    operations = (
        p.Linear(
            reads=("tokens",), writes=("a",), num_tokens=10, weights=(p.WeightSlice("w", (0, 4), (0, 8)),), **place
        ),
        p.Linear(reads=("a",), writes=("b",), num_tokens=10, weights=(p.WeightSlice("v", (0, 8), (0, 16)),), **place),
        p.Norm(reads=("b",), writes=("c",), num_tokens=10, width=16, weight="n", eps=1e-6, **place),
    )
    program = lower(tiny_model(), prefill_step(1, 8), static(tiny_model(), 1), nodes=NODES[:1], dtype="fp32")
    made = p.Program(program.step, "fp32", (operations,), ((),), ("",))
    # a (10·8·4 B) dies after b (10·16·4 B) is written; then b and c live together: 2·640 B, beside 8 token ids of 8 B
    assert peak_activation_bytes(made, 0) == 2 * 640 + 8 * 8


def test_context_parallel_halves_activations() -> None:
    model = tiny_model(layers=1)
    whole = lower(model, prefill_step(1, 512), static(model, 1), nodes=NODES, dtype="fp32")
    halves = lower(model, prefill_step(1, 512), context_parallel(model, 1, 2), nodes=NODES, dtype="fp32")
    assert peak_activation_bytes(halves, 0) < 0.8 * peak_activation_bytes(whole, 0)


def test_every_rank_holds_what_was_predicted_at_its_peak(world: Supervisor) -> None:
    """Of every second scheme; ``benchmarks.memory_peak`` has all of them."""
    of_each = list({case.scheme: case for case in cases(4)}.values())
    for dtype, some in (("fp32", of_each[1::4]), ("bf16", of_each[3::4])):
        off = [row for row in rows(Size(4, dtype, 96, 128), some, world) if error(row) > WITHIN]
        assert not off, off
