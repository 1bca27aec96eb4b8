"""Physical model of routed experts: which weights are read, how full the grouped tiles are, who is hottest.

A grouped GEMM reads the weights of every expert that got a row and pads each expert's rows to whole tiles.
Under expert parallelism the timed GPU is the busiest one. ``power_law_A`` is AIConfigurator's generator:
expert loads drawn with density x^-A on [1, 0.8·tokens] (on [0.01, 2] when there are fewer rows than experts)
and scaled to tokens·topk rows; here its quantiles stand in for the draws, shuffled once by a fixed seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulator.physics import Array, Coefficients, Device, Physics, ceil_div, log2, soft_max

MOE_START: Mapping[str, float] = {
    "launch_s": 2e-5,
    "efficiency": 0.4,
    "bandwidth_share": 0.8,
    "tile_s": 1e-6,
    "row_share": 0.5,
    "sharpness": 3.0,
}
TILE_ROWS = (16.0, 64.0, 128.0)
SHUFFLE_SEED = 7


def _quantile_loads(tokens: float, topk: float, experts: int, alpha: float) -> Array:
    """Rows an expert gets: the (e+½)/E quantiles of x^-alpha on [low, high], scaled to tokens·topk."""
    if alpha == 0.0:
        return np.full(experts, tokens * topk / experts)
    low, high = (1.0, max(0.8 * tokens, 1.0 + 1e-9)) if tokens * topk > experts else (0.01, 2.0)
    u = (np.arange(experts) + 0.5) / experts
    power = 1.0 - alpha
    loads = (low**power + u * (high**power - low**power)) ** (1.0 / power)
    shuffled = np.random.default_rng(SHUFFLE_SEED).permutation(loads)
    return np.asarray(shuffled * (tokens * topk / shuffled.sum()))


def _hot_rank(tokens: float, topk: float, experts: int, ep: int, alpha: float) -> tuple[float, ...]:
    """(rows, experts touched, largest load, padded rows for each of TILE_ROWS) on the busiest rank."""
    loads = _quantile_loads(tokens, topk, experts, alpha)
    ep = min(ep, experts)  # a rank without an expert has nothing to time
    local = experts // ep
    groups = loads[: local * ep].reshape(ep, local)
    hot = groups[int(np.argmax(groups.sum(axis=1)))]
    likely = 1.0 - np.exp(-hot) if alpha == 0.0 else np.clip(hot, 0.0, 1.0)
    touched = max(float(likely.sum()), 1.0)
    if alpha == 0.0:
        touched = max(1.0, min(local, np.ceil(tokens * topk / ep)))
    padded = [float((np.ceil(hot / rows) * rows * likely).sum()) for rows in TILE_ROWS]
    return float(hot.sum()), touched, float(hot.max()), *padded


def routing(x: Array) -> Array:
    """[rows, 6] of ``_hot_rank``; each distinct routing problem is solved once."""
    keys = x[:, (0, 3, 4, 6, 7)]
    code = keys @ np.array([1.0, 1e8, 1e10, 1e13, 1e16])
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    solved = [_hot_rank(t, k, int(e), int(ep), a) for t, k, e, ep, a in keys[first].tolist()]
    return np.array(solved)[inverse.reshape(-1)].reshape(len(x), 3 + len(TILE_ROWS))


def moe(x: Array, c: Coefficients, device: Device) -> Physics:
    """Touched weights over bandwidth against padded rows over the tensor cores; plus the rows' own traffic."""
    tokens, hidden, inter, topk, experts, tp, ep, alpha, gated = (x[:, i] for i in range(9))
    rows, touched, largest, padded16, padded64, padded128 = routing(x).T
    width = inter / tp
    matrices = np.where(gated > 0.0, 3.0, 2.0)
    weights = matrices * touched * hidden * width * device.element_bytes
    activations = rows * (2.0 * hidden + matrices * width) * device.element_bytes + tokens * hidden * 2.0
    bandwidth = device.bytes_per_s * c["bandwidth_share"]
    fill = np.clip(rows / touched, 1.0, 128.0)
    padded = np.where(fill <= 16.0, padded16, np.where(fill <= 64.0, padded64, padded128))
    compute = 2.0 * matrices * padded * hidden * width / (device.flop_per_s * c["efficiency"])
    tiles = ceil_div(padded, np.maximum(fill, 16.0)) * (
        ceil_div(2.0 * width, 128.0) + ceil_div(hidden, 128.0)
    )
    issue = ceil_div(tiles, device.num_sms) * c["tile_s"]
    memory = weights / bandwidth
    work = soft_max([memory, compute, issue], c["sharpness"]) + c["row_share"] * activations / bandwidth
    base = c["launch_s"] + work
    ideal_rows = ceil_div(tokens * topk, ep)
    ideal_weights = matrices * np.minimum(experts / ep, 1.0) * hidden * width * device.element_bytes
    ideal_flops = 2.0 * matrices * np.where(alpha > 0.0, 0.0, ideal_rows) * hidden * width
    floor = np.maximum(ideal_flops / device.flop_per_s, ideal_weights / device.bytes_per_s)
    features = [
        log2(tokens), log2(hidden), log2(width), log2(topk), log2(experts), log2(ep), alpha,
        log2(rows), log2(touched), log2(largest), log2(fill), log2(padded / rows), log2(memory / compute),
        log2(work / c["launch_s"]), log2(tiles), log2(weights), log2(experts / ep), log2(tokens * topk / experts),
        log2(inter), log2(rows * ep / (tokens * topk)), (tokens * topk > experts) * 1.0,
    ]  # fmt: skip
    return Physics(base, floor, np.stack(features, axis=1))
