"""What a kernel must cost before anything is learned: physical models of GEMM, and what all classes share.

Every class has one function ``(columns, coefficients, device) -> Physics``. It models tiles, waves of
tiles over the SMs, split-K, device-memory and L2 traffic, launch latency and a slow-down of long kernels as at a
power limit; it ignores which library kernel really ran (the residual of :mod:`simulator.costs.cost` learns that).
Sources: roofline (Williams et al. 2009); tile and wave quantisation (NVIDIA, Matrix Multiplication
Background User's Guide, section 4); a tile's prologue and epilogue (NVIDIA, CUTLASS, Efficient GEMM); FACTS of this
project on which terms mattered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Coefficients = Mapping[str, float]

# Columns of the row arrays, by class. Booleans are 0 or 1; ``alpha`` 0 is balanced routing.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention_prefill": ("batch", "seq_q", "seq_kv", "heads", "kv_heads", "head_dim", "causal", "window"),
    "attention_decode": ("batch", "context", "heads", "kv_heads", "head_dim", "window"),
    "moe": ("tokens", "hidden", "inter", "topk", "experts", "tp", "ep", "alpha", "gated"),
}


@dataclass(frozen=True, slots=True)
class Device:
    """The facts a physical model needs: dense peak of the dtype, memory bandwidth, SMs, bytes an element."""

    flop_per_s: float
    bytes_per_s: float
    num_sms: int
    element_bytes: int


@dataclass(frozen=True, slots=True)
class Physics:
    """``base_s`` physical seconds, ``floor_s`` the roofline bound, ``features`` [rows, F] of the residual."""

    base_s: Array
    floor_s: Array
    features: Array


PhysicalModel = Callable[[Array, Coefficients, Device], Physics]


def ceil_div(numerator: Array, denominator: Array | float) -> Array:
    return np.ceil(numerator / denominator)


def overlapped(terms: list[Array], exposed: float) -> Array:
    """The longest of overlapping times plus the exposed share (0: perfect overlap, 1: none) of the others."""
    largest = terms[0]
    total = terms[0]
    for term in terms[1:]:
        largest = np.maximum(largest, term)
        total = total + term
    return np.asarray(largest + exposed * (total - largest))


def log2(values: Array) -> Array:
    return np.asarray(np.log2(np.maximum(values, 1e-30)))


# (rows, columns, efficiency coefficient) of the output tiles a GEMM library chooses from.
GEMM_TILES = (
    (256.0, 128.0, "efficiency_256x128"),
    (128.0, 256.0, "efficiency_256x128"),
    (128.0, 128.0, "efficiency_128x128"),
    (128.0, 64.0, "efficiency_128x64"),
    (64.0, 128.0, "efficiency_128x64"),
    (64.0, 64.0, "efficiency_64x64"),
    (32.0, 64.0, "efficiency_32x64"),
)
SPLIT_K_MIN_DEPTH = 256.0  # a slice of K shorter than this is never split off
ACCUMULATOR_BYTES = 4.0  # split-K partial sums are fp32

GEMM_START: Mapping[str, float] = {
    "launch_s": 2.5e-6,
    "efficiency_256x128": 0.8,
    "efficiency_128x128": 0.7,
    "efficiency_128x64": 0.6,
    "efficiency_64x64": 0.45,
    "efficiency_32x64": 0.3,
    "bandwidth_share": 0.85,
    "l2_bandwidth_ratio": 2.5,
    "tile_s": 5e-7,
    "tile_area_s": 5e-7,
    "split_s": 1.5e-6,
    "exposed_share": 0.3,
    "throttle_share": 0.1,
    "throttle_after_s": 1e-3,
}
WHOLE_TILE = 128.0 * 128.0  # outputs that a CTA writes in ``tile_area_s``


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Seconds of one tile shape, the tiles it makes, and how full its last wave is."""

    seconds: Array
    num_tiles: Array
    fill: Array


@dataclass(frozen=True, slots=True)
class _Problem:
    """What every tile shape shares: sizes, seconds of the operands' traffic, L2 bytes a second."""

    m: Array
    n: Array
    k: Array
    memory_s: Array
    l2_bytes_per_s: float
    device: Device
    coefficients: Coefficients


