"""Learned: physical seconds with a residual applied, in numpy.

The residual sees counts (tiles, waves, blocks walked), not raw lengths; both its inputs and its output are clamped to
what calibration saw.
"""

from __future__ import annotations

import numpy as np

from simulator.costs.gaussian_kernel import matern
from simulator.costs.physics import Array, Physics
from simulator.errors import ProfileError
from simulator.residual import AnyResidual, Float32, GaussianResidual, Residual, TransferredResidual

BLOCK_ROWS = 32


def apply_residual(shape: Physics, residual: AnyResidual | None) -> Array:
    """Physical seconds times exp of the learned log residual, clamped to what was seen."""
    if residual is None:
        return shape.base_s
    if shape.features.shape[1] != len(residual.feature_mean):
        raise ProfileError(
            f"profile: its residual reads {len(residual.feature_mean)} features, this version computes "
            f"{shape.features.shape[1]}; rebuild it with the command in its provenance"
        )
    if isinstance(residual, TransferredResidual):
        learned = _log_residual(shape, residual.donor) + _log_residual(shape, residual.local)
    else:
        learned = _log_residual(shape, residual)
    return np.asarray(shape.base_s * np.exp(learned))


def _log_residual(shape: Physics, residual: Residual | GaussianResidual) -> Array:
    mean, inverse_scale, low, high = residual.scaling
    x = shape.features.astype(np.float32)
    x -= mean
    x *= inverse_scale
    np.clip(x, low, high, out=x)
    learned = _network_mean(x, residual) if isinstance(residual, Residual) else _posterior_mean(x, residual)
    return np.clip(learned.astype(np.float64), residual.low, residual.high)


def _network_mean(x: Float32, residual: Residual) -> Float32:
    """Mean output; in blocks so small that BLAS starts no threads (chunks already use every core)."""
    blocks = -(-len(x) // BLOCK_ROWS)
    padded = np.zeros((blocks * BLOCK_ROWS, x.shape[1]), dtype=np.float32)
    padded[: len(x)] = x
    stacked = padded.reshape(blocks, BLOCK_ROWS, -1)
    total = np.zeros((blocks, BLOCK_ROWS, 1), dtype=np.float32)
    for layers in residual.arrays:
        hidden = stacked
        for weights, bias in layers[:-1]:
            hidden = hidden @ weights
            hidden += bias
            np.tanh(hidden, out=hidden)
        total += hidden @ layers[-1][0] + layers[-1][1]
    return total.reshape(-1)[: len(x)] / np.float32(max(len(residual.networks), 1))


def _posterior_mean(x: Float32, residual: GaussianResidual) -> Float32:
    correlation = matern(x, residual.points, residual.length).astype(np.float32)
    return np.asarray(correlation @ residual.weights)
