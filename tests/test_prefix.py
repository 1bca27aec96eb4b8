"""Prefill on top of cached tokens: what it computes, what it reads back, and that chunks give what the whole gives."""

from __future__ import annotations

import pytest
import torch

from executor.reference import Reference
from executor.replay import Replay
from executor.session import Generation
from simulator import program as p
from simulator.costs.work import kernels_of
from simulator.errors import InfeasibleError
from simulator.kernel import attended_pairs, flops
from simulator.lowering import lower
from simulator.model import Model
from simulator.placement import AttentionGrid, Placement
from simulator.program import Program
from simulator.tile import query_cuts
from simulator.workload import Sequences, Step
from tests.schemes import context_parallel, joined, pooled, separated, static, tiny_model, two_level

WORLD = 4
CHUNKS = (((2, 5), (1, 9)), ((2, 7), (1, 3)))  # (sequences, tokens) of two groups, chunk by chunk


def of_kind(operations: tuple[p.Operation, ...], kind: type) -> list[p.Operation]:
    return [operation for operation in operations if isinstance(operation, kind)]


def test_new_tokens_attend_to_cached_ones_and_to_each_other() -> None:
    """8 new tokens on 24 cached: 8·24 + 8·9/2 = 228 pairs, 4·head_dim FLOPs each and head; no message."""
    model = tiny_model(layers=1)
    built = lower(model, Step("prefill", (Sequences(1, 24, 8),)), static(model, 2), nodes=(0, 0))
    work = 0
    for operations in built.ranks:
        (recall,) = of_kind(operations, p.Recall)
        assert isinstance(recall, p.Recall)
        assert recall.num_tokens == 24
        (attention,) = of_kind(operations, p.Attention)
        assert isinstance(attention, p.Attention)
        assert attention.segments == (p.Segment(1, (p.Chunk(8, 0, 32, True),), 32),)
        work += sum(flops(kernel) for kernel in kernels_of(attention, "bf16"))
        assert not of_kind(operations, p.Send)
    assert work == 4 * model.head_dim * model.num_attention_heads * 228
    assert attended_pairs(8, 32, causal=True) == 228


def test_what_is_cached_travels_to_the_pool_that_sees_it_and_is_not_stored_again() -> None:
    model = tiny_model(layers=1)
    placement = pooled(model, 1, AttentionGrid(heads=(8,), query_blocks=2))
    base_only = static(model, 1)
    built = lower(model, Step("prefill", (Sequences(1, 24, 8),)), placement, nodes=(0,) * 3, cache=base_only)
    assert [shard.rows_per_sequence for shard in built.caches[0]] == [(32,)]
    stored = sum(op.num_tokens for ops in built.ranks for op in ops if isinstance(op, p.Store))
    assert stored == 8
    # to the pool: queries of 8 tokens (8 heads · 16 · 2 B), keys and values of 28 and of 32 tokens (2 · 4 · 16 · 2 B)
    assert sum(op.num_bytes for op in built.ranks[0] if isinstance(op, p.Send)) == 8 * 256 + (28 + 32) * 256


def test_a_window_reads_back_only_what_it_sees() -> None:
    model = tiny_model(layers=1, windows=(4,))
    built = lower(model, Step("prefill", (Sequences(1, 24, 8),)), static(model, 1), nodes=(0,))
    (recall,) = of_kind(built.ranks[0], p.Recall)
    assert isinstance(recall, p.Recall)
    assert (recall.num_tokens, recall.target.block) == (3, (((21, 24),),))  # the first new token sees 3 and itself


def test_cuts_of_like_work_take_the_cached_tokens_into_account() -> None:
    """30 new on 90 cached in 2: half of (120² − 90²) = 6,300 is 3,150; sqrt(8100 + 3150) − 90 = 16.07 → 16."""
    assert query_cuts(30, 2, "sqrt", causal=True, past=90) == (((0, 16),), ((16, 30),))
    assert query_cuts(30, 2, "sqrt", causal=True) == (((0, 21),), ((21, 30),))


