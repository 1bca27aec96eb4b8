"""Physical model of FlashAttention-3's prefill, as vLLM calls it on Hopper with a paged KV cache.

What differs from FlashAttention-2 (:mod:`simulator.costs.physics_attention`) and decides the times: tiles by head width
(:mod:`simulator.costs.flash3_tiles`), and one persistent CTA an SM that takes a head's tiles longest first. Blocks are
counted as the kernel's loop bounds count them, not from lengths. New keys go into the cache by a kernel of its own, one
block of threads a token. Long kernels slow down by a few per cent, as a GPU at its power limit does.
Ignores: tensor-memory details, L2 hits, head widths of 512 (another kernel; its coefficients stand for it).
Source: flash-attention, hopper/tile_scheduler; vLLM, reshape_and_cache_flash; section 3 of Shah et al. 2024. A score
costs an exponential besides its 4·width FLOPs, as much as ``score_width`` more of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulator.costs.flash3_tiles import WIDE, Tile, key_splits, prefill_tile
from simulator.costs.physics import Array, Coefficients, Device, Physics, log2, overlapped
from simulator.costs.physics_attention import attended_pairs

TILE_SAMPLES = 8  # query tiles whose loop bounds are computed; their mean stands for all
# Places inside each eighth: irregular, or tiles would be sampled in step with a window's blocks; symmetric, so that
# the mean of a causal walk, which grows evenly, stays exact.
PLACES = np.array([0.13, 0.71, 0.37, 0.93, 0.07, 0.63, 0.29, 0.87])
SAMPLED = (np.arange(TILE_SAMPLES) + PLACES)[:, None] / TILE_SAMPLES
CACHE_THREADS = 512.0  # of a token's block in reshape_and_cache_flash, at most one an element
PARTIAL_BYTES = 4.0  # parts of a split tile are merged in fp32
HEAVY_WIDTH = 256.0  # the widest tile a warp group keeps in registers, at a price

PREFILL_START: Mapping[str, float] = {
    "launch_s": 9e-6,
    "unmasked_launch_s": 6e-6,
    "wide_launch_s": 6e-6,
    "efficiency": 1.2,
    "score_width": 80.0,
    "wide_slowdown": 2.8,
    "heavy_slowdown": 1.15,
    "unmasked_speedup": 1.0,
    "cta_s": 3e-6,
    "small_cta_s": 2.8e-6,
    "unmasked_small_cta_s": 1.8e-6,
    "ragged_cta_s": 3e-7,
    "tail_share": 0.55,
    "query_bandwidth_share": 1.6,
    "cache_bandwidth_share": 0.35,
    "cache_block_s": 3.4e-9,
    "wide_query_s": 2e-6,
    "merge_s": 4e-6,
    "merge_part_s": 3e-8,
    "merge_bandwidth_share": 1.5,
    "throttle_share": 0.05,
    "throttle_after_s": 0.03,
    "exposed_share": 0.2,
}


@dataclass(frozen=True, slots=True)
class _Walk:
    """Query tiles of a group of heads, and the key blocks that they walk: on average, at most, and the first."""

    tiles: Array
    mean: Array
    longest: Array
    shortest: Array
    span: Array


def _walk(x: Array, rows: Array, block: Array) -> _Walk:
    """Loop bounds of TILE_SAMPLES tiles; tile i holds packed rows [i·rows, (i+1)·rows), row r is query r // group."""
    seq_q, seq_kv, heads, kv_heads, window = (x[:, i] for i in (1, 2, 3, 4, 7))
    group, past, unmasked = heads / kv_heads, seq_kv - seq_q, x[:, 6] == 0.0
    tiles = np.ceil(seq_q * group / rows)
    kept = np.where(window > 0.0, window, np.inf)
    row = np.floor(SAMPLED * tiles) * rows  # [TILE_SAMPLES, n]
    per_group = kv_heads / heads
    stop = np.where(unmasked, seq_kv, np.minimum(seq_kv, past + np.floor((row + rows - 0.5) * per_group) + 1.0))
    start = np.maximum(0.0, past + np.floor((row + 0.5) * per_group) - kept + 1.0)
    blocks = np.ceil(stop / block) - np.floor(start / block)
    mean, every = blocks.mean(axis=0), np.ceil(seq_kv / block)
    first = blocks[0]
    widest = np.ceil((np.minimum(kept, seq_kv) + rows / group) / block)
    longest = np.where(window > 0.0, np.minimum(every, widest), every)
    return _Walk(tiles, mean, np.maximum(longest, mean), np.minimum(first, mean), rows / group)


