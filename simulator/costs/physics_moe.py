"""Physical model of routed experts: which weights are read, how full the grouped tiles are, who is hottest.

A grouped GEMM reads the weights of every expert that got a row, once for each ``PASS_ROWS`` rows, and pads each
expert's rows to whole tiles. One wave of tiles takes at least the depth of both matrices, step by step. A width that
is no multiple of ``ALIGNED`` elements cannot be loaded in vectors. vLLM's Triton kernel without a tuned file has two
tiles: 16 rows up to as many tokens as experts on the rank, 64 beyond (``fixed_tiles`` 1); for a few shapes it ships
a tuned file, whose tiles grow from 16 to 128 rows with the tokens (``fixed_tiles`` 2, :mod:`.tuned_tiles`). Otherwise
tiles fit the rows.

Under expert parallelism the timed GPU is the busiest one. ``power_law_A`` is AIConfigurator's generator:
expert loads drawn with density x^-A on [1, 0.8·tokens] (on [0.01, 2] when there are fewer rows than experts),
scaled to tokens·topk rows and rounded; here its quantiles stand in for the draws, shuffled by a fixed seed. Rows that
rounding leaves over went to the least loaded experts: in order in older tables, so to one rank, and rank after rank in
newer ones (``spreads_rows``).
Sources: vllm, fused_moe.py:get_default_config; aiconfigurator, collector/helper.py:_generate_power_law_distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from simulator.costs import tuned_tiles
from simulator.costs.physics import Array, Coefficients, Device, Physics, ceil_div, log2, overlapped

MOE_START: Mapping[str, float] = {
    "launch_s": 4e-5,
    "efficiency": 0.4,
    "bandwidth_share": 0.8,
    "tile_s": 1e-6,
    "row_passes": 1.0,
    "exposed_share": 0.2,
    "step_s": 3e-7,
    "reread_share": 0.5,
    "misaligned_share": 0.5,
    "throttle_share": 0.1,
    "throttle_after_s": 1e-3,
}
TUNED_START: Mapping[str, float] = {"tuned_gain": 1.3}
TUNED_FILES = 2.0  # of ``fixed_tiles``: with the files of simulator/costs/tuned_tiles.py
PASS_ROWS = 512.0  # rows that share one reading of an expert's weights: eight tiles of 64 are scheduled side by side
TILE_ROWS = (16.0, 64.0, 128.0, PASS_ROWS, 32.0)
STEP_DEPTH, SMALL_STEP_DEPTH = 32.0, 64.0  # elements of K a step of the inner loop, tiles of 64 and of 16 rows
ALIGNED = 16.0
SHUFFLE_SEED, NUM_SHUFFLES = 7, 8
MOST_PROBLEMS = 1 << 16  # routing problems remembered


def _quantile_loads(tokens: float, topk: float, experts: int, alpha: float) -> Array:
    """Rows an expert gets: the (e+½)/E quantiles of x^-alpha on [low, high], scaled to tokens·topk."""
    low, high = (1.0, max(0.8 * tokens, 1.0 + 1e-9)) if tokens * topk > experts else (0.01, 2.0)
    u = (np.arange(experts) + 0.5) / experts
    power = 1.0 - alpha
    loads = (low**power + u * (high**power - low**power)) ** (1.0 / power)
    return np.asarray(np.minimum(loads * (tokens * topk / loads.sum()), tokens))


def drawn_loads(tokens: float, topk: float, experts: int, ep: int, alpha: float, *, spread: bool) -> Array:
    """[NUM_SHUFFLES, ranks, experts a rank] whole rows that add up to tokens·topk, as the module's text says."""
    rng = np.random.default_rng(SHUFFLE_SEED)
    loads = np.rint(rng.permuted(np.tile(_quantile_loads(tokens, topk, experts, alpha), (NUM_SHUFFLES, 1)), axis=1))
    local = experts // ep
    ranks = ep if spread else 1
    groups = loads[:, : local * ep].reshape(NUM_SHUFFLES, ranks, -1)
    left = tokens * topk - groups.sum(axis=(1, 2))
    share = np.abs(left)[:, None] // ranks + (np.arange(ranks) < np.abs(left)[:, None] % ranks)
    sign = np.where(left < 0.0, -1.0, 1.0)[:, None, None]
    return np.asarray(np.maximum(sign * filled(sign * groups, share), 0.0).reshape(NUM_SHUFFLES, ep, local))


