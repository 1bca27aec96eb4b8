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

from simulator.physics import Array, Coefficients, Device, Physics, ceil_div, log2, soft_max

BLOCK_K = 64.0  # keys a step of the inner loop
DECODE_ROWS = 64.0  # query heads that share one KV head and fit one decode CTA
SPLIT_MIN_KEYS = 256.0  # a split of the keys is never shorter

PREFILL_START: Mapping[str, float] = {
    "launch_s": 9e-6,
    "efficiency": 0.6,
    "lone_cta_speedup": 1.5,
    "cta_s": 1.5e-6,
    "tail_share": 0.3,
    "bandwidth_share": 0.7,
    "sharpness": 3.0,
}
DECODE_START: Mapping[str, float] = {
    "launch_s": 1e-5,
    "bandwidth_share": 0.75,
    "cta_s": 3e-6,
    "key_s": 2e-8,
    "merge_s": 5e-6,
    "sharpness": 3.0,
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


def prefill(x: Array, c: Coefficients, device: Device) -> Physics:
    """Makespan of the CTAs on the SMs: total work spread evenly, or the longest CTA, plus launch and traffic."""
    batch, seq_q, seq_kv, heads, kv_heads, head_dim = (x[:, i] for i in range(6))
    tile_q = c["tile_q"]
    tiles, keys, longest = walked_keys(x, tile_q)
    ctas = batch * heads * tiles
    sm_flop_per_s = device.flop_per_s / device.num_sms * c["efficiency"]
    key_s = 4.0 * tile_q * head_dim / sm_flop_per_s
    even = (batch * heads * keys * key_s + ctas * c["cta_s"]) / device.num_sms
    alone = longest * key_s / c["lone_cta_speedup"] + c["cta_s"]
    read_keys = np.where(x[:, 7] > 0.0, np.minimum(seq_kv, x[:, 7] + seq_q), seq_kv)
    num_bytes = batch * (2.0 * seq_q * heads + 2.0 * read_keys * kv_heads) * head_dim * device.element_bytes
    memory = num_bytes / (device.bytes_per_s * c["bandwidth_share"])
    tail = c["tail_share"] * alone * np.minimum(1.0, even / alone)
    work = soft_max([even, alone, memory], c["sharpness"]) + tail
    base = c["launch_s"] + work
    flops = 4.0 * batch * heads * head_dim * attended_pairs(x)
    floor = np.maximum(flops / device.flop_per_s, num_bytes / device.bytes_per_s)
    mean_keys = keys / tiles
    waves = ctas / device.num_sms
    features = [
        log2(ctas), log2(mean_keys), log2(even / alone), log2(memory / even), log2(work / c["launch_s"]),
        log2(heads / kv_heads), log2(batch * kv_heads), log2(heads), log2(head_dim),
        waves / np.ceil(waves), np.minimum(waves, 4.0), log2(np.minimum(seq_q, 256.0)), (seq_q == 1.0) * 1.0,
        np.minimum(seq_q / tile_q, 8.0), log2(flops / (4.0 * batch * heads * head_dim * keys * tile_q)),
        log2(num_bytes),
    ]  # fmt: skip
    return Physics(base, floor, np.stack(features, axis=1))


def decode(x: Array, c: Coefficients, device: Device) -> Physics:
    """KV bytes over bandwidth, a cost a CTA, the chain of keys one CTA walks, and the merge of splits."""
    batch, context, heads, kv_heads, head_dim, window = (x[:, i] for i in range(6))
    keys = np.where(window > 0.0, np.minimum(window, context), context)
    group = heads / kv_heads
    ctas = batch * kv_heads * ceil_div(group, DECODE_ROWS)
    room = np.maximum(1.0, np.floor(device.num_sms / ctas))
    parts = np.clip(room, 1.0, np.maximum(1.0, np.floor(keys / SPLIT_MIN_KEYS)))
    parts = np.where((group > 1.0) | (c["splits_single_heads"] > 0.0), parts, 1.0)
    num_bytes = batch * (2.0 * heads + 2.0 * keys * kv_heads) * head_dim * device.element_bytes
    memory = num_bytes / (device.bytes_per_s * c["bandwidth_share"])
    waves = ctas * parts / device.num_sms
    chain = keys / parts * c["key_s"] * head_dim / 128.0
    issue = waves * c["cta_s"]
    work = soft_max([memory, chain, issue], c["sharpness"]) + c["merge_s"] * (parts > 1.0)
    base = c["launch_s"] + work
    flops = 4.0 * batch * heads * head_dim * keys
    floor = np.maximum(flops / device.flop_per_s, num_bytes / device.bytes_per_s)
    features = [
        log2(ctas), log2(keys), log2(batch), log2(kv_heads), log2(group), log2(head_dim), log2(parts),
        log2(memory / chain), log2(memory / issue), log2(work / c["launch_s"]), log2(num_bytes),
        np.minimum(ceil_div(ctas, device.num_sms), 16.0), waves / np.ceil(waves), np.minimum(waves, 4.0),
        (group == 1.0) * 1.0, log2(np.minimum(keys, 512.0)),
    ]  # fmt: skip
    return Physics(base, floor, np.stack(features, axis=1))
