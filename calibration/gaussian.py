"""A Gaussian process for the log residual of small tables: exact and deterministic.

Matern-5/2 kernel with a length a feature over standardised features, plus noise. Hyperparameters maximise the
marginal likelihood times weak log-normal priors: without them thirty lengths would be fitted to fifty rows. Features
that do not matter get long lengths, which is what a few rows gain most from. Source: Rasmussen & Williams 2006,
equations 2.30 (likelihood), 4.17 (Matern), 5.9 (its gradient), section 5.1 (relevance).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lapack
from scipy.optimize import minimize

from simulator.costs.gaussian_kernel import matern
from simulator.costs.physics import Array
from simulator.residual import GaussianResidual, encode_floats

# log of (signal variance, noise variance, a length each) of log residuals on standardised features: mean and spread of
# the priors. Chosen on tables that no line of docs/accuracy.md uses (SGLang's on the A100, vLLM's fp8 KV on the H200).
SIGNAL_PRIOR, NOISE_PRIOR, LENGTH_PRIOR = (np.log(0.02), 1.5), (np.log(1e-3), 1.5), (np.log(5.0), 1.0)
RELATIVE_LENGTH_SPREAD = 1.0  # of one length around the mean log length
MIN_NOISE = 1e-6
MAX_STEPS = 100


def _covariance(x: Array, theta: Array) -> Array:
    scaled = x / np.exp(theta[2:])
    return np.asarray(np.exp(theta[0]) * matern(scaled, scaled, 1.0) + (np.exp(theta[1]) + MIN_NOISE) * np.eye(len(x)))


def _prior(theta: Array) -> tuple[float, Array]:
    """−log of the priors and its gradient."""
    lengths = theta[2:]
    middle = lengths.mean()
    around = (lengths - middle) / RELATIVE_LENGTH_SPREAD
    away = [(value - mean) / spread for value, (mean, spread) in
            zip((theta[0], theta[1], middle), (SIGNAL_PRIOR, NOISE_PRIOR, LENGTH_PRIOR), strict=True)]  # fmt: skip
    gradient = np.concatenate([[away[0] / SIGNAL_PRIOR[1], away[1] / NOISE_PRIOR[1]],
                               around / RELATIVE_LENGTH_SPREAD + away[2] / LENGTH_PRIOR[1] / len(lengths)])  # fmt: skip
    return 0.5 * float(around @ around + sum(value * value for value in away)), gradient


def _loss(theta: Array, x: Array, y: Array) -> tuple[float, Array]:
    """−log posterior of the hyperparameters and its gradient.

    With W = K⁻¹ − ααᵀ the gradient is ½ tr(W ∂K/∂θ); a length's ∂K is B·(xᵢ − xⱼ)²/l² with B = 5/3·s·(1 + d)·exp(−d),
    and Σ M_ij (x_i − x_j)² = 2·(Σ_i x_i² Σ_j M_ij − xᵀMx) for symmetric M.
    """
    covariance = _covariance(x, theta)
    factor = cho_factor(covariance, lower=True)
    inverse = lapack.dpotri(factor[0], lower=1)[0]
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    alpha = inverse @ y
    weight = inverse - np.outer(alpha, alpha)
    scaled = x / np.exp(theta[2:])
    squared = (scaled**2).sum(axis=1)
    d = np.sqrt(5.0 * np.maximum(squared[:, None] + squared[None, :] - 2.0 * scaled @ scaled.T, 0.0))
    slope = weight * (np.exp(theta[0]) * (5.0 / 3.0) * (1.0 + d) * np.exp(-d))
    lengths = 2.0 * (slope.sum(axis=1) @ scaled**2 - (scaled * (slope @ scaled)).sum(axis=0))
    noise = np.exp(theta[1])
    signal = float((weight * covariance).sum() - (noise + MIN_NOISE) * np.trace(weight))
    prior, pull = _prior(theta)
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor[0])).sum()) + prior
    return value, 0.5 * np.concatenate([[signal, noise * np.trace(weight)], lengths]) + pull


def fit_gaussian(features: Array, log_residual: Array) -> GaussianResidual:
    """What a profile stores, from features [n, F] and log(measured/physical) [n]."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    varies = scale > 1e-9
    scale = np.where(varies, scale, 1.0)
    x = (features - mean) / scale
    used = x[:, varies]
    start = np.concatenate([[SIGNAL_PRIOR[0], NOISE_PRIOR[0]], np.full(used.shape[1], LENGTH_PRIOR[0])])
    options = {"maxiter": MAX_STEPS}
    bounds = [(value - 8.0, value + 8.0) for value in start]
    solved = minimize(
        _loss, start, args=(used, log_residual), method="L-BFGS-B", jac=True, bounds=bounds, options=options
    )
    factor = cho_factor(_covariance(used, solved.x), lower=True)
    weights = cho_solve(factor, log_residual)
    lengths = np.ones(len(mean))
    lengths[varies] = np.exp(solved.x[2:])
    standard = x / lengths
    return GaussianResidual(
        feature_mean=tuple(mean.tolist()),
        feature_scale=tuple((scale * lengths).tolist()),
        feature_low=tuple(standard.min(axis=0).tolist()),
        feature_high=tuple(standard.max(axis=0).tolist()),
        low=float(log_residual.min()),
        high=float(log_residual.max()),
        length=1.0,
        points_base64=encode_floats(standard),
        weights_base64=encode_floats(np.exp(solved.x[0]) * weights),
    )
