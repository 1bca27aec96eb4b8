"""Physical models of FlashAttention-3, Hopper's attention: prefill and decode, as vLLM calls it on paged KV.

What differs from FlashAttention-2 (:mod:`simulator.costs.physics_attention`) and decides the times: query tiles of 192
or 128 rows by head width, heads of a group packed into one tile, one persistent CTA an SM that takes the longest tiles
first, and a number of splits chosen for each step by the scheduler (an upper bound as if one sequence were alone,
then the parts that fill the SMs). Blocks are counted as the kernel's loop bounds count them, not from lengths.
Long kernels slow down by a few per cent, as a GPU at its power limit does.
Ignores: tensor-memory details, L2 hits, head widths of 512 (another kernel; its coefficients stand for it).
Source: flash-attention, hopper/{tile_size,heuristics,flash_prepare_scheduler,tile_scheduler} and section 3 of
Shah et al. 2024. A score costs an exponential besides its 4·width FLOPs, as much as ``score_width`` more of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from simulator.costs.physics import Array, Coefficients, Device, Physics, ceil_div, log2, overlapped
from simulator.costs.physics_attention import attended_pairs

WIDTHS = np.array([64.0, 96.0, 128.0, 192.0, 256.0, 512.0])  # head widths a kernel exists for; others are padded
TILE_ROWS = np.array([192.0, 192.0, 128.0, 128.0, 128.0, 64.0])
BLOCK_KEYS = np.array([128.0, 128.0, 128.0, 96.0, 64.0, 64.0])  # causal, windowed or paged
BLOCK_KEYS_UNMASKED = np.array([192.0, 144.0, 176.0, 112.0, 80.0, 64.0])
FILL_ENOUGH, FILL_TARGET = 0.8, 0.85  # of the SMs, and of the best filling there is
UNSPLIT_BLOCKS, MAX_SPLITS = 4, 128
SCHEDULER_MARGIN = 1.1
DYNAMIC_BATCH = 992.0  # sequences up to which the scheduler kernel chooses splits
WIDE = 512.0  # heads so wide run FlashAttention-4's kernel, which is slower here
TILE_SAMPLES = 8  # query tiles whose loop bounds are computed; their mean stands for all
SAMPLED = (np.arange(TILE_SAMPLES)[:, None] + 0.5) / TILE_SAMPLES

PREFILL_START: Mapping[str, float] = {
    "launch_s": 9e-6,
    "unmasked_launch_s": 9e-6,
    "efficiency": 0.8,
    "score_width": 32.0,
    "wide_slowdown": 2.0,
    "unmasked_speedup": 1.0,
    "lone_cta_speedup": 1.5,
    "cta_s": 1.5e-6,
    "pack_cta_s": 3e-7,
    "tail_share": 0.3,
    "query_bandwidth_share": 0.5,
    "cache_bandwidth_share": 0.3,
    "merge_s": 3e-6,
    "merge_part_s": 1e-7,
    "throttle_share": 0.1,
    "throttle_after_s": 5e-3,
    "exposed_share": 0.2,
}
DECODE_START: Mapping[str, float] = {
    "launch_s": 1e-5,
    "launch_power": 0.2,
    "bandwidth_share": 0.85,
    "cta_s": 2.5e-6,
    "cta_power": 0.4,
    "wide_slowdown": 1.5,
    "block_s": 3e-7,
    "second_block_s": 1e-6,
    "dynamic_cta_s": 5e-7,
    "window_s": 1e-6,
    "window_cta_64_s": 1e-6,
    "window_cta_s": 5e-7,
    "merge_s": 3e-6,
    "merge_part_s": 1e-7,
    "merge_row_s": 1e-8,
    "sequence_s": 3e-8,
    "exposed_share": 0.2,
}


@cache
def _most_splits(num_sms: int) -> Array:
    """[tiles, blocks] → splits: the fewest that fill the SMs to 85 % of what any number up to the blocks reaches."""
    table = np.ones((num_sms + 1, MAX_SPLITS + 1))
    splits = np.arange(1.0, MAX_SPLITS + 1.0)
    for tiles in range(1, int(np.ceil(FILL_ENOUGH * num_sms))):
        waves = tiles * splits / num_sms
        filled = waves / np.ceil(waves)
        best = np.maximum.accumulate(filled)
        for blocks in range(UNSPLIT_BLOCKS + 1, MAX_SPLITS + 1):
            table[tiles, blocks] = 1.0 + float(np.argmax(filled[:blocks] >= FILL_TARGET * best[blocks - 1]))
    return table


def key_splits(batch: Array, kv_heads: Array, tiles: Array, blocks: Array, num_sms: int) -> Array:
    """Parts along the keys of every tile: what fills the SMs, at most what one sequence alone would get."""
    alone = np.minimum(kv_heads * tiles, float(num_sms)).astype(np.int64)
    most = _most_splits(num_sms)[alone, np.minimum(blocks, float(MAX_SPLITS)).astype(np.int64)]
    blocks_an_sm = np.ceil(batch * kv_heads * tiles * blocks * (SCHEDULER_MARGIN / num_sms))
    return np.asarray(np.clip(np.ceil(blocks / blocks_an_sm), 1.0, most))


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
class _Kernel:
    """What head width and mask decide: rows of a query tile, padded width, keys of a block."""

    rows: Array
    width: Array
    block: Array


def _kernel(head_dim: Array, unmasked: Array) -> _Kernel:
    at = np.minimum(np.searchsorted(WIDTHS, head_dim), len(WIDTHS) - 1)
    block = np.where(unmasked, BLOCK_KEYS_UNMASKED[at], BLOCK_KEYS[at])
    return _Kernel(TILE_ROWS[at], np.maximum(WIDTHS[at], head_dim), block)


@dataclass(frozen=True, slots=True)
class _Makespan:
    """Tiles on one persistent CTA an SM, longest first: work spread evenly, what the last wave leaves idle, the longest
    tile alone; waves of parts and the parts of a tile."""

    even: Array
    idle: Array
    alone: Array
    waves: Array
    parts: Array


def _makespan(x: Array, kernel: _Kernel, walk: _Walk, c: Coefficients, device: Device) -> _Makespan:
    batch, heads, kv_heads, window, unmasked = x[:, 0], x[:, 3], x[:, 4], x[:, 7], x[:, 6] == 0.0
    loaded = np.where(window > 0.0, np.minimum(x[:, 2], window + kernel.rows), x[:, 2])
    parts = key_splits(batch, kv_heads, walk.tiles, np.ceil(loaded / kernel.block), device.num_sms)
    efficiency = c["efficiency"] / (1.0 + c["score_width"] / kernel.width)
    efficiency = np.where(kernel.width >= WIDE, efficiency / c["wide_slowdown"], efficiency)
    sm_flop_per_s = device.flop_per_s / device.num_sms * efficiency * np.where(unmasked, c["unmasked_speedup"], 1.0)
    block_s = 4.0 * kernel.rows * kernel.width * kernel.block / sm_flop_per_s
    cta_s = c["cta_s"] + c["pack_cta_s"] * (heads > kv_heads)
    part_blocks = np.where(parts > 1.0, np.ceil(walk.mean / parts), walk.mean)
    waves = batch * kv_heads * walk.tiles * parts * (1.0 / device.num_sms)
    even = waves * (part_blocks * block_s + cta_s)
    idle = (np.ceil(waves) - waves) * (np.minimum(walk.shortest, part_blocks) * block_s + cta_s)
    alone = walk.longest / parts * block_s / c["lone_cta_speedup"] + cta_s
    return _Makespan(even, idle, alone, waves, parts)


def prefill(x: Array, c: Coefficients, device: Device) -> Physics:
    """The makespan of the tiles, the merge of splits, and queries, outputs and new keys moved (an unmasked kernel, an
    encoder's, writes no KV cache); slower by ``throttle_share`` when all this takes long."""
    batch, seq_q, seq_kv, heads, kv_heads, head_dim = (x[:, i] for i in range(6))
    unmasked = x[:, 6] == 0.0
    kernel = _kernel(head_dim, unmasked)
    walk = _walk(x, kernel.rows, kernel.block)
    span = _makespan(x, kernel, walk, c, device)
    read_keys = np.where(x[:, 7] > 0.0, np.minimum(seq_kv, x[:, 7] + seq_q), seq_kv)
    moved_s = batch * head_dim * device.element_bytes * (2.0 / device.bytes_per_s)
    prefix = np.maximum(read_keys - seq_q, 0.0) * kv_heads * moved_s
    written = np.where(unmasked, 0.0, seq_q * kv_heads * moved_s / c["cache_bandwidth_share"])
    traffic = seq_q * heads * moved_s / c["query_bandwidth_share"] + written
    tail = c["tail_share"] * np.minimum(span.idle, span.alone)
    merge = (c["merge_s"] + c["merge_part_s"] * span.parts) * (span.parts > 1.0)
    work = overlapped([span.even, span.alone, prefix], c["exposed_share"]) + tail + merge + traffic
    work = work * (1.0 + c["throttle_share"] / (1.0 + (c["throttle_after_s"] / work) ** 2))
    launch = np.where(unmasked, c["unmasked_launch_s"], c["launch_s"])
    flops = 4.0 * batch * heads * head_dim * attended_pairs(x)
    num_bytes = (2.0 * seq_q * heads + 2.0 * read_keys * kv_heads) * batch * head_dim * device.element_bytes
    floor = np.maximum(flops / device.flop_per_s, num_bytes / device.bytes_per_s)
    times = [log2(traffic / span.even), log2(work / launch), np.maximum(log2(work / 1e-3), 0.0), log2(num_bytes)]
    features = [*times, *_shape_features(x, kernel, walk), *_wave_features(x, kernel, walk, span, flops)]
    return Physics(launch + work, floor, np.stack(features, axis=1))


def _shape_features(x: Array, kernel: _Kernel, walk: _Walk) -> list[Array]:
    seq_q, heads, kv_heads, head_dim = x[:, 1], x[:, 3], x[:, 4], x[:, 5]
    group = heads / kv_heads
    return [
        log2(x[:, 0]), log2(heads), log2(x[:, 0] * kv_heads), log2(group), (group == 1.0) * 1.0, log2(head_dim),
        log2(kernel.width / head_dim), (head_dim == 80.0) * 1.0, (kernel.width == 96.0) * 1.0,
        (kernel.width >= WIDE) * 1.0, x[:, 6], ((x[:, 7] > 0.0) & (x[:, 7] < x[:, 2])) * 1.0,
        log2(np.minimum(seq_q, 256.0)), (seq_q == 1.0) * 1.0, np.minimum(seq_q * group / kernel.rows, 8.0),
        walk.tiles * kernel.rows / (seq_q * group), log2(walk.span), walk.span - np.floor(walk.span),
    ]  # fmt: skip


def _wave_features(x: Array, kernel: _Kernel, walk: _Walk, span: _Makespan, flops: Array) -> list[Array]:
    ctas = x[:, 0] * x[:, 4] * walk.tiles
    return [
        log2(ctas), log2(span.parts), span.waves / np.ceil(span.waves), np.minimum(span.waves, 4.0),
        log2(span.even), log2(span.even / span.alone), np.minimum(span.idle / span.even, 2.0),
        log2(walk.mean), walk.mean - np.floor(walk.mean), np.minimum(walk.longest, 16.0),
        log2(walk.shortest / walk.longest),
        log2(flops / (4.0 * x[:, 5] * ctas * walk.mean * kernel.rows * kernel.block)),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Parts:
    """Blocks of the context, blocks that hold kept keys, parts along them, blocks of a part, query tiles of a head."""

    blocks: Array
    touched: Array
    parts: Array
    part_blocks: Array
    tiles: Array


def _decode_parts(x: Array, kernel: _Kernel, max_splits: float, num_sms: int) -> _Parts:
    batch, context, heads, kv_heads, window = (x[:, i] for i in (0, 1, 2, 3, 5))
    tiles, blocks = ceil_div(heads / kv_heads, kernel.rows), np.ceil(context / kernel.block)
    windowed = (window > 0.0) & (window < context)
    touched = np.where(windowed, blocks - np.floor((context - window) / kernel.block), blocks)
    scheduled = np.where(window > 0.0, np.minimum(blocks, np.ceil((window + kernel.rows) / kernel.block)), blocks)
    parts = np.minimum(key_splits(batch, kv_heads, tiles, scheduled, num_sms), max_splits)
    return _Parts(blocks, touched, parts, np.ceil(touched / parts), tiles)


def _decode_chain(x: Array, kernel: _Kernel, split: _Parts, c: Coefficients) -> Array:
    """Seconds of one CTA: a fixed cost (and the scheduler's, and a window's), a second block's latency, more blocks."""
    windowed = (x[:, 5] > 0.0) & (x[:, 5] < x[:, 1])
    wide = np.where(kernel.width >= WIDE, c["wide_slowdown"], 1.0)
    fixed = wide * c["cta_s"] * (kernel.width / 128.0) ** c["cta_power"] + c["dynamic_cta_s"] * (
        x[:, 0] <= DYNAMIC_BATCH
    )
    fixed = fixed + windowed * np.where(kernel.width == 64.0, c["window_cta_64_s"], c["window_cta_s"])
    block_s = wide * c["block_s"] * kernel.width / 128.0
    return np.asarray((split.part_blocks - 1.0) * block_s + c["second_block_s"] * (split.part_blocks > 1.0) + fixed)


def decode(x: Array, c: Coefficients, device: Device) -> Physics:
    """KV bytes over bandwidth against CTAs in waves (:func:`_decode_chain`), then the merge of splits."""
    batch, context, heads, kv_heads, head_dim, window = (x[:, i] for i in range(6))
    keys = np.where(window > 0.0, np.minimum(window, context), context)
    kernel = _kernel(head_dim, np.zeros(len(x), dtype=np.bool_))
    split = _decode_parts(x, kernel, c["max_splits"], device.num_sms)
    parts = split.parts
    waves = batch * kv_heads * split.tiles * parts * (1.0 / device.num_sms)
    chain = _decode_chain(x, kernel, split, c)
    even = waves * chain
    num_bytes = batch * (2.0 * heads + 2.0 * keys * kv_heads) * head_dim * device.element_bytes
    memory = num_bytes / (device.bytes_per_s * c["bandwidth_share"])
    merged_rows = batch * heads * parts * head_dim / (128.0 * device.num_sms)
    merge = (c["merge_s"] + c["merge_part_s"] * parts + c["merge_row_s"] * merged_rows) * (parts > 1.0)
    work = overlapped([memory, np.maximum(even, chain)], c["exposed_share"]) + merge
    launch = c["launch_s"] * (kernel.width / 128.0) ** c["launch_power"] + c["window_s"] * (keys < context)
    floor = np.maximum(4.0 * batch * heads * head_dim * keys / device.flop_per_s, num_bytes / device.bytes_per_s)
    group = heads / kv_heads
    features = [
        log2(batch * kv_heads * split.tiles * parts), log2(keys), log2(batch), log2(kv_heads), log2(group),
        log2(head_dim), log2(parts), log2(memory / even), log2(work / launch), log2(num_bytes), log2(split.touched),
        log2(split.part_blocks), waves / np.ceil(waves), np.minimum(waves, 4.0), log2(even),
        (batch <= DYNAMIC_BATCH) * 1.0, log2(np.minimum(keys, 512.0)), (keys < context) * 1.0, log2(split.blocks),
        (group == 1.0) * 1.0, log2(split.tiles), (parts > 1.0) * 1.0, log2(batch * kv_heads),
        split.part_blocks * parts / split.touched, keys / (split.touched * kernel.block),
        (kernel.width >= WIDE) * 1.0,
    ]  # fmt: skip
    return Physics(launch + work + batch * c["sequence_s"], floor, np.stack(features, axis=1))
