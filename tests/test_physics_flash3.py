"""FlashAttention-3's physical models: tiles, makespans and traffic, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.costs import physics_flash3, physics_flash3_decode
from simulator.costs.columns import rows_of
from simulator.costs.flash3_tiles import prefill_tile
from simulator.costs.physics import Array, Device
from simulator.kernel import AttentionDecode, AttentionPrefill

HOPPER = Device(flop_per_s=989e12, bytes_per_s=4.8e12, num_sms=132, element_bytes=2)
PREFILL = dict(physics_flash3.PREFILL_START) | {"throttle_share": 1e-9}
DECODE = dict(physics_flash3_decode.DECODE_START) | {"max_splits": 128.0}


def encoder_seconds(heads: list[int], batch: int = 1, seq: int = 4096) -> Array:
    kernels = [AttentionPrefill(batch, seq, seq, h, h, 64, causal=False) for h in heads]
    return physics_flash3.prefill(rows_of(kernels), PREFILL, HOPPER).base_s


def causal_seconds(heads: int, kv_heads: int, seq: int, batch: int = 1, head_dim: int = 128) -> float:
    kernel = AttentionPrefill(batch, seq, seq, heads, kv_heads, head_dim)
    return float(physics_flash3.prefill(rows_of([kernel]), PREFILL, HOPPER).base_s[0])


def test_equal_tiles_end_after_whole_waves() -> None:
    # 4096 queries are 22 tiles of 192 a head: 8, 10 and 12 heads are 1.33, 1.67 and 2.0 waves on 132 SMs, all two
    eight, ten, twelve = encoder_seconds([8, 10, 12])
    moved = 4096 * 64 * 2 * 2.0 / HOPPER.bytes_per_s / PREFILL["query_bandwidth_share"]  # a head's queries and outputs
    assert ten - eight == pytest.approx(2 * moved, rel=0.05)
    assert twelve - eight == pytest.approx(4 * moved, rel=0.05)


def test_heads_of_a_group_packed_into_one_tile_balance_better_than_heads_one_after_another() -> None:
    # 256 tiles of 128 rows either way; one head's longest tiles start first, of eight heads' the last head's start late
    assert causal_seconds(8, 1, 4096) < causal_seconds(8, 8, 4096)


def test_few_rows_of_a_group_get_a_tile_of_one_warp_group() -> None:
    dims, rows = np.array([64.0, 64.0, 128.0, 256.0]), np.array([64.0, 65.0, 8.0, 8.0])
    no = np.zeros(4, dtype=np.bool_)
    tile = prefill_tile(dims, rows, no, no)
    assert tile.rows.tolist() == [64.0, 192.0, 64.0, 128.0]
    assert tile.small.tolist() == [True, False, True, False]


def test_cache_writes_cost_by_threads_until_a_block_has_512_and_by_bytes_beyond() -> None:
    x = rows_of([AttentionPrefill(1, 65536, 65536, g, g, 64) for g in (4, 8, 16)])
    ones, keys = np.ones(3), x[:, 2]
    four, eight, sixteen = physics_flash3._traffic(x, ones, keys, PREFILL, HOPPER).written
    # bytes: 65536 * g * 64 * 2 B * 2 (K, V) / 4.8e12 B/s / 0.35; threads: 65536 * min(64 g, 512)/512 * 3.4 ns
    stored = 65536 * 64 * 2 * 2 / 4.8e12 / 0.35
    assert four == pytest.approx(4 * stored + 65536 * 3.4e-9 / 2)
    assert eight == pytest.approx(8 * stored + 65536 * 3.4e-9)
    assert sixteen == pytest.approx(16 * stored + 65536 * 3.4e-9)


def test_tiles_of_a_window_walk_the_blocks_that_it_touches() -> None:
    # 16 heads a group, tiles of 192 rows: 12 queries see 128 + 11 keys, which lie in 2 blocks of 128 or, from 10.. of
    # 128 places on, in 3: (118 * 2 + 10 * 3)/128 = 2.08; eight regular samples would say 2.5
    x = rows_of([AttentionPrefill(1, 4096, 4096, 32, 2, 64, window=128)])
    walk = physics_flash3._walk(x, np.array([192.0]), np.array([128.0]))
    assert walk.mean[0] == pytest.approx(2.08, abs=0.3)


def test_wide_heads_launch_every_part_while_the_scheduler_kernel_runs() -> None:
    # up to 992 sequences a head of 512 is 128 parts, empty or not: 512 sequences take longer than 1024, which run whole
    kernels = [AttentionDecode(batch, 64, 1, 1, 512) for batch in (512, 1024)]
    many, whole = physics_flash3_decode.decode(rows_of(kernels), DECODE, HOPPER).base_s
    # 512 * 128/132 waves * 1.8 us * (1 + 512/550) = 1.7 ms, plus launch and merge
    assert many == pytest.approx(1.73e-3, rel=0.05)
    assert whole < many / 5


@pytest.mark.parametrize("head_dim", [64, 72, 128, 192, 256, 512])
def test_no_prefill_beats_its_roofline(head_dim: int) -> None:
    kernels = [AttentionPrefill(b, s, s, 16, 2, head_dim) for b in (1, 64) for s in (1, 128, 8192)]
    shape = physics_flash3.prefill(rows_of(kernels), PREFILL, HOPPER)
    assert (shape.base_s >= shape.floor_s).all()
    assert np.isfinite(shape.features).all()
