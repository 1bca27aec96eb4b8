"""Two-level partitioning: four forms, their bytes, FLOPs and parameters, and their results on real ranks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from executor.error_report import attend_by, per_slice
from executor.reference import Reference
from executor.session import prompts_of
from executor.supervisor import Supervisor
from simulator import presets
from simulator import program as p
from simulator.costs.work import kernels_of
from simulator.errors import InfeasibleError
from simulator.kernel import AttentionPrefill, Gemm, Memory, attended_pairs, flops
from simulator.lowering import lower
from simulator.memory import cache_bytes, weight_slices
from simulator.model import Experts, Layer, Model
from simulator.placement import AttentionGrid, DimMode, Placement, Stage
from simulator.profile import load_profile
from simulator.simulation.engine import simulate
from simulator.weight_slice import DimSlice, WeightSlice
from simulator.workload import Sequences, Step, decode_step, prefill_step
from tests.executor_world import assert_like_reference, assert_transfers_as_planned, generation_of, replayed, run_on
from tests.program_checks import assert_well_formed, sent_bytes
from tests.schemes import static, tiny_model, two_level

EXACT: tuple[DimMode, ...] = ("gather_qk", "all_to_all", "score_sum")
MODES: tuple[DimMode, ...] = ("per_slice", *EXACT)
RAGGED = Step("prefill", (Sequences(2, 0, 37), Sequences(1, 0, 64), Sequences(1, 0, 5)))
NODES = (0,) * 16


def documents_model() -> Model:
    """32 heads × 128, D = 4096, no rotary positions or mask; the smallest feed-forward and vocabulary that are cut."""
    return Model(
        name="two-level",
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        intermediate_size=16,
        layers=(Layer(),),
        vocab_size=16,
        rope_theta=None,
        causal=False,
    )


def documents_program(mode: DimMode) -> p.Program:
    model = documents_model()
    placement = two_level(model, 4, 4, dim_mode=mode)
    return lower(model, prefill_step(128, 10_000), placement, nodes=(0,) * 8 + (1,) * 8, dtype="fp16")


def attention_flops(program: p.Program) -> int:
    operations = [op for ops in program.ranks for op in ops if isinstance(op, p.Attention | p.Scores | p.WeighValues)]
    return sum(flops(kernel) for op in operations for kernel in kernels_of(op, "fp32"))


def collective_bytes(program: p.Program, rank: int, what: str) -> int:
    """nccl-tests' bytes of the collectives that read a value named so."""
    return sum(op.num_bytes for op in program.ranks[rank] if isinstance(op, p.Collective) and what in op.reads[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_every_form_is_well_formed(mode: DimMode, micro_batches: int) -> None:
    for kv_heads, theta in ((8, 1e4), (4, 1e4), (1, None)):
        model = tiny_model(kv_heads=kv_heads).model_copy(update={"rope_theta": theta})
        placement = two_level(model, 2, 4, dim_mode=mode, micro_batches=micro_batches)
        program = lower(model, RAGGED, placement, nodes=NODES, dtype="fp32")
        assert_well_formed(program)
        if mode != "gather_qk":
            assert_well_formed(lower(model, decode_step(6, 40), placement, nodes=NODES, dtype="fp32"))


def test_a_rank_holds_a_sixteenth_of_the_parameters() -> None:
    for mode in MODES:
        program = documents_program(mode)
        for operations in program.ranks:
            held = weight_slices(documents_model(), operations)
            inputs = [w for w in held if w.name.endswith(("attention.q", "attention.k", "attention.v"))]
            output = [w for w in held if w.name.endswith("attention.o")]
            assert sum(w.num_parameters for w in inputs) == 3 * 4096 * 256 == 3_145_728
            assert sum(w.num_parameters for w in output) == 256 * 4096


def test_slices_of_all_ranks_are_the_whole_matrix() -> None:
    whole: Counter[tuple[int, int]] = Counter()
    for head_group in ((0, 16), (16, 32)):
        for index in range(4):
            for paired in (False, True):
                dims = DimSlice(8, 4, index, paired)
                assert WeightSlice("q", (0, 1), head_group, output_slice=dims).num_outputs == 4
                columns = [h + d for h in range(*head_group, 8) for run in dims.runs for d in range(*run)]
                whole.update((column, paired) for column in columns)
    assert whole == {(column, paired): 1 for column in range(32) for paired in (False, True)}


def test_documents_form_moves_nothing_before_w_o() -> None:
    program = documents_program("per_slice")
    assert sent_bytes(program) == 0
    kernels = [k for op in program.ranks[5] if isinstance(op, p.Attention) for k in kernels_of(op, "fp16")]
    assert kernels == [AttentionPrefill(128, 10_000, 10_000, 8, 8, 32, False, 0, "fp16")]
    # the sum over ranks after W_O: B·L·D in fp16 once for attention, once for the feed-forward, once for the embedding
    total = sum(op.num_bytes for op in program.ranks[5] if isinstance(op, p.Collective) and op.kind == "all_reduce")
    assert total == 3 * 128 * 10_000 * 4096 * 2


def test_gather_sends_q_and_k_slices_to_the_group() -> None:
    program = documents_program("gather_qk")
    slice_bytes = 128 * 10_000 * 8 * 32 * 2  # B·L·h_g·d_s in fp16: 0.655 GB
    assert sent_bytes(program) == 16 * 3 * 2 * slice_bytes  # ranks × (m − 1) × (q, k): 62.9 GB in all
    assert attention_flops(program) == 4 * 4 * 128 * 128 * 10_000**2 * 32  # m × 4·d·B·L²·h


def test_all_to_all_sends_all_but_its_own_share() -> None:
    program = documents_program("all_to_all")
    slice_bytes = 128 * 10_000 * 8 * 32 * 2
    assert sent_bytes(program) == 16 * 3 * slice_bytes * 3 // 4  # ranks × (q, k, v) × (m − 1)/m: 23.6 GB in all
    assert attention_flops(program) == 4 * 128 * 128 * 10_000**2 * 32


def test_scores_are_hundreds_of_gigabytes() -> None:
    program = documents_program("score_sum")
    assert sent_bytes(program) == 0
    scores = 128 * 8 * 10_000**2 * 2  # B·h_g·L² in fp16: 204.8 GB through every group's all-reduce
    assert {collective_bytes(program, rank, "scores") for rank in range(16)} == {scores}
    # a ring sends 2·(m − 1)/m of it: 307.2 GB a rank, against the gather's (m − 1)·2 slices of 0.655 GB: 78 times
    # (in fp32, which the sum would need, 614.4 GB: 156 times)
    gathered = 3 * 2 * 128 * 10_000 * 8 * 32 * 2
    assert 2 * 3 / 4 * scores / gathered == pytest.approx(78.125)
    assert attention_flops(program) == 4 * 128 * 128 * 10_000**2 * 32


def test_score_sum_kernels_are_two_products_and_element_wise_passes() -> None:
    model = tiny_model(layers=1)
    program = lower(model, prefill_step(3, 20), two_level(model, 2, 2, dim_mode="score_sum"), nodes=NODES, dtype="fp32")
    (scores,) = (op for op in program.ranks[0] if isinstance(op, p.Scores))
    (weigh,) = (op for op in program.ranks[0] if isinstance(op, p.WeighValues))
    assert kernels_of(scores, "fp32") == (Gemm(3 * 4 * 20, 20, 8, "fp32"),)
    passes = Memory("activation", 4 * 3 * 4 * 20 * 20 * 4)  # mask and softmax read and write every score
    assert kernels_of(weigh, "fp32") == (passes, Gemm(3 * 4 * 20, 8, 20, "fp32"))


@pytest.mark.parametrize("mode", MODES)
def test_attention_flops_follow_from_the_form(mode: DimMode) -> None:
    model = tiny_model()
    program = lower(model, RAGGED, two_level(model, 2, 4, dim_mode=mode), nodes=NODES, dtype="fp32")
    lengths = (37, 37, 64, 5)
    pairs = sum(attended_pairs(n, n, causal=mode != "score_sum") for n in lengths)
    repeated = 4 if mode == "gather_qk" else 1
    assert attention_flops(program) == repeated * 4 * 16 * pairs * 8 * 2


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("rotary", [True, False])
def test_exact_forms_equal_the_reference(mode: DimMode, kv_heads: int, rotary: bool) -> None:
    model = tiny_model(kv_heads=kv_heads).model_copy(update={"rope_theta": 1e4 if rotary else None, "qkv_bias": True})
    for groups, slices in ((2, 2), (2, 4)):
        placement = two_level(model, groups, slices, dim_mode=mode)
        generation = generation_of(model, placement, num_decoded=0, world=8)
        assert_like_reference(generation, replayed(generation))


@pytest.mark.parametrize("mode", EXACT)
def test_exact_forms_hold_for_windows_experts_and_no_mask(mode: DimMode) -> None:
    experts = Experts(num_experts=4, top_k=2, intermediate_size=64)
    for model in (tiny_model(windows=(8, 0)), tiny_model(experts=experts), tiny_model(causal=False)):
        placement = two_level(model, 2, 2, dim_mode=mode, micro_batches=2)
        generation = generation_of(model, placement, num_decoded=0, world=4)
        assert_like_reference(generation, replayed(generation))


@pytest.mark.parametrize("mode", EXACT)
def test_exact_forms_equal_the_reference_on_real_processes(world: Supervisor, mode: DimMode) -> None:
    model = tiny_model()
    for groups, slices in ((2, 2), (1, 4)):
        generation = generation_of(model, two_level(model, groups, slices, dim_mode=mode), num_decoded=0)
        assert_like_reference(generation, run_on(world, generation))


@pytest.mark.parametrize("mode", EXACT)
def test_exact_forms_stay_within_two_percent_in_bf16(mode: DimMode) -> None:
    model = tiny_model()
    generation = generation_of(model, two_level(model, 2, 2, dim_mode=mode), num_decoded=0, dtype="bf16")
    assert_like_reference(generation, replayed(generation), "bf16")


@pytest.mark.parametrize("mode", ["all_to_all", "score_sum"])
def test_exact_forms_decode_from_their_own_cache(world: Supervisor, mode: DimMode) -> None:
    for model in (tiny_model(), tiny_model(kv_heads=1), tiny_model(kv_heads=2, windows=(8, 0))):
        generation = generation_of(model, two_level(model, 2, 2, dim_mode=mode, micro_batches=2))
        assert_like_reference(generation, replayed(generation))
    generation = generation_of(model, two_level(model, 1, 4, dim_mode=mode))
    assert_like_reference(generation, run_on(world, generation))


def test_the_documents_form_decodes_as_the_model_it_is() -> None:
    model = tiny_model()
    generation = generation_of(model, two_level(model, 2, 2, dim_mode="per_slice"))
    reference = Reference(model, attend=attend_by(per_slice(model, 2)))
    tokens = replayed(generation).measurement.generated
    assert [list(row) for row in tokens] == reference.generate(prompts_of(generation), 4)


def test_sliced_caches_of_one_kv_head_add_up_to_the_models() -> None:
    """What heads alone cannot do: one KV head over four ranks, a quarter of the cache each."""
    model = tiny_model(kv_heads=1)
    program = lower(model, decode_step(5, 40), two_level(model, 1, 4, dim_mode="score_sum"), nodes=NODES, dtype="fp32")
    held = [cache_bytes(model, program, rank) for rank in range(4)]
    assert held == [5 * 41 * 2 * 4 * 4 * 2] * 4  # sequences · tokens · (K, V) · d_s · 4 B · layers
    heads_alone = lower(model, decode_step(5, 40), static(model, 4), nodes=NODES, dtype="fp32")
    assert cache_bytes(model, heads_alone, 0) == 4 * held[0]
    # it moves the scores instead: B·h·(n + 1) a layer, every sequence's 41 keys for 8 heads
    assert collective_bytes(program, 0, "scores") == 2 * 5 * 8 * 41 * 4


def test_documents_form_runs_on_real_processes_as_planned(world: Supervisor) -> None:
    generation = generation_of(tiny_model(), two_level(tiny_model(), 2, 2, dim_mode="per_slice"), num_decoded=0)
    assert_transfers_as_planned(generation, run_on(world, generation))


def refused(model: Model, placement: Placement, step: Step = RAGGED, **options: Placement) -> str:
    with pytest.raises(InfeasibleError) as found:
        lower(model, step, placement, nodes=NODES, dtype="fp32", **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    model = tiny_model()
    assert "3 must divide head_dim 16" in refused(model, two_level(model, 2, 3))
    narrow = model.model_copy(update={"head_dim": 2})
    assert "slices of 1 of head_dim; rotary positions need an even width" in refused(narrow, two_level(model, 4, 2))
    assert "every head group for dim_mode all_to_all" in refused(model, two_level(model, 8, 2, dim_mode="all_to_all"))
    normed = model.model_copy(update={"qk_norm": True})
    assert "qk_norm" in refused(normed, two_level(normed, 2, 2))
    assert "gather_qk only prefills" in refused(model, two_level(model, 2, 2), decode_step(2, 8))
    assert "keeps its KV cache in slices" in refused(model, two_level(model, 2, 2), cache=static(model, 2))
    assert "cannot share" in refused(model, static(model, 2), cache=two_level(model, 2, 2))
    stage = Stage(
        first_layer=0,
        last_layer=2,
        attention_ranks=(4, 5, 6, 7),
        grid=AttentionGrid(heads=(4, 4), dim_slices=2),
        feed_forward_ranks=(0, 1, 2, 3),
        tensor_degree=4,
    )
    assert "same ranks, tensor_degree 4" in refused(model, Placement(name="apart", stages=(stage,)))


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_the_executed_documents_form_is_the_model_its_report_speaks_of(rotary: bool, kv_heads: int) -> None:
    model = tiny_model(kv_heads=kv_heads).model_copy(update={"rope_theta": 1e4 if rotary else None})
    for groups, slices in ((2, 2), (1, 4)):
        generation = generation_of(model, two_level(model, groups, slices, dim_mode="per_slice"), num_decoded=0)
        done = replayed(generation)
        want = Reference(model, attend=attend_by(per_slice(model, slices))).logits(prompts_of(generation)).float()
        rows = torch.cat([row for rank in done.logits[0] for row in rank])
        assert (rows[: len(want)] - want).abs().max() <= 1e-5 * want.abs().max()
        exact = Reference(model).logits(prompts_of(generation)).float()
        assert (rows[: len(want)] - exact).norm() > 0.1 * exact.norm()


def test_simulated_score_sum_is_the_slowest_form_and_all_to_all_the_fastest_exact_one() -> None:
    model, machine, profile = presets.model("two-level"), presets.cluster("a100-4x4"), load_profile("a100-sxm4-80gb")
    nodes = tuple(node for node, _, _ in machine.rank_nodes())
    seconds = {}
    for mode in MODES:
        lowered = lower(model, prefill_step(128, 10_000), two_level(model, 4, 4, dim_mode=mode), nodes=nodes)
        seconds[mode] = simulate(lowered, machine, {profile.gpu.name: profile}).duration_s
    assert seconds["all_to_all"] < seconds["gather_qk"] < seconds["score_sum"]
    assert seconds["score_sum"] > 2 * seconds["all_to_all"]
