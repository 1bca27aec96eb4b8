"""The physical models: closed forms against walking every tile, and what must hold whatever the coefficients."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.fit import START, VARIANTS
from simulator.costs import physics_moe, tuned_tiles
from simulator.costs.columns import rows_of
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.physics import Device, Physics
from simulator.costs.physics_attention import BLOCK_K, key_splits, walked_keys
from simulator.costs.physics_attention import attended_pairs as attended_pairs_array
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, Kernel, Moe, attended_pairs

DEVICE = Device(flop_per_s=312e12, bytes_per_s=2.039e12, num_sms=108, element_bytes=2)


def shape_of(kernel: str, kernels: list[Kernel]) -> Physics:
    coefficients = dict(START[kernel]) | {name: values[0] for name, values in VARIANTS[kernel].items()}
    return PHYSICAL_MODELS[kernel](rows_of(kernels), coefficients, DEVICE)


def prefill(seq_q: int, seq_kv: int, **changes: int | bool) -> AttentionPrefill:
    return AttentionPrefill(1, seq_q, seq_kv, 8, 8, 128, **changes)  # type: ignore[arg-type]


def walked_by_counting(seq_q: int, seq_kv: int, tile: int) -> int:
    """Keys in whole blocks, tile by tile, bottom-right causal."""
    total = 0
    for start in range(0, seq_q, tile):
        last = min(seq_kv, seq_kv - seq_q + start + tile)
        total += -(-last // int(BLOCK_K)) * int(BLOCK_K)
    return total


@given(st.integers(1, 20), st.integers(0, 20), st.sampled_from([64, 128]))
def test_walked_keys_equals_walking_whole_tiles_and_blocks(tiles: int, prefix_tiles: int, tile: int) -> None:
    seq_q, seq_kv = tiles * tile, (tiles + prefix_tiles) * tile
    x = rows_of([prefill(seq_q, seq_kv)])
    _, total, longest = walked_keys(x, float(tile))
    assert total[0] == walked_by_counting(seq_q, seq_kv, tile)
    assert longest[0] == seq_kv


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 80), st.booleans())
def test_pairs_on_arrays_equal_pairs_of_kernels(seq_q: int, past: int, window: int, causal: bool) -> None:
    x = rows_of([prefill(seq_q, seq_q + past, causal=causal, window=window)])
    expected = attended_pairs(seq_q, seq_q + past, causal=causal, window=window)
    assert attended_pairs_array(x)[0] == expected


def test_splits_fill_the_sms_with_the_fewest_parts() -> None:
    # 27 CTAs on 108 SMs: 4 parts fill them; 100 CTAs fill 92 % alone; 4 keys cannot be split
    ctas, keys = np.array([27.0, 100.0, 27.0]), np.array([1e5, 1e5, 4.0])
    assert key_splits(ctas, keys, 108, 128.0).tolist() == [4.0, 1.0, 1.0]


def test_a_window_never_costs_more_than_the_whole_context() -> None:
    whole = shape_of("attention_prefill", [prefill(4096, 4096)]).base_s[0]
    windows = [prefill(4096, 4096, window=w) for w in (128, 512, 2048, 4096)]
    seconds = shape_of("attention_prefill", list(windows)).base_s
    assert np.all(np.diff(seconds) >= 0.0)
    assert seconds[-1] <= whole * 1.0001


def test_blocks_of_a_prompt_cost_about_what_the_prompt_costs() -> None:
    # 8 query blocks of 8192 against their prefixes walk the tiles of one 65536 prompt; launches are extra
    blocks = [prefill(8192, 8192 * (i + 1)) for i in range(8)]
    parts = shape_of("attention_prefill", list(blocks)).base_s.sum()
    whole = shape_of("attention_prefill", [prefill(65536, 65536)]).base_s[0]
    assert 1.0 <= parts / whole < 1.15


@settings(max_examples=60)
@given(st.integers(1, 9000), st.integers(1, 70000), st.integers(1, 70000))
def test_physical_gemm_is_never_below_the_bound(m: int, n: int, k: int) -> None:
    shape = shape_of("gemm", [Gemm(m, n, k)])
    assert shape.base_s[0] >= shape.floor_s[0]
    assert np.isfinite(shape.features).all()


@settings(max_examples=60)
@given(st.integers(1, 4096), st.integers(1, 200000), st.sampled_from([(8, 1), (32, 8), (5, 5)]))
def test_decode_grows_with_context_and_batch(batch: int, context: int, heads: tuple[int, int]) -> None:
    small = AttentionDecode(batch, context, *heads, 128)
    large = AttentionDecode(4 * batch, 4 * context, *heads, 128)
    seconds = shape_of("attention_decode", [small, large])
    assert seconds.base_s[1] > seconds.base_s[0]
    assert np.isfinite(seconds.features).all()


def test_skewed_routing_heats_one_rank_and_balanced_routing_does_not() -> None:
    even = physics_moe.routing(rows_of([Moe(4096, 1024, 512, 8, 64, ep=8)]))[0]
    skewed = physics_moe.routing(rows_of([Moe(4096, 1024, 512, 8, 64, ep=8, routing="power_law_1.2")]))[0]
    assert even[0] == 4096 * 8 / 8
    assert skewed[0] > 1.3 * even[0]
    assert skewed[2] <= 4096  # no expert gets a token twice


def test_rows_that_rounding_leaves_over_heat_one_rank_or_go_round() -> None:
    # 8 rows, 128 experts, 16 ranks of 8: no load exceeds 2/0.376 * 8/128 = 0.33, so all 8 rows are left over
    one_rank = physics_moe.drawn_loads(1, 8, 128, 16, 1.01, spread=False).sum(axis=2)
    going_round = physics_moe.drawn_loads(1, 8, 128, 16, 1.01, spread=True).sum(axis=2)
    assert np.array_equal(one_rank, np.tile([8.0] + [0.0] * 15, (len(one_rank), 1)))
    assert np.array_equal(going_round, np.tile([1.0] * 8 + [0.0] * 8, (len(going_round), 1)))


@settings(max_examples=40)
@given(st.integers(1, 5000), st.sampled_from([1, 2, 8]), st.sampled_from([1, 4, 16]), st.booleans())
def test_drawn_loads_are_whole_and_add_up(tokens: int, topk: int, ep: int, spread: bool) -> None:
    loads = physics_moe.drawn_loads(tokens, topk, 64, ep, 1.2, spread=spread)
    assert np.array_equal(loads, np.rint(loads))
    assert loads.min() >= 0.0
    assert np.all(loads.sum(axis=(1, 2)) == tokens * topk)


def test_a_width_that_cannot_be_loaded_in_vectors_costs_more_than_the_next_wider() -> None:
    seconds = shape_of("moe", [Moe(64, 4096, 168, 2, 8), Moe(64, 4096, 176, 2, 8)]).base_s
    assert seconds[0] > seconds[1]


def test_a_tuned_files_tiles_grow_with_the_tokens_and_other_shapes_have_none() -> None:
    tokens = np.array([1.0, 48.0, 49.0, 192.0, 1793.0, 1793.0, 1793.0])
    experts, width = np.array([8.0] * 6 + [4.0]), np.array([3584.0] * 5 + [3600.0, 3584.0])
    tiles = tuned_tiles.tuned_tiles(tokens, experts, width)
    assert tiles.exists.tolist() == [True] * 5 + [False] * 2
    assert tuned_tiles.ROWS[tiles.index[:5]].tolist() == [16, 16, 32, 32, 128]


def test_only_shapes_with_a_tuned_file_gain_by_it() -> None:
    # one rank's experts and width: 8 and 14336/4 = 3584, 8 and 14336/1, 64/8 = 8 and 3584
    kernels = [Moe(4096, 4096, 14336, 2, 8, tp=4), Moe(4096, 4096, 14336, 2, 8), Moe(4096, 4096, 3584, 2, 64, ep=8)]
    coefficients = {**physics_moe.MOE_START, "fixed_tiles": physics_moe.TUNED_FILES}
    plain, gaining = (
        PHYSICAL_MODELS["moe"](rows_of(kernels), {**coefficients, "tuned_gain": gain}, DEVICE) for gain in (1.0, 1.5)
    )
    assert (gaining.base_s < plain.base_s).tolist() == [True, False, True]
    assert plain.features[:, -1].tolist() == [1.0, 0.0, 1.0]


def test_few_tokens_touch_few_experts() -> None:
    touched = physics_moe.routing(rows_of([Moe(1, 1024, 512, 2, 64), Moe(4096, 1024, 512, 2, 64)]))[:, 1]
    assert touched.tolist() == [2.0, 64.0]