def filled(values: Array, num: Array) -> Array:
    """``values`` [..., n] after the lowest of each row (the first of those alike) was raised by one ``num`` times:
    the lowest ``reached`` of them stand at one level, and the first few of these one above it."""
    ordered = np.sort(values, axis=-1)
    sums = np.cumsum(ordered, axis=-1)
    reached = (np.arange(values.shape[-1]) * ordered - (sums - ordered) <= num[..., None]).sum(axis=-1)
    total = num + np.take_along_axis(sums, reached[..., None] - 1, -1)[..., 0]
    level = np.floor(total / reached)
    raised = np.maximum(values, level[..., None])
    stand = raised == level[..., None]
    return np.asarray(raised + (stand & (stand.cumsum(axis=-1) <= (total - reached * level)[..., None])))


@lru_cache(maxsize=MOST_PROBLEMS)
def _hot_rank(tokens: float, topk: float, experts: int, ep: int, alpha: float, spread: bool) -> tuple[float, ...]:
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
    groups = drawn_loads(tokens, topk, experts, ep, alpha, spread=spread)
    hot = groups[np.arange(NUM_SHUFFLES), groups.sum(axis=2).argmax(axis=1)]
    padded = [float((np.ceil(hot / tile) * tile).sum(axis=1).mean()) for tile in TILE_ROWS]
    touched = max(float((hot > 0.0).sum(axis=1).mean()), 1.0)
    return float(hot.sum(axis=1).mean()), touched, float(hot.max(axis=1).mean()), *padded


