"""Physical models of the attention kernels: prefill (any rectangle, causal or windowed) and decode.

Prefill is flash attention: a CTA owns ``tile_q`` queries of one head and walks the keys they may see in
blocks of ``BLOCK_K``. So what counts is the number of CTAs, the blocks each walks (a causal CTA late in the
sequence walks more), and the longest one, which bounds the makespan. A rectangle (``seq_q < seq_kv``) only
changes how many blocks each CTA walks, which is why the residual's features are those counts and not lengths.
Decode reads the KV cache once; few CTAs are split along the keys and merged by a second small kernel.
Sources: FlashAttention-2 (Dao 2023, section 3), Flash-Decoding (Dao et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulator.costs.physics import Array, Coefficients, Device, Physics, ceil_div, log2, overlapped

BLOCK_K = 64.0  # keys a step of the inner loop
DECODE_ROWS = 64.0  # query heads that share one KV head and fit one decode CTA
PREFILL_SPLIT_KEYS = 256.0  # a part of a split prefill is never shorter
FILL_TARGET, FILL_ENOUGH, MAX_SPLITS = 0.85, 0.8, 128.0  # flash attention's num_splits heuristic

PREFILL_START: Mapping[str, float] = {
    "launch_s": 9e-6,
    "efficiency": 0.6,
    "lone_cta_speedup": 1.5,
    "cta_s": 1.5e-6,
    "tail_share": 0.3,
    "query_bandwidth_share": 0.5,
    "cache_bandwidth_share": 0.3,
    "merge_s": 3e-6,
    "exposed_share": 0.2,
}
DECODE_START: Mapping[str, float] = {
    "launch_s": 1e-5,
    "bandwidth_share": 0.75,
    "cta_s": 3e-6,
    "key_s": 2e-8,
    "merge_s": 3e-6,
    "merge_part_s": 1e-7,
    "single_launch_s": 1e-5,
    "exposed_share": 0.2,
}


def _ramp_sum(count: Array, first: Array, step: float) -> Array:
    """Σ_{i<count} max(0, first + i·step): an arithmetic series from the first positive term on."""
    skipped = np.clip(np.ceil(-first / step), 0.0, count)
    terms = count - skipped
    return np.asarray(terms * (first + skipped * step) + step * terms * (terms - 1.0) / 2.0)


def walked_keys(x: Array, tile_q: float) -> tuple[Array, Array, Array]:
    """(query tiles, keys all tiles of one head walk together, keys the longest tile walks), whole blocks.

    Tile i ends at key past + (i+1)·tile_q (causal), never beyond seq_kv, and starts at the block that holds
    the oldest key its first query's window keeps; half a block is the mean cost of rounding either end.
    """
    seq_q, seq_kv, causal, window = x[:, 1], x[:, 2], x[:, 6], x[:, 7]
    tiles = ceil_div(seq_q, tile_q)
    past = seq_kv - seq_q
    full = ceil_div(seq_kv, BLOCK_K) * BLOCK_K
    rounding = BLOCK_K * np.ceil(tile_q / BLOCK_K) / tile_q
    causal_sum = _ramp_sum(tiles, past + tile_q, tile_q) - _ramp_sum(tiles, past + tile_q - seq_kv, tile_q)
    causal_sum = np.minimum(np.where(tiles == 1.0, full, causal_sum * rounding), tiles * full)
    kept = np.where(window > 0.0, window, np.inf)
    longest = np.minimum(full, ceil_div(np.minimum(kept, seq_kv) + tile_q, BLOCK_K) * BLOCK_K)
    behind = _ramp_sum(tiles, np.where(window > 0.0, past - window, -1e18), tile_q)
    total = np.where(causal > 0.0, causal_sum, tiles * full)
    total = np.where(window > 0.0, np.minimum(total, np.maximum(total - behind, tiles * BLOCK_K)), total)
    return tiles, total, np.where(window > 0.0, longest, full)


def attended_pairs(x: Array) -> Array:
    """Scored (query, key) pairs a head and sequence; as :func:`simulator.kernel.attended_pairs`, on arrays."""
    seq_q, seq_kv, causal = x[:, 1], x[:, 2], x[:, 6]
    window = np.where(x[:, 7] > 0.0, np.minimum(x[:, 7], seq_kv), seq_kv)
    past = seq_kv - seq_q
    growing = np.clip(window - past, 0.0, seq_q)
    rows = growing * past + growing * (growing + 1.0) / 2.0 + (seq_q - growing) * window
    return np.asarray(np.where(causal > 0.0, rows, seq_q * window))


def key_splits(ctas: Array, keys: Array, num_sms: int, split_keys: float) -> Array:
    """Parts along the keys: the fewest that fill the SMs to 85 %, as flash attention's heuristic does.

    None when the CTAs alone fill 80 % of the SMs, or when a part would be shorter than ``split_keys``.
    """
    fewest = np.ceil(FILL_TARGET * num_sms / ctas)
    chosen = fewest + 2.0
    for extra in (1.0, 0.0):
        waves = ctas * (fewest + extra) / num_sms
        chosen = np.where(waves / np.ceil(waves) >= FILL_TARGET, fewest + extra, chosen)
    most = np.maximum(1.0, np.floor(keys / split_keys))
    return np.where(ctas >= FILL_ENOUGH * num_sms, 1.0, np.clip(chosen, 1.0, np.minimum(most, MAX_SPLITS)))


def _head_tiles(x: Array, c: Coefficients) -> tuple[Array, Array]:
    """(CTAs, query rows of one CTA's tile that are real): heads of a group share a tile when that wastes less.

    ``packs_groups`` 0: only a single query is packed (FlashAttention-2); 1: whenever tiles fill better (3).
    """
    batch, seq_q, heads, kv_heads = x[:, 0], x[:, 1], x[:, 3], x[:, 4]
    tile_q, group = c["tile_q"], heads / kv_heads
    plain = ceil_div(seq_q, tile_q)
    packed = ceil_div(seq_q * group, tile_q)
    better = packed < 0.9 * plain * group
    pack = better & ((seq_q == 1.0) | (c["packs_groups"] > 0.0))
    return np.where(pack, batch * kv_heads * packed, batch * heads * plain), pack * 1.0


def prefill(x: Array, c: Coefficients, device: Device) -> Physics:
    """Makespan of the CTAs (work spread evenly, or the longest CTA), then queries, outputs and new keys moved.

    New keys and values are also written to the KV cache by a kernel of its own, so their bytes do not overlap
    with the scores; a prefix is only read, at the device's bandwidth, and does.
    """
    batch, seq_q, seq_kv, heads, kv_heads, head_dim = (x[:, i] for i in range(6))
    tile_q = c["tile_q"]
    tiles, keys, longest = walked_keys(x, tile_q)
    mean_keys = keys / tiles
    ctas, packed = _head_tiles(x, c)
    parts = np.where(c["splits_prefill"] > 0.0, key_splits(ctas, mean_keys, device.num_sms, PREFILL_SPLIT_KEYS), 1.0)
    sm_flop_per_s = device.flop_per_s / device.num_sms * c["efficiency"]
    key_s = 4.0 * tile_q * head_dim / sm_flop_per_s
    even = ctas * (mean_keys * key_s + c["cta_s"]) / device.num_sms
    alone = longest / parts * key_s / c["lone_cta_speedup"] + c["cta_s"]
    read_keys = np.where(x[:, 7] > 0.0, np.minimum(seq_kv, x[:, 7] + seq_q), seq_kv)
    row_bytes = batch * head_dim * device.element_bytes
    prefix = 2.0 * np.maximum(read_keys - seq_q, 0.0) * kv_heads * row_bytes / device.bytes_per_s
    moved = 2.0 * seq_q * row_bytes / device.bytes_per_s
    traffic = moved * heads / c["query_bandwidth_share"] + moved * kv_heads / c["cache_bandwidth_share"]
    tail = c["tail_share"] * alone * np.minimum(1.0, even / alone) + c["merge_s"] * (parts > 1.0)
    work = overlapped([even, alone, prefix], c["exposed_share"]) + tail + traffic
    base = c["launch_s"] + work
    flops = 4.0 * batch * heads * head_dim * attended_pairs(x)
    num_bytes = (2.0 * seq_q * heads + 2.0 * read_keys * kv_heads) * row_bytes
    floor = np.maximum(flops / device.flop_per_s, num_bytes / device.bytes_per_s)
    waves = ctas * parts / device.num_sms
    windowed = (x[:, 7] > 0.0) & (x[:, 7] < seq_kv)
    features = [
        log2(ctas), log2(mean_keys), log2(even / alone), log2(traffic / even), log2(work / c["launch_s"]),
        log2(heads / kv_heads), log2(batch * kv_heads), log2(heads), log2(head_dim), log2(parts),
        waves / np.ceil(waves), waves / 2.0 / np.ceil(waves / 2.0), np.minimum(waves, 4.0),
        log2(np.minimum(seq_q, 256.0)), (seq_q == 1.0) * 1.0,
        np.minimum(seq_q / tile_q, 8.0), log2(flops / (4.0 * head_dim * ctas * mean_keys * tile_q)),
        log2(num_bytes), windowed * 1.0, x[:, 6], packed,
    ]  # fmt: skip
    return Physics(base, floor, np.stack(features, axis=1))


def decode(x: Array, c: Coefficients, device: Device) -> Physics:
    """KV bytes over bandwidth, a cost a CTA, the chain of keys one CTA walks, and the merge of splits."""
    batch, context, heads, kv_heads, head_dim, window = (x[:, i] for i in range(6))
    keys = np.where(window > 0.0, np.minimum(window, context), context)
    group = heads / kv_heads
    single = group == 1.0
    ctas = batch * kv_heads * ceil_div(group, DECODE_ROWS)
    parts = key_splits(ctas, keys, device.num_sms, c["split_keys"])
    parts = np.where(~single | (c["splits_single_heads"] > 0.0), parts, 1.0)
    num_bytes = batch * (2.0 * heads + 2.0 * keys * kv_heads) * head_dim * device.element_bytes
    memory = num_bytes / (device.bytes_per_s * c["bandwidth_share"])
    waves = ctas * parts / device.num_sms
    chain = keys / parts * c["key_s"] * head_dim / 128.0
    issue = waves * c["cta_s"]
    merge = (c["merge_s"] + c["merge_part_s"] * parts) * (parts > 1.0)
    work = overlapped([memory, chain, issue], c["exposed_share"]) + merge
    base = np.where(single, c["single_launch_s"], c["launch_s"]) + work
    flops = 4.0 * batch * heads * head_dim * keys
    floor = np.maximum(flops / device.flop_per_s, num_bytes / device.bytes_per_s)
    features = [
        log2(ctas), log2(keys), log2(batch), log2(kv_heads), log2(group), log2(head_dim), log2(parts),
        log2(memory / chain), log2(memory / issue), log2(work / c["launch_s"]), log2(num_bytes),
        np.minimum(ceil_div(ctas, device.num_sms), 16.0), waves / np.ceil(waves), np.minimum(waves, 4.0),
        waves / 2.0 / np.ceil(waves / 2.0),
        single * 1.0, log2(np.minimum(keys, 512.0)), (keys < context) * 1.0,
    ]  # fmt: skip
    return Physics(base, floor, np.stack(features, axis=1))
