"""Models of other kinds on real processes: no mask, other heads, norms and biases; decode on other ranks; the replay.

Every scheme at every world size is in ``test_every_scheme``."""

from __future__ import annotations

import pytest

from executor.supervisor import Supervisor
from simulator.model import Model
from simulator.placement import AttentionGrid, Placement
from tests.executor_world import assert_like_reference, generation_of, logits_error, replayed, run_on
from tests.schemes import context_parallel, joined, pooled, static, tiny_model


def placements(model: Model) -> list[Placement]:
    return [
        static(model, 1),
        static(model, 2),
        static(model, 3),
        static(model, 4, micro_batches=2),
        static(model, 2, 2, micro_batches=2),
        pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2)),
        pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2), block_rule="zigzag", micro_batches=2),
        pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2), block_rule="contiguous"),
        pooled(model, 1, AttentionGrid(heads=(8,), query_blocks=3), kv_multicast="chain", transfer_chunks=2),
        pooled(model, 2, AttentionGrid(heads=(3, 5))),
        joined(model, 2, AttentionGrid(heads=(8,), query_blocks=4)),
        context_parallel(model, 2, 2),
        context_parallel(model, 1, 4, block_rule="zigzag"),
    ]


def kv_placements(model: Model) -> list[Placement]:
    return [
        pooled(model, 2, AttentionGrid(heads=(8,), kv_blocks=2)),
        pooled(model, 1, AttentionGrid(heads=(8,), kv_blocks=3), micro_batches=2),
        joined(model, 2, AttentionGrid(heads=(4, 4), kv_blocks=2)),
    ]


DENSE = tiny_model()
CASES = [*placements(DENSE), *kv_placements(DENSE)]


@pytest.mark.parametrize("index", [1, 5, 6, 7, 10, 13])
def test_without_a_causal_mask(world: Supervisor, index: int) -> None:
    model = tiny_model(causal=False)
    generation = generation_of(
        model, placements(model)[index] if index < 13 else kv_placements(model)[0], num_decoded=0
    )
    assert logits_error(generation, run_on(world, generation).logits) <= 1e-5


@pytest.mark.parametrize("kv_heads", [1, 8])
def test_multi_query_and_full_heads_with_uneven_head_groups(world: Supervisor, kv_heads: int) -> None:
    model = tiny_model(kv_heads=kv_heads)
    generation = generation_of(model, static(model, 3))
    assert_like_reference(generation, run_on(world, generation))


def test_normed_heads_biases_tied_embeddings_and_plain_gelu(world: Supervisor) -> None:
    model = tiny_model(gated=False).model_copy(
        update={"qk_norm": True, "qkv_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"}
    )
    generation = generation_of(model, pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2)))
    assert_like_reference(generation, run_on(world, generation))


def test_prefill_by_query_blocks_then_decode_by_kv_blocks(world: Supervisor) -> None:
    decoder = pooled(DENSE, 2, AttentionGrid(heads=(8,), kv_blocks=2))
    generation = generation_of(DENSE, CASES[5], decoder=decoder, num_decoded=5)
    assert_like_reference(generation, run_on(world, generation))


def test_decode_on_other_ranks_than_prefill_gets_its_tokens(world: Supervisor) -> None:
    generation = generation_of(DENSE, static(DENSE, 1), decoder=static(DENSE, 4))
    assert_like_reference(generation, run_on(world, generation))


def test_replay_gives_the_reference_too_and_counts_the_same_transfers() -> None:
    for placement in (CASES[5], CASES[10], CASES[13]):
        generation = generation_of(DENSE, placement)
        done = replayed(generation)
        assert_like_reference(generation, done)
        assert (done.measurement.tag, done.measurement.place) == ("replayed", "replay")


def test_replay_equals_the_processes_bit_for_bit_where_no_sum_is_reduced(world: Supervisor) -> None:
    generation = generation_of(DENSE, pooled(DENSE, 1, AttentionGrid(heads=(8,), query_blocks=3)))
    ours, theirs = replayed(generation), run_on(world, generation)
    assert ours.measurement.generated == theirs.measurement.generated
    for left, right in zip(ours.logits[0][0], theirs.logits[0][0], strict=True):
        assert bool((left == right).all())