def routing(x: Array, *, spread: bool = False) -> Array:
    """[rows, 3 + len(TILE_ROWS)] of ``_hot_rank``; each distinct routing problem is solved once."""
    _, kind = np.unique(x[:, 3] + 1e4 * x[:, 4] + 1e8 * x[:, 6], return_inverse=True)
    skews, skew = np.unique(x[:, 7], return_inverse=True)
    code = x[:, 0] + 1e9 * (kind.reshape(-1) * len(skews) + skew.reshape(-1))  # exact: below 2^53 up to 9 million kinds
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    solved = [_hot_rank(t, k, int(e), int(ep), a, spread) for t, k, e, ep, a in x[first][:, (0, 3, 4, 6, 7)].tolist()]
    return np.array(solved)[inverse.reshape(-1)].reshape(len(x), 3 + len(TILE_ROWS))


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Rows padded to whole tiles, tiles of both matrices, steps along K of one of each, and whether tuned."""

    rows: Array
    tiles: Array
    steps: Array
    tuned: npt.NDArray[np.bool_]


def _tiling(x: Array, routed: list[Array], width: Array, kind: float) -> _Tiling:
    """``routed``: columns of :func:`routing`; ``kind``: the coefficient ``fixed_tiles``."""
    hidden, small, tuned = x[:, 1], _small(x), np.zeros(len(x), dtype=np.bool_)
    padded16, padded64, padded128 = routed[3:6]
    fill = np.clip(routed[0] / routed[1], 1.0, 128.0)
    depth = np.where(small, SMALL_STEP_DEPTH, STEP_DEPTH)
    if kind > 0.0:
        rows, height = np.where(small, padded16, padded64), np.where(small, 16.0, 64.0)
        columns = np.where(small, 32.0, 64.0)
    else:
        rows = np.where(fill <= 16.0, padded16, np.where(fill <= 64.0, padded64, padded128))
        height, columns = np.maximum(fill, 16.0), np.full(len(x), 128.0)
    if kind == TUNED_FILES:
        file = tuned_tiles.tuned_tiles(x[:, 0], np.floor(x[:, 4] / x[:, 6]), width)
        tuned = file.exists
        rows = np.where(tuned, np.choose(file.index, (padded16, routed[7], padded64, padded128)), rows)
        height = np.where(tuned, tuned_tiles.ROWS[file.index], height)
        columns = np.where(tuned, tuned_tiles.COLUMNS[file.index], columns)
        depth = np.where(tuned, tuned_tiles.DEPTH[file.index], depth)
    tiles = ceil_div(rows, height) * (ceil_div(2.0 * width, columns) + ceil_div(hidden, columns))
    return _Tiling(rows, tiles, (hidden + width) / depth, tuned)


def _small(x: Array) -> npt.NDArray[np.bool_]:
    """Not more tokens than experts on the rank."""
    return np.asarray(x[:, 0] <= np.maximum(x[:, 4] / x[:, 6], 1.0))


def moe(x: Array, c: Coefficients, device: Device) -> Physics:
    """Touched weights over bandwidth, padded rows over the tensor cores, tiles over the SMs; then rows' own traffic.

    The rows' buffers hold all tokens·topk pairs of the group, also those another rank computes. Long kernels slow down
    as at a power limit. A profile without ``step_s`` is older than the terms that are read with a default.
    """
    tokens, hidden, inter, topk, experts, tp, ep, _, gated = (x[:, i] for i in range(9))
    routed = list(routing(x, spread=c.get("spreads_rows", 0.0) > 0.0).T)
    touched, width, pairs = routed[1], inter / tp, tokens * topk
    matrices = np.where(gated > 0.0, 3.0, 2.0)
    kind = c.get("fixed_tiles", 0.0)
    tiling = _tiling(x, routed, width, kind)
    passes = np.maximum(routed[6] / PASS_ROWS / touched, 1.0)
    weights = matrices * touched * hidden * width * device.element_bytes
    activations = pairs * (2.0 * hidden + matrices * width) * device.element_bytes
    bandwidth = device.bytes_per_s * c["bandwidth_share"]
    efficiency = c["efficiency"] * np.where(tiling.tuned, c.get("tuned_gain", 1.0), 1.0)
    compute = 2.0 * matrices * tiling.rows * hidden * width / (device.flop_per_s * efficiency)
    issue = ceil_div(tiling.tiles, device.num_sms) * c["tile_s"]
    chain = c.get("step_s", 0.0) * tiling.steps
    memory = weights / bandwidth * (1.0 + c.get("reread_share", 0.0) * (passes - 1.0))
    traffic = c["row_passes"] * activations / bandwidth
    misaligned = (width % ALIGNED > 0.0) * 1.0
    slow = 1.0 + c.get("misaligned_share", 0.0) * misaligned
    work = slow * overlapped([memory, compute, issue, chain], c["exposed_share"]) + traffic
    work = work * (1.0 + c.get("throttle_share", 0.0) / (1.0 + (c.get("throttle_after_s", 1.0) / work) ** 2))
    one_expert = matrices * np.minimum(experts / ep, 1.0) * hidden * width * device.element_bytes
    shared_flops = 2.0 * matrices * (pairs / ep) * hidden * width
    floor = np.maximum(shared_flops / device.flop_per_s, one_expert / device.bytes_per_s)
    times = [
        log2(memory / compute), log2(work / c["launch_s"]), log2(chain / memory), log2(traffic / work),
        log2(compute / c["launch_s"]), log2(weights), misaligned, log2(passes),
    ]  # fmt: skip
    features = [*times, *_shape_features(x, routed, tiling, device), *[tiling.tuned * 1.0] * (kind == TUNED_FILES)]
    return Physics(c["launch_s"] + work, floor, np.stack(features, axis=1))


def _shape_features(x: Array, routed: list[Array], tiling: _Tiling, device: Device) -> list[Array]:
    tokens, hidden, inter, topk, experts, tp, ep, alpha = (x[:, i] for i in range(8))
    rows, touched, largest = routed[:3]
    pairs = tokens * topk
    thresholds = (pairs > experts, tokens > experts, ~_small(x))
    return [
        log2(tokens), log2(hidden), log2(inter / tp), log2(topk), log2(experts), log2(ep), alpha,
        log2(rows), log2(touched), log2(largest), log2(np.clip(rows / touched, 1.0, 128.0)), log2(tiling.rows / rows),
        log2(tiling.tiles), log2(experts / ep), log2(pairs / experts), log2(inter), log2(rows * ep / pairs),
        *(np.asarray(beyond, dtype=np.float64) for beyond in thresholds),
        ceil_div(tiling.tiles, device.num_sms) * device.num_sms / tiling.tiles,
    ]  # fmt: skip
