"""What a kernel must cost before anything is learned: physical models of GEMM, and what all classes share.

Every class has one function ``(columns, coefficients, device) -> Physics``. It models tiles, waves of
tiles over the SMs, split-K, device-memory and L2 traffic and launch latency; it ignores clocks, power and
which library kernel really ran (the learned residual of :mod:`simulator.cost` covers those).
Sources: roofline (Williams et al. 2009); tile and wave quantisation (NVIDIA, Matrix Multiplication
Background User's Guide, section 4); FACTS of this project on which terms mattered.
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


def soft_max(terms: list[Array], sharpness: float) -> Array:
    """p-norm of overlapping times: p = 1 adds them (no overlap), p → ∞ is their maximum (perfect overlap)."""
    largest = np.maximum.reduce(terms)
    total = np.zeros_like(largest)
    for term in terms:
        total += (term / largest) ** sharpness
    return np.asarray(largest * total ** (1.0 / sharpness))


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
    "split_s": 1.5e-6,
    "sharpness": 3.0,
}


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Seconds of one tile shape, and how full its last wave is."""

    seconds: Array
    num_tiles: Array
    fill: Array


def _tile_seconds(x: Array, c: Coefficients, device: Device, tile: tuple[float, float, str], split: bool) -> _Tiling:
    """One tile shape: waves x (depth x tile FLOPs / one SM's rate + tile cost), overlapped with traffic."""
    m, n, k = x[:, 0], x[:, 1], x[:, 2]
    rows, columns, efficiency = tile
    tiles = ceil_div(m, rows) * ceil_div(n, columns)
    parts = np.clip(np.floor(device.num_sms / tiles), 1.0, np.maximum(1.0, k / SPLIT_K_MIN_DEPTH)) if split else 1.0
    num_tiles = np.asarray(tiles * parts)
    waves = ceil_div(num_tiles, device.num_sms)
    sm_flop_per_s = device.flop_per_s / device.num_sms * c[efficiency]
    compute = waves * (2.0 * rows * columns * (k / parts) / sm_flop_per_s + c["tile_s"])
    bandwidth = device.bytes_per_s * c["bandwidth_share"]
    memory = (m * k + k * n + m * n) * device.element_bytes / bandwidth
    loaded = num_tiles * (np.minimum(rows, m) + columns) * (k / parts) * device.element_bytes
    l2 = loaded / (bandwidth * c["l2_bandwidth_ratio"])
    seconds = soft_max([compute, memory, l2], c["sharpness"])
    if split:
        partial_bytes = 2.0 * (parts - 1.0) * m * n * ACCUMULATOR_BYTES
        seconds = seconds + c["split_s"] * (parts > 1.0) + partial_bytes / (bandwidth * c["l2_bandwidth_ratio"])
    return _Tiling(seconds, num_tiles, num_tiles / (waves * device.num_sms))


def gemm(x: Array, c: Coefficients, device: Device) -> Physics:
    """The fastest tile shape, as a library's heuristic would choose; see ``_tile_seconds``.

    The residual also sees how much slower the other shapes are (a heuristic errs among close ones) and how full
    each shape's last wave would be.
    """
    m, n, k = x[:, 0], x[:, 1], x[:, 2]
    plain = [_tile_seconds(x, c, device, tile, split=False) for tile in GEMM_TILES]
    split = [_tile_seconds(x, c, device, tile, split=True) for tile in GEMM_TILES[2:]]
    seconds = np.stack([tiling.seconds for tiling in (*plain, *split)])
    chosen = seconds.argmin(axis=0)
    everyone = np.arange(len(x))
    best = seconds[chosen, everyone]
    num_tiles = np.stack([tiling.num_tiles for tiling in (*plain, *split)])[chosen, everyone]
    fill = np.stack([tiling.fill for tiling in (*plain, *split)])[chosen, everyone]
    flops = 2.0 * m * n * k
    num_bytes = (m * k + k * n + m * n) * device.element_bytes
    floor = np.maximum(flops / device.flop_per_s, num_bytes / device.bytes_per_s)
    base = c["launch_s"] + best
    slower = [np.minimum(log2(tiling.seconds / best), 2.0) for tiling in plain]
    features = [
        log2(m), log2(n), log2(k), log2(flops), log2(num_bytes), log2(floor / base), log2(best / c["launch_s"]),
        log2(num_tiles), fill, (chosen >= len(plain)) * 1.0, *slower, *(tiling.fill for tiling in plain),
        np.minimum(log2(split[0].seconds / best), 2.0), np.minimum(log2(split[3].seconds / best), 2.0),
        np.minimum(m, 16.0), np.minimum(m, 64.0) / 8.0, (m % 16.0 == 0.0) * 1.0, (m % 128.0) / 128.0,
        (m % 256.0) / 256.0, (n % 256.0) / 256.0, np.minimum(waves_of(plain[0], device), 6.0),
        np.minimum(waves_of(plain[2], device), 6.0), np.minimum(waves_of(plain[5], device), 6.0),
    ]  # fmt: skip
    return Physics(base, floor, np.stack(features, axis=1))


def waves_of(tiling: _Tiling, device: Device) -> Array:
    return tiling.num_tiles / device.num_sms