@pytest.mark.parametrize(
    "placement",
    [
        context_parallel(tiny_model(), 1, 2, kv_ring=True),
        two_level(tiny_model(), 2, 2, dim_mode="all_to_all"),
    ],
    ids=lambda placement: placement.name,
)
def test_rings_and_slices_say_that_they_begin_with_empty_caches(placement: Placement) -> None:
    with pytest.raises(InfeasibleError, match="cannot prefill on top of cached tokens"):
        lower(tiny_model(), Step("prefill", (Sequences(4, 8, 8),)), placement, nodes=(0,) * WORLD)


def placements(model: Model) -> list[tuple[Placement, Placement | None]]:
    """Prefills and who decodes (None: the same)."""
    pool = pooled(model, 2, AttentionGrid(heads=(4, 4), query_blocks=1))
    return [
        (static(model, 4), None),
        (static(model, 2, 2), None),
        (context_parallel(model, 2, 2), None),
        (pooled(model, 1, AttentionGrid(heads=(8,), query_blocks=3), block_rule="zigzag"), static(model, 1)),
        (pooled(model, 2, AttentionGrid(heads=(8,), query_blocks=2), kv_multicast="tree"), pool),
        (joined(model, 2, AttentionGrid(heads=(8,), kv_blocks=3)), None),
        (
            joined(model, 2, AttentionGrid(heads=(8,), query_blocks=3), block_rule="sqrt"),
            joined(model, 2, AttentionGrid(heads=(8,), kv_blocks=4)),
        ),
        (separated(model, 3, 1, exit="all_to_all"), None),
        (static(model, 2, micro_batches=3), None),
    ]  # fmt: skip


def programs(model: Model, placement: Placement, decoder: Placement | None) -> list[Program]:
    """Two chunks of prefill and two decode steps."""
    nodes, built, past = (0,) * WORLD, [], [0, 0]
    prompts = [tokens for _, tokens in CHUNKS[0]]
    for chunk in CHUNKS:
        batch = tuple(
            Sequences(count, before, tokens, first if before else None)
            for (count, tokens), before, first in zip(chunk, past, prompts, strict=True)
        )
        built.append(lower(model, Step("prefill", batch), placement, nodes=nodes, dtype="fp32", cache=decoder))
        past = [before + tokens for (_, tokens), before in zip(chunk, past, strict=True)]
    for step in range(2):
        batch = tuple(
            Sequences(count, before + step, 1, first)
            for (count, _), before, first in zip(CHUNKS[0], past, prompts, strict=True)
        )
        built.append(lower(model, Step("decode", batch), decoder or placement, nodes=nodes, dtype="fp32"))
    return built


@pytest.mark.parametrize(
    ("number", "window"),
    [(n, 0) for n in range(9)] + [(n, 6) for n in (0, 1, 2, 3, 4, 7, 8)],  # keys split over ranks have no window
)
def test_chunks_give_the_tokens_of_the_whole_prompt(number: int, window: int) -> None:
    """Two chunks, then decoding, played by the executor on every rank: fp32 logits within 1e-5 of the reference's."""
    model = tiny_model(layers=2, windows=(window, 0))
    placement, decoder = placements(model)[number]
    lowered = programs(model, placement, decoder)
    generator = torch.Generator().manual_seed(0)
    lengths = [[tokens for count, tokens in chunk for _ in range(count)] for chunk in CHUNKS]
    chunks = [[torch.randint(model.vocab_size, (n,), generator=generator) for n in row] for row in lengths]
    whole = [torch.cat(pair) for pair in zip(*chunks, strict=True)]
    runner = Replay(Generation(model, tuple(lowered), warm_up=0, keep_logits=True))
    wanted = Reference(model, dtype="fp32").generate(whole, 3)
    given = [torch.cat(chunk) for chunk in chunks]
    produced = []
    for step in range(4):
        results, _ = runner._step(step, 0, given[step] if step < 2 else produced[-1])
        produced.append(next(result.tokens for result in results if result.tokens is not None))
    want = Reference(model, dtype="fp32").logits(whole).float()
    results, _ = runner._step(0, 1, given[0])
    results, _ = runner._step(1, 1, given[1])
    rows = [row for result in results for sample in result.logits for row in sample]
    worst = max(float((want - row).abs().amax(dim=1).min()) for row in rows)
    assert worst / float(want.abs().max()) <= 1e-5
    assert [list(tokens) for tokens in zip(*(step.tolist() for step in produced[1:]), strict=True)] == wanted
