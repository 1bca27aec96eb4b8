"""A small multilayer perceptron in numpy: enough to learn log residuals, deterministic, no framework.

Two tanh layers, pseudo-absolute loss (what MAPE measures, smooth at 0), Adam with decoupled weight decay, a
cosine schedule and an exponential average of the weights. Source: Kingma & Ba 2015; Loshchilov & Hutter 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

from simulator.costs.physics import Array
from simulator.residual import Layer, Residual, encode_floats

Float32 = npt.NDArray[np.float32]
BETA1, BETA2, EPSILON = 0.9, 0.995, 1e-8
LOSS_SCALE = 0.01  # log seconds below which the loss is quadratic: about the noise of a measurement
WARMUP_STEPS = 100
AVERAGE_RATE = 0.01


@dataclass(frozen=True, slots=True)
class Training:
    """How residual networks are trained."""

    width: int = 64
    networks: int = 4
    steps: int = 12000
    steps_per_row: int = 3
    batch: int = 256
    learning_rate: float = 4e-3
    weight_decay: float = 1e-5
    seed: int = 0


def _start(sizes: list[int], rng: np.random.Generator) -> list[Float32]:
    weights = [rng.normal(0.0, np.sqrt(1.0 / a), (a, b)).astype(np.float32) for a, b in pairwise(sizes)]
    return weights + [np.zeros(b, dtype=np.float32) for b in sizes[1:]]


def _gradients(p: list[Float32], x: Float32, target: Float32) -> list[Float32]:
    """Backpropagation of mean(sqrt(error² + scale²)) through the two tanh layers."""
    h1 = np.tanh(x @ p[0] + p[3])
    h2 = np.tanh(h1 @ p[1] + p[4])
    error = (h2 @ p[2] + p[5])[:, 0] - target
    g3 = (error / np.sqrt(error * error + LOSS_SCALE**2))[:, None].astype(np.float32) / np.float32(len(x))
    g2 = (g3 @ p[2].T) * (1.0 - h2 * h2)
    g1 = (g2 @ p[1].T) * (1.0 - h1 * h1)
    return [x.T @ g1, h1.T @ g2, h2.T @ g3, g1.sum(0), g2.sum(0), g3.sum(0)]


def _train_one(x: Float32, target: Float32, options: Training, rng: np.random.Generator) -> list[Float32]:
    p = _start([x.shape[1], options.width, options.width, 1], rng)
    first, second = [np.zeros_like(q) for q in p], [np.zeros_like(q) for q in p]
    average = [q.copy() for q in p]
    per_epoch = max(1, len(x) // options.batch)
    order = rng.permutation(len(x))
    for step in range(1, options.steps + 1):
        position = (step - 1) % per_epoch
        if position == 0:
            order = rng.permutation(len(x))
        picked = order[position * options.batch : (position + 1) * options.batch]
        rate = (
            options.learning_rate * 0.5 * (1.0 + np.cos(np.pi * step / options.steps)) * min(1.0, step / WARMUP_STEPS)
        )
        for i, gradient in enumerate(_gradients(p, x[picked], target[picked])):
            first[i] += np.float32(1.0 - BETA1) * (gradient - first[i])
            second[i] += np.float32(1.0 - BETA2) * (gradient * gradient - second[i])
            scaled = first[i] / (1.0 - BETA1**step) / (np.sqrt(second[i] / (1.0 - BETA2**step)) + EPSILON)
            decay = options.weight_decay * p[i] if i < 3 else 0.0
            p[i] -= (rate * (scaled + decay)).astype(np.float32)
            average[i] += np.float32(AVERAGE_RATE) * (p[i] - average[i])
    return average


def train(features: Array, log_residual: Array, options: Training) -> Residual:
    """Networks that predict ``log_residual`` [n] from ``features`` [n, F], as they stand in a profile."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    standard = (features - mean) / scale
    x, target = standard.astype(np.float32), log_residual.astype(np.float32)
    networks = []
    with threadpool_limits(1):  # matrices this small lose more to BLAS threads than they gain
        for number in range(options.networks):
            p = _train_one(x, target, options, np.random.default_rng([options.seed, number]))
            networks.append(tuple(_layer(weights, bias) for weights, bias in zip(p[:3], p[3:], strict=True)))
    return Residual(
        feature_mean=tuple(mean.tolist()),
        feature_scale=tuple(scale.tolist()),
        feature_low=tuple(standard.min(axis=0).tolist()),
        feature_high=tuple(standard.max(axis=0).tolist()),
        low=float(log_residual.min()),
        high=float(log_residual.max()),
        networks=tuple(networks),
    )


def _layer(weights: Float32, bias: Float32) -> Layer:
    return Layer(
        num_inputs=weights.shape[0],
        num_outputs=weights.shape[1],
        weights_base64=encode_floats(weights),
        bias_base64=encode_floats(bias),
    )