def _tile_shape(problem: _Problem, tile: tuple[float, float, str], *, split: bool) -> tuple[_Tiling, ...]:
    """Waves x (depth x tile FLOPs / one SM's rate + a tile's cost), overlapped with traffic; and with K split.

    A tile's cost is its pipeline's filling and, by the outputs it really has, its epilogue. Each tile loads its rows
    of A and columns of B through L2, whatever K is cut into. A profile without ``tile_area_s`` is older than the term.
    """
    rows, columns, efficiency = tile
    c, device = problem.coefficients, problem.device
    tiles = np.ceil(problem.m * (1.0 / rows)) * np.ceil(problem.n * (1.0 / columns))
    depth_s = problem.k * (2.0 * rows * columns * device.num_sms / (device.flop_per_s * c[efficiency]))
    real_rows = np.minimum(problem.m, rows)
    l2_s = tiles * (real_rows + columns) * problem.k * (device.element_bytes / problem.l2_bytes_per_s)
    fixed_s = c["tile_s"] + real_rows * (c.get("tile_area_s", 0.0) * columns / WHOLE_TILE)
    plain = _tiling(problem, tiles, depth_s + fixed_s, l2_s)
    if not split:
        return (plain,)
    parts = np.clip(np.floor(device.num_sms / tiles), 1.0, np.maximum(1.0, problem.k * (1.0 / SPLIT_K_MIN_DEPTH)))
    cut = _tiling(problem, tiles * parts, depth_s / parts + fixed_s, l2_s)
    partial_s = (parts - 1.0) * problem.m * problem.n * (2.0 * ACCUMULATOR_BYTES / problem.l2_bytes_per_s)
    return plain, _Tiling(cut.seconds + c["split_s"] * (parts > 1.0) + partial_s, cut.num_tiles, cut.fill)


def _tiling(problem: _Problem, num_tiles: Array, tile_s: Array, l2_s: Array) -> _Tiling:
    waves = num_tiles * (1.0 / problem.device.num_sms)
    whole = np.ceil(waves)
    compute_s = whole * tile_s
    seconds = overlapped([compute_s, problem.memory_s, l2_s], problem.coefficients["exposed_share"])
    return _Tiling(seconds, num_tiles, waves / whole)


def gemm(x: Array, c: Coefficients, device: Device) -> Physics:
    """The fastest tile shape, as a library's heuristic would choose; see ``_tile_shape``.

    The residual also sees how much slower the other shapes are (a heuristic errs among close ones) and how full
    each shape's last wave would be.
    """
    m, n, k = (np.ascontiguousarray(x[:, i]) for i in range(3))
    num_bytes = (m * k + k * n + m * n) * device.element_bytes
    bandwidth = device.bytes_per_s * c["bandwidth_share"]
    problem = _Problem(m, n, k, num_bytes / bandwidth, bandwidth * c["l2_bandwidth_ratio"], device, c)
    shapes = [_tile_shape(problem, tile, split=index >= 2) for index, tile in enumerate(GEMM_TILES)]
    plain = [shape[0] for shape in shapes]
    split = [shape[1] for shape in shapes[2:]]
    best, num_tiles, fill, is_split = plain[0].seconds, plain[0].num_tiles, plain[0].fill, np.zeros(len(x))
    for index, tiling in enumerate((*plain[1:], *split)):
        better = tiling.seconds < best
        best = np.minimum(best, tiling.seconds)
        num_tiles = np.where(better, tiling.num_tiles, num_tiles)
        fill = np.where(better, tiling.fill, fill)
        is_split = np.where(better, float(index >= len(plain) - 1), is_split)
    throttled = 1.0 + c.get("throttle_share", 0.0) / (1.0 + (c.get("throttle_after_s", 1.0) / best) ** 2)
    flops = 2.0 * m * n * k
    floor = np.maximum(flops * (1.0 / device.flop_per_s), num_bytes * (1.0 / device.bytes_per_s))
    base = c["launch_s"] + best * throttled
    slower = [np.minimum(log2(tiling.seconds / best), 2.0) for tiling in (*plain, split[0], split[3])]
    sizes = [log2(m), log2(n), log2(k), log2(num_bytes), log2(floor / base), log2(best), log2(num_tiles)]
    waves = [np.minimum(plain[i].num_tiles * (1.0 / device.num_sms), 6.0) for i in (0, 2, 5)]
    features = [
        *sizes, sizes[0] + sizes[1] + sizes[2], fill, is_split, *slower, *(tiling.fill for tiling in plain), *waves,
        np.minimum(m, 16.0), np.minimum(m, 64.0) / 8.0, (m % 16.0 == 0.0) * 1.0, (m % 128.0) / 128.0,
        (m % 256.0) / 256.0, (n % 256.0) / 256.0,
    ]  # fmt: skip
    return Physics(base, floor, np.stack(features, axis=1))
