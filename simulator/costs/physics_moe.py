"""Physical model of routed experts: which weights are read, how full the grouped tiles are, who is hottest.

A grouped GEMM reads the weights of every expert that got a row and pads each expert's rows to whole tiles.
Under expert parallelism the timed GPU is the busiest one. ``power_law_A`` is AIConfigurator's generator:
expert loads drawn with density x^-A on [1, 0.8·tokens] (on [0.01, 2] when there are fewer rows than experts)
and scaled to tokens·topk rows; here its quantiles stand in for the draws, shuffled once by a fixed seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulator.costs.physics import Array, Coefficients, Device, Physics, ceil_div, log2, overlapped

MOE_START: Mapping[str, float] = {
    "launch_s": 4e-5,
    "efficiency": 0.4,
    "bandwidth_share": 0.8,
    "tile_s": 1e-6,
    "row_passes": 1.0,
    "exposed_share": 0.2,
}
TILE_ROWS = (16.0, 64.0, 128.0)
SHUFFLE_SEED, NUM_SHUFFLES = 7, 8


def _quantile_loads(tokens: float, topk: float, experts: int, alpha: float) -> Array:
    """Rows an expert gets: the (e+½)/E quantiles of x^-alpha on [low, high], scaled to tokens·topk."""
    low, high = (1.0, max(0.8 * tokens, 1.0 + 1e-9)) if tokens * topk > experts else (0.01, 2.0)
    u = (np.arange(experts) + 0.5) / experts
    power = 1.0 - alpha
    loads = (low**power + u * (high**power - low**power)) ** (1.0 / power)
    return np.asarray(np.minimum(loads * (tokens * topk / loads.sum()), tokens))


def _hot_rank(tokens: float, topk: float, experts: int, ep: int, alpha: float) -> tuple[float, ...]:
    """(rows, experts touched, largest load, padded rows for each of TILE_ROWS) on the busiest rank.

    Skewed: the mean over NUM_SHUFFLES random assignments of the loads to ranks. Balanced: every rank alike.
    """
    ep = min(ep, experts)  # a rank without an expert has nothing to time
    local = experts // ep
    if alpha == 0.0:
        rows = tokens * topk / ep
        touched = max(1.0, min(local, np.ceil(rows)))
        each = rows / touched
        return rows, touched, each, *(float(np.ceil(each / tile) * tile * touched) for tile in TILE_ROWS)
    loads = _quantile_loads(tokens, topk, experts, alpha)
    rng = np.random.default_rng(SHUFFLE_SEED)
    shuffled = rng.permuted(np.tile(loads, (NUM_SHUFFLES, 1)), axis=1)[:, : local * ep]
    groups = shuffled.reshape(NUM_SHUFFLES, ep, local)
    hot = groups[np.arange(NUM_SHUFFLES), groups.sum(axis=2).argmax(axis=1)]
    likely = np.clip(hot, 0.0, 1.0)
    padded = [float((np.ceil(hot / tile) * tile * likely).sum(axis=1).mean()) for tile in TILE_ROWS]
    touched = max(float(likely.sum(axis=1).mean()), 1.0)
    return float(hot.sum(axis=1).mean()), touched, float(hot.max(axis=1).mean()), *padded


def routing(x: Array) -> Array:
    """[rows, 6] of ``_hot_rank``; each distinct routing problem is solved once."""
    keys = x[:, (0, 3, 4, 6, 7)]
    code = keys @ np.array([1.0, 1e8, 1e10, 1e13, 1e16])
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    solved = [_hot_rank(t, k, int(e), int(ep), a) for t, k, e, ep, a in keys[first].tolist()]
    return np.array(solved)[inverse.reshape(-1)].reshape(len(x), 3 + len(TILE_ROWS))


def moe(x: Array, c: Coefficients, device: Device) -> Physics:
    """Touched weights over bandwidth against padded rows over the tensor cores; then the rows' own traffic.

    The rows' buffers hold all tokens·topk pairs of the group, also those another rank computes.
    """
    tokens, hidden, inter, topk, experts, tp, ep, alpha, gated = (x[:, i] for i in range(9))
    rows, touched, largest, padded16, padded64, padded128 = routing(x).T
    width = inter / tp
    matrices = np.where(gated > 0.0, 3.0, 2.0)
    weights = matrices * touched * hidden * width * device.element_bytes
    pairs = tokens * topk
    activations = pairs * (2.0 * hidden + matrices * width) * device.element_bytes
    bandwidth = device.bytes_per_s * c["bandwidth_share"]
    fill = np.clip(rows / touched, 1.0, 128.0)
    padded = np.where(fill <= 16.0, padded16, np.where(fill <= 64.0, padded64, padded128))
    compute = 2.0 * matrices * padded * hidden * width / (device.flop_per_s * c["efficiency"])
    tiles = ceil_div(padded, np.maximum(fill, 16.0)) * (ceil_div(2.0 * width, 128.0) + ceil_div(hidden, 128.0))
    issue = ceil_div(tiles, device.num_sms) * c["tile_s"]
    memory = weights / bandwidth
    traffic = c["row_passes"] * activations / bandwidth
    work = overlapped([memory, compute, issue], c["exposed_share"]) + traffic
    base = c["launch_s"] + work
    one_expert = matrices * np.minimum(experts / ep, 1.0) * hidden * width * device.element_bytes
    shared_flops = 2.0 * matrices * (pairs / ep) * hidden * width
    floor = np.maximum(shared_flops / device.flop_per_s, one_expert / device.bytes_per_s)
    per_expert = pairs / experts
    features = [
        log2(tokens), log2(hidden), log2(width), log2(topk), log2(experts), log2(ep), alpha,
        log2(rows), log2(touched), log2(largest), log2(fill), log2(padded / rows), log2(memory / compute),
        log2(work / c["launch_s"]), log2(tiles), log2(weights), log2(experts / ep), log2(per_expert),
        log2(inter), log2(rows * ep / pairs), (pairs > experts) * 1.0, (tokens > experts) * 1.0,
        log2(traffic / work), log2(compute / c["launch_s"]), ceil_div(tiles, device.num_sms) * device.num_sms / tiles,
    ]  # fmt: skip
    return Physics(base, floor, np.stack(features, axis=1))
