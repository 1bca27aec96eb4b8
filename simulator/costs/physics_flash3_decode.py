"""Physical model of FlashAttention-3's decode on Hopper: one query a sequence, KV parts merged by a second kernel.

Ignores: L2 hits, tensor-memory details. Heads of 512 run FlashAttention-4's kernel: as long as the scheduler kernel
chooses the splits, it launches all MAX_SPLITS parts of every head, empty or not, and each looks for its work among all.
Source: flash-attention, hopper/{tile_size,heuristics,flash_prepare_scheduler}; section 3 of Shah et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulator.costs.flash3_tiles import DYNAMIC_BATCH, MAX_SPLITS, WIDE, Tile, decode_tile, key_splits
from simulator.costs.physics import Array, Coefficients, Device, Physics, ceil_div, log2, overlapped

WIDE_CROWD = 550.0  # heads of all sequences at which a part of 512-wide ones looks for its work as long as it lasts

DECODE_START: Mapping[str, float] = {
    "launch_s": 8e-6,
    "launch_power": 0.05,
    "bandwidth_share": 0.88,
    "cta_s": 3e-6,
    "cta_power": 0.4,
    "wide_slowdown": 3.0,
    "wide_part_s": 1.8e-6,
    "block_s": 1e-7,
    "second_block_s": 9e-7,
    "dynamic_cta_s": 3.5e-7,
    "dynamic_sequence_s": 1.2e-8,
    "window_s": 1.5e-6,
    "window_cta_64_s": 2.5e-6,
    "window_cta_s": 2.5e-7,
    "merge_s": 1.5e-6,
    "merge_part_s": 1e-8,
    "merge_row_s": 1.5e-9,
    "sequence_s": 1e-8,
    "exposed_share": 0.5,
}


@dataclass(frozen=True, slots=True)
class _Parts:
    """Blocks of the context, blocks that hold kept keys, parts along them, blocks of a part, query tiles of a head."""

    blocks: Array
    touched: Array
    parts: Array
    part_blocks: Array
    tiles: Array


def _parts(x: Array, tile: Tile, max_splits: float, num_sms: int) -> _Parts:
    batch, context, heads, kv_heads, window = (x[:, i] for i in (0, 1, 2, 3, 5))
    tiles, blocks = ceil_div(heads / kv_heads, tile.rows), np.ceil(context / tile.block)
    windowed = (window > 0.0) & (window < context)
    touched = np.where(windowed, blocks - np.floor((context - window) / tile.block), blocks)
    scheduled = np.where(window > 0.0, np.minimum(blocks, np.ceil((window + tile.rows) / tile.block)), blocks)
    parts = np.minimum(key_splits(batch, kv_heads, tiles, scheduled, num_sms), max_splits)
    parts = np.where(_all_parts(x, tile), float(MAX_SPLITS), parts)
    return _Parts(blocks, touched, parts, np.ceil(touched / parts), tiles)


def _all_parts(x: Array, tile: Tile) -> np.typing.NDArray[np.bool_]:
    """Where the wide kernel launches every part there may be."""
    return np.asarray((tile.width >= WIDE) & (x[:, 0] <= DYNAMIC_BATCH))


def _chain(x: Array, tile: Tile, split: _Parts, c: Coefficients) -> Array:
    """Seconds of one CTA: a fixed cost (and the scheduler's, and a window's), a second block's latency, more blocks."""
    windowed = (x[:, 5] > 0.0) & (x[:, 5] < x[:, 1])
    wide = np.where((tile.width >= WIDE) & ~_all_parts(x, tile), c["wide_slowdown"], 1.0)
    dynamic = c["dynamic_cta_s"] * (x[:, 0] <= DYNAMIC_BATCH)
    fixed = wide * c["cta_s"] * (tile.width / 128.0) ** c["cta_power"] + dynamic
    fixed = fixed + windowed * np.where(tile.width == 64.0, c["window_cta_64_s"], c["window_cta_s"])
    block_s = wide * c["block_s"] * tile.width / 128.0
    return np.asarray((split.part_blocks - 1.0) * block_s + c["second_block_s"] * (split.part_blocks > 1.0) + fixed)


def decode(x: Array, c: Coefficients, device: Device) -> Physics:
    """KV bytes over bandwidth against CTAs in waves (:func:`_chain`), then the merge of splits."""
    batch, context, heads, kv_heads, head_dim, window = (x[:, i] for i in range(6))
    keys = np.where(window > 0.0, np.minimum(window, context), context)
    tile = decode_tile(head_dim)
    split = _parts(x, tile, c["max_splits"], device.num_sms)
    parts = split.parts
    waves = batch * kv_heads * split.tiles * parts * (1.0 / device.num_sms)
    chain = _chain(x, tile, split, c)
    searched = waves * c["wide_part_s"] * (1.0 + batch * kv_heads / WIDE_CROWD)
    even = np.where(_all_parts(x, tile), searched, waves * chain)
    num_bytes = batch * (2.0 * heads + 2.0 * keys * kv_heads) * head_dim * device.element_bytes
    memory = num_bytes / (device.bytes_per_s * c["bandwidth_share"])
    merged_rows = batch * heads * parts * head_dim / (128.0 * device.num_sms)
    merge = (c["merge_s"] + c["merge_part_s"] * parts + c["merge_row_s"] * merged_rows) * (parts > 1.0)
    work = overlapped([memory, np.maximum(even, chain)], c["exposed_share"]) + merge
    launch = c["launch_s"] * (tile.width / 128.0) ** c["launch_power"] + c["window_s"] * (keys < context)
    sequences = batch * (c["sequence_s"] + c["dynamic_sequence_s"] * (batch <= DYNAMIC_BATCH))
    floor = np.maximum(4.0 * batch * heads * head_dim * keys / device.flop_per_s, num_bytes / device.bytes_per_s)
    times = [log2(memory / even), log2(work / launch), log2(num_bytes), log2(even)]
    return Physics(
        launch + work + sequences, floor, np.stack([*times, *_features(x, tile, split, keys, waves)], axis=1)
    )


def _features(x: Array, tile: Tile, split: _Parts, keys: Array, waves: Array) -> list[Array]:
    batch, context, heads, kv_heads = (x[:, i] for i in range(4))
    group, parts = heads / kv_heads, split.parts
    return [
        log2(batch * kv_heads * split.tiles * parts), log2(keys), log2(batch), log2(kv_heads), log2(group),
        log2(x[:, 4]), log2(parts), log2(split.touched), log2(split.part_blocks), waves / np.ceil(waves),
        np.minimum(waves, 4.0), (batch <= DYNAMIC_BATCH) * 1.0, log2(np.minimum(keys, 512.0)),
        (keys < context) * 1.0, log2(split.blocks), (group == 1.0) * 1.0, log2(split.tiles), (parts > 1.0) * 1.0,
        log2(batch * kv_heads), split.part_blocks * parts / split.touched, keys / (split.touched * tile.block),
        (tile.width >= WIDE) * 1.0,
    ]  # fmt: skip
