"""What single operations do to tensors: parts of values, caches, weights, routing, sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.cache import Cache
from executor.experts import Assignment, Ragged, combine, dispatch, feed_forward, slots_of
from executor.interpreter import schedule
from executor.operations import sample
from executor.rows import join, positions_of, take
from executor.transfers import combined, side_by_side
from executor.weights import SeededSource, Weights, uniform
from simulator import program as p
from simulator.tile import Batch, Tile, num_tokens, query_blocks, split_block
from simulator.workload import Sequences
from tests.schemes import tiny_model

BATCH: Batch = (Sequences(2, 0, 7), Sequences(1, 0, 12), Sequences(3, 0, 3))
PLACE = {"layer": 0, "micro_batch": 0}


def labelled(tile: Tile, batch: Batch = BATCH) -> torch.Tensor:
    """[T, columns, 2]: every element says which sequence, position and column it is."""
    rows, first = [], 0
    for group, spans in zip(batch, tile.block, strict=True):
        for sequence in range(first, first + group.count):
            rows += [1000 * sequence + position for span in spans for position in range(*span)]
        first += group.count
    columns = torch.arange(*tile.columns)
    return (torch.tensor(rows)[:, None] * 10 + columns[None, :]).unsqueeze(-1).repeat(1, 1, 2)


@given(
    parts=st.integers(1, 4),
    rule=st.sampled_from(["contiguous", "zigzag", "sqrt"]),
    cut=st.integers(1, 3),
    columns=st.tuples(st.integers(0, 2), st.integers(3, 5)),
)
@settings(max_examples=50, deadline=None)
def test_slices_hold_what_their_tile_says_and_join_to_the_whole(
    parts: int, rule: str, cut: int, columns: tuple[int, int]
) -> None:
    whole = Tile((0, 5), tuple(((0, group.new),) for group in BATCH))
    value = labelled(whole)
    tiles = [Tile(columns, block) for block in query_blocks(BATCH, parts, rule, causal=True)]  # type: ignore[arg-type]
    for tile in tiles:
        assert torch.equal(take(value, BATCH, whole, tile), labelled(tile))
    pieces = [Tile(columns, piece) for tile in tiles for piece in split_block(tile.block, cut)]
    joined = Tile(columns, whole.block)
    assert torch.equal(join([labelled(piece) for piece in pieces], BATCH, pieces, joined), labelled(joined))


def test_contiguous_parts_are_views() -> None:
    whole = Tile((0, 1), tuple(((0, group.new),) for group in BATCH))
    value = torch.arange(num_tokens(whole.block, BATCH))
    part = Tile((0, 1), (whole.block[0], (), ()))
    assert take(value, BATCH, whole, part).data_ptr() == value.data_ptr()


def test_columns_of_flat_values_are_runs_of_elements() -> None:
    batch = (Sequences(1, 0, 2),)
    block = (((0, 2),),)
    value = torch.arange(12).view(2, 6)  # three columns of two elements
    assert take(value, batch, Tile((4, 7), block), Tile((5, 6), block)).tolist() == [[2, 3], [8, 9]]


def test_positions_follow_the_packing() -> None:
    block = (((1, 3), (5, 6)), (), ((0, 1),))
    assert positions_of(BATCH, block).tolist() == [1, 2, 5, 1, 2, 5, 0, 0, 0]


def test_a_cache_appends_rows_sequence_by_sequence_and_grows() -> None:
    batch = (Sequences(2, 0, 3), Sequences(1, 0, 30))
    cache = Cache(3)
    for start, stop in ((0, 2), (2, 3)):
        source = Tile((0, 4), tuple(((0, group.new),) for group in batch))
        target = Tile((1, 3), (((start, stop),), ((start * 10, stop * 10),)))
        value = labelled(source, batch).unsqueeze(1).repeat(1, 2, 1, 1)  # [T, 2, 4, 2]
        store = p.Store(
            reads=("kv",), writes=("cache.0",), batch=batch, source=source, target=target, num_tokens=0, head_dim=2,
            **PLACE,
        )  # fmt: skip
        cache.store(store, value)
    held = cache.rows(0, 1, 1, 3)
    assert held is not None
    assert held[0, :, 0, :, 0].tolist() == [[10001, 10002], [10011, 10012], [10021, 10022]]
    long = cache.rows(0, 2, 1, 30)
    assert long is not None
    assert long[0, :, 0, 0, 0].tolist() == [20001 + 10 * position for position in range(30)]
    cache.clear()
    assert cache.layers[0].lengths == [0, 0, 0]


def test_weight_slices_are_parts_of_one_tensor() -> None:
    whole = uniform(3, "w", (0, 600), (0, 520))
    assert torch.equal(uniform(3, "w", (250, 260), (255, 515)), whole[250:260, 255:515])
    assert not torch.equal(uniform(4, "w", (0, 9), (0, 9)), whole[:9, :9])
    assert whole.abs().max() <= 1
    assert abs(whole.var().item() - 1 / 3) < 0.01  # uniform on [−1, 1)


def test_a_tied_head_is_the_embedding_transposed() -> None:
    source = SeededSource(tiny_model().model_copy(update={"tie_word_embeddings": True}))
    head = source.matrix(p.WeightSlice("lm_head", (0, 128), (10, 20)))
    assert torch.equal(head, source.matrix(p.WeightSlice("embed", (10, 20), (0, 128))).T)


def test_linear_weights_lie_side_by_side_and_are_made_once() -> None:
    weights = Weights(SeededSource(tiny_model()), dtype="fp32", device=torch.device("cpu"))
    slices = tuple(p.WeightSlice(f"layers.0.attention.{name}", (0, 128), (0, 16)) for name in "qk")
    matrix = weights.matrix(slices)
    assert matrix.shape == (128, 32)
    assert matrix is weights.matrix(slices)
    assert weights.num_bytes == 128 * 32 * 4


def test_first_choices_take_slots_before_second_ones_in_token_order() -> None:
    experts = torch.tensor([[0, 1], [0, 1], [1, 0]])
    # expert 0: token 0, token 1 (first), token 2 (second); expert 1: token 2 (first), tokens 0 and 1 (second)
    assert slots_of(experts, 2).tolist() == [[0, 1], [1, 2], [0, 2]]


@pytest.mark.parametrize("capacity", [None, 2, 5])
def test_dispatch_and_combine_with_identity_experts_weigh_the_kept_choices(capacity: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator)
    experts = torch.tensor([[0, 2], [1, 2], [2, 0], [2, 1], [0, 1]])
    gates = torch.rand(5, 2, generator=generator)
    slots = slots_of(experts, 3)
    if capacity is not None:
        slots = torch.where(slots < capacity, slots, -1)
    assignment = Assignment(experts, gates, slots)
    total = torch.zeros_like(x)
    for span in ((0, 1), (1, 3)):
        held = {"num_tokens": 5, "hidden": 4, "num_experts": 3, "top_k": 2, "experts": span, "capacity": capacity}
        rows = dispatch(p.Dispatch(reads=("x", "a"), writes=("r",), **held, **PLACE), x, assignment)
        total += combine(p.Combine(reads=("r", "a"), writes=("y",), **held, **PLACE), rows, assignment)
    assert torch.allclose(total, x * (gates * (slots >= 0)).sum(1, keepdim=True), atol=1e-6)


def test_capacity_rows_of_several_peers_meet_their_expert() -> None:
    operation = p.Experts(
        reads=("r",), writes=("o",), num_tokens=4, hidden=4, intermediate=(0, 3), num_experts=2, top_k=1,
        experts=(0, 2), capacity=2, peers=3, kind="gelu", gated=False, **PLACE,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(2, 4, 3, generator=generator), torch.randn(2, 3, 4, generator=generator)
    rows = torch.randn(3 * 2 * 2, 4, generator=generator)
    out = feed_forward(operation, rows, up, down)
    assert isinstance(out, torch.Tensor)
    for peer in range(3):
        for expert in range(2):
            part = slice((peer * 2 + expert) * 2, (peer * 2 + expert) * 2 + 2)
            want = torch.nn.functional.gelu(rows[part] @ up[expert]) @ down[expert]
            assert torch.allclose(out[part], want, atol=1e-5)


def test_ragged_rows_meet_their_expert_even_if_one_has_none() -> None:
    operation = p.Experts(
        reads=("r",), writes=("o",), num_tokens=4, hidden=16, intermediate=(0, 16), num_experts=3, top_k=1,
        experts=(0, 3), capacity=None, peers=1, kind="silu", gated=True, **PLACE,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(3, 16, 32, generator=generator), torch.randn(3, 16, 16, generator=generator)
    rows = torch.randn(5, 16, generator=generator)
    out = feed_forward(operation, Ragged(rows, torch.tensor([2, 0, 3])), up, down)
    assert isinstance(out, Ragged)
    for expert, part in ((0, slice(0, 2)), (2, slice(2, 5))):
        gate, up_half = (rows[part] @ up[expert]).chunk(2, dim=1)
        assert torch.allclose(out.rows[part], (torch.nn.functional.silu(gate) * up_half) @ down[expert], atol=1e-4)


def test_sampling_from_padded_vocabulary_shards() -> None:
    # 7 words over 3 shards: 3, 2, 2 columns padded to 3
    columns = [0, 1, 2, 3, 4, None, 5, 6, None]
    for word in range(7):
        logits = torch.tensor([[float("-inf") if c is None else float(c == word) for c in columns]])
        operation = p.Sample(reads=("x",), writes=("y",), rows=1, vocab=7, shards=3, **PLACE)
        assert sample(operation, logits).tolist() == [word]


def test_collectives_mean_what_their_names_say() -> None:
    operation = p.Collective(
        reads=("x",), writes=("y",), kind="all_reduce", algorithm="auto", ranks=(0, 1), tag=0, num_bytes=0,
        shape=(2, 2), dtype="fp32", **PLACE,
    )  # fmt: skip
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    assert combined(operation, [a, b], 1).tolist() == [[11, 22], [33, 44]]
    assert combined(replace(operation, kind="reduce_scatter"), [a, b], 1).tolist() == [[33, 44]]
    assert combined(replace(operation, kind="all_to_all"), [a, b], 1).tolist() == [[3, 4], [30, 40]]
    columns = replace(operation, kind="all_gather", along="columns")
    assert combined(columns, [a, b], 0).tolist() == [[1, 2, 10, 20], [3, 4, 30, 40]]
    assert torch.equal(side_by_side(columns, torch.cat([a, b])), combined(columns, [a, b], 1))


def test_values_are_freed_after_their_last_reader() -> None:
    def add(reads: tuple[str, str], write: str) -> p.Add:
        return p.Add(reads=reads, writes=(write,), num_tokens=1, width=1, **PLACE)

    plan = schedule((add(("x", "x"), "y"), add(("x", "y"), "z"), add(("y", "cache.0"), "w")), keep=("w",))
    assert [set(names) for names in plan.freed] == [set(), {"x", "z"}, {"y"}]