@dataclass(frozen=True, slots=True)
class _Makespan:
    """Tiles on one persistent CTA an SM: work spread evenly, what equal tiles would leave idle in the last wave, the
    longest tile alone, and when all have ended; waves of parts and the parts of a tile."""

    even: Array
    idle: Array
    alone: Array
    whole: Array
    waves: Array
    parts: Array


def _makespan(x: Array, tile: Tile, walk: _Walk, c: Coefficients, device: Device) -> _Makespan:
    """Equal tiles end after whole waves. A head's unequal ones are taken longest first, head after head: the last
    head's longest starts when all work before it has, a head's worth before the even end, and ``tail_share`` of it
    is left when others end. Derived: with tiles of 0 to L under way, L/3 is left of each on average."""
    batch, kv_heads, window = x[:, 0], x[:, 4], x[:, 7]
    loaded = np.where(window > 0.0, np.minimum(x[:, 2], window + tile.rows), x[:, 2])
    parts = key_splits(batch, kv_heads, walk.tiles, np.ceil(loaded / tile.block), device.num_sms)
    block_s, cta_s = _tile_seconds(x, tile, c, device)
    part_blocks = np.where(parts > 1.0, np.ceil(walk.mean / parts), walk.mean)
    waves = batch * kv_heads * walk.tiles * parts * (1.0 / device.num_sms)
    mean_s = part_blocks * block_s + cta_s
    shortest_s = np.minimum(walk.shortest, part_blocks) * block_s + cta_s
    alone = np.where(parts > 1.0, np.ceil(walk.longest / parts), walk.longest) * block_s + cta_s
    even, idle = waves * mean_s, (np.ceil(waves) - waves) * shortest_s
    head = walk.tiles * parts * mean_s * (1.0 / device.num_sms)
    whole = np.maximum(np.maximum(even + idle, alone), even - head + c["tail_share"] * (alone - shortest_s))
    return _Makespan(even, idle, alone, whole, waves, parts)


def _tile_seconds(x: Array, tile: Tile, c: Coefficients, device: Device) -> tuple[Array, Array]:
    """(seconds of a block of keys, seconds of a tile besides its blocks); packing heads that do not divide a tile's
    rows costs each tile ``ragged_cta_s``."""
    unmasked = x[:, 6] == 0.0
    slowdown = np.where(tile.width >= WIDE, c["wide_slowdown"], 1.0)
    slowdown = np.where(tile.width == HEAVY_WIDTH, c["heavy_slowdown"], slowdown)
    efficiency = c["efficiency"] / (1.0 + c["score_width"] / tile.width) / slowdown
    sm_flop_per_s = device.flop_per_s / device.num_sms * efficiency * np.where(unmasked, c["unmasked_speedup"], 1.0)
    small_s = np.where(unmasked, c["unmasked_small_cta_s"], c["small_cta_s"])
    cta_s = np.where(tile.small, small_s, c["cta_s"]) + c["ragged_cta_s"] * _ragged(x, tile)
    return 4.0 * tile.rows * tile.width * tile.block / sm_flop_per_s, cta_s


def _ragged(x: Array, tile: Tile) -> Array:
    return np.asarray((np.mod(tile.rows, x[:, 3] / x[:, 4]) != 0.0) * 1.0)


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Seconds that do not overlap with the scores: queries and outputs moved, keys written to the cache, parts merged;
    and what a prefix's keys take to read, which does overlap."""

    queries: Array
    written: Array
    merged: Array
    prefix: Array


def _traffic(x: Array, parts: Array, read_keys: Array, c: Coefficients, device: Device) -> _Traffic:
    """A token's block writes its keys and values with a thread an element, up to CACHE_THREADS: threads bound how many
    tokens are under way, then come bytes. An unmasked kernel, an encoder's, writes no cache. FlashAttention-4 takes
    single queries one by one (``wide_query_s``)."""
    batch, seq_q, heads, kv_heads, head_dim = x[:, 0], x[:, 1], x[:, 3], x[:, 4], x[:, 5]
    moved_s = batch * head_dim * device.element_bytes * (2.0 / device.bytes_per_s)
    threads = np.minimum(kv_heads * head_dim, CACHE_THREADS) * (1.0 / CACHE_THREADS)
    stored = seq_q * kv_heads * moved_s / c["cache_bandwidth_share"] + batch * seq_q * threads * c["cache_block_s"]
    partial_s = batch * seq_q * heads * head_dim * PARTIAL_BYTES / (device.bytes_per_s * c["merge_bandwidth_share"])
    merged = c["merge_s"] + c["merge_part_s"] * parts + (2.0 * parts + 1.0) * partial_s
    one_by_one = np.where((head_dim >= WIDE) & (seq_q == 1.0), batch * kv_heads * c["wide_query_s"], 0.0)
    return _Traffic(
        queries=seq_q * heads * moved_s / c["query_bandwidth_share"] + one_by_one,
        written=np.where(x[:, 6] == 0.0, 0.0, stored),
        merged=merged * (parts > 1.0),
        prefix=np.maximum(read_keys - seq_q, 0.0) * kv_heads * moved_s,
    )


