"""FlashAttention-3's tiles and splits: what its launch code and scheduler decide before a kernel of Hopper's runs.

A query tile holds 192 or 128 rows by head width, the heads of a group packed into it, or 64 rows where all rows of a
group are so few and the width has such a kernel. Parts along the keys are chosen for each step (an upper bound as if
one sequence were alone, then the parts that fill the SMs).
Source: flash-attention, hopper/{tile_size,heuristics,flash_prepare_scheduler}.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from simulator.costs.physics import Array

Mask = npt.NDArray[np.bool_]

WIDTHS = np.array([64.0, 96.0, 128.0, 192.0, 256.0, 512.0])  # head widths a kernel exists for; others are padded
TILE_ROWS = np.array([192.0, 192.0, 128.0, 128.0, 128.0, 64.0])
BLOCK_KEYS = np.array([128.0, 128.0, 128.0, 96.0, 80.0, 64.0])  # causal or paged
BLOCK_KEYS_WINDOWED = np.array([128.0, 128.0, 128.0, 96.0, 64.0, 64.0])
BLOCK_KEYS_UNMASKED = np.array([192.0, 144.0, 176.0, 112.0, 80.0, 64.0])
SMALL_ROWS = 64.0  # one warp group's tile
SMALL_WIDTHS = (64.0, 128.0)  # that have it
WIDE = 512.0  # heads so wide run FlashAttention-4's kernel
DYNAMIC_BATCH = 992.0  # sequences up to which the scheduler kernel chooses splits
FILL_ENOUGH, FILL_TARGET = 0.8, 0.85  # of the SMs, and of the best filling there is
UNSPLIT_BLOCKS, MAX_SPLITS = 4, 128
SCHEDULER_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of a query tile, padded head width, keys of a block, and whether it is the one of SMALL_ROWS."""

    rows: Array
    width: Array
    block: Array
    small: Mask


def prefill_tile(head_dim: Array, group_rows: Array, unmasked: Mask, windowed: Mask) -> Tile:
    """[n] each; ``group_rows`` are queries times query heads a KV head."""
    at = np.minimum(np.searchsorted(WIDTHS, head_dim), len(WIDTHS) - 1)
    width = np.maximum(WIDTHS[at], head_dim)
    small = np.isin(width, SMALL_WIDTHS) & (group_rows <= SMALL_ROWS)
    masked = np.where(windowed, BLOCK_KEYS_WINDOWED[at], BLOCK_KEYS[at])
    block = np.where(unmasked, BLOCK_KEYS_UNMASKED[at], masked)
    return Tile(np.where(small, SMALL_ROWS, TILE_ROWS[at]), width, block, small)


def decode_tile(head_dim: Array) -> Tile:
    """One query a sequence: every group fits a tile, whose rows therefore cost nothing of their own."""
    at = np.minimum(np.searchsorted(WIDTHS, head_dim), len(WIDTHS) - 1)
    width = np.maximum(WIDTHS[at], head_dim)
    return Tile(TILE_ROWS[at], width, BLOCK_KEYS_WINDOWED[at], np.isin(width, SMALL_WIDTHS))


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