def prefill(x: Array, c: Coefficients, device: Device) -> Physics:
    """The makespan of the tiles, then the traffic; slower by ``throttle_share`` when all this takes long."""
    batch, seq_q, seq_kv, heads, kv_heads, head_dim = (x[:, i] for i in range(6))
    unmasked, windowed = x[:, 6] == 0.0, x[:, 7] > 0.0
    tile = prefill_tile(head_dim, seq_q * heads / kv_heads, unmasked, windowed)
    walk = _walk(x, tile.rows, tile.block)
    span = _makespan(x, tile, walk, c, device)
    read_keys = np.where(windowed, np.minimum(seq_kv, x[:, 7] + seq_q), seq_kv)
    traffic = _traffic(x, span.parts, read_keys, c, device)
    work = overlapped([span.whole, traffic.prefix], c["exposed_share"])
    work = work + traffic.merged + traffic.queries + traffic.written
    work = work * (1.0 + c["throttle_share"] / (1.0 + (c["throttle_after_s"] / work) ** 2))
    launch = np.where(unmasked, c["unmasked_launch_s"], np.where(tile.width >= WIDE, c["wide_launch_s"], c["launch_s"]))
    flops = 4.0 * batch * heads * head_dim * attended_pairs(x)
    num_bytes = (2.0 * seq_q * heads + 2.0 * read_keys * kv_heads) * batch * head_dim * device.element_bytes
    floor = np.maximum(flops / device.flop_per_s, num_bytes / device.bytes_per_s)
    times = [
        log2((traffic.queries + traffic.written) / span.even), log2(work / launch),
        np.maximum(log2(work / 1e-3), 0.0), log2(num_bytes), log2(np.maximum(traffic.written, 1e-12) / work),
    ]  # fmt: skip
    features = [*times, *_shape_features(x, tile, walk), *_wave_features(x, tile, walk, span, flops)]
    return Physics(launch + work, floor, np.stack(features, axis=1))


def _shape_features(x: Array, tile: Tile, walk: _Walk) -> list[Array]:
    seq_q, heads, kv_heads, head_dim = x[:, 1], x[:, 3], x[:, 4], x[:, 5]
    group = heads / kv_heads
    return [
        log2(x[:, 0]), log2(heads), log2(x[:, 0] * kv_heads), log2(group), (group == 1.0) * 1.0, log2(head_dim),
        log2(tile.width / head_dim), (head_dim == 80.0) * 1.0, (tile.width == 96.0) * 1.0,
        (tile.width >= WIDE) * 1.0, x[:, 6], ((x[:, 7] > 0.0) & (x[:, 7] < x[:, 2])) * 1.0,
        log2(np.minimum(seq_q, 256.0)), (seq_q == 1.0) * 1.0, np.minimum(seq_q * group / tile.rows, 8.0),
        walk.tiles * tile.rows / (seq_q * group), log2(walk.span), walk.span - np.floor(walk.span),
        tile.small * 1.0, _ragged(x, tile), np.minimum(kv_heads * head_dim, CACHE_THREADS) / 128.0,
        log2(kv_heads * head_dim),
    ]  # fmt: skip


def _wave_features(x: Array, tile: Tile, walk: _Walk, span: _Makespan, flops: Array) -> list[Array]:
    ctas = x[:, 0] * x[:, 4] * walk.tiles
    return [
        log2(ctas), log2(span.parts), span.waves / np.ceil(span.waves), np.minimum(span.waves, 4.0),
        log2(span.even), log2(span.even / span.alone), np.minimum(span.idle / span.even, 2.0),
        np.minimum(span.whole / span.even, 4.0), log2(walk.tiles),
        log2(walk.mean), walk.mean - np.floor(walk.mean), np.minimum(walk.longest, 16.0),
        log2(walk.shortest / walk.longest),
        log2(flops / (4.0 * x[:, 5] * ctas * walk.mean * tile.rows * tile.block)),
    ]  # fmt: skip
