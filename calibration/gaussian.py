"""A Gaussian process for the log residual of small tables: exact, deterministic, leave-one-out in closed form.

Matern-5/2 kernel with one length over standardised features, plus noise; the three hyperparameters maximise the
marginal likelihood. Source: Rasmussen & Williams 2006, equations 2.30 (likelihood), 4.17 (Matern), 5.12
(leave-one-out).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from simulator.costs.gaussian_kernel import matern
from simulator.costs.physics import Array
from simulator.profile import GaussianResidual, encode_floats

# log of (signal variance, length, noise variance), of log residuals on standardised features
START = np.log([0.02, 5.0, 1e-3])
BOUNDS = [(np.log(1e-5), np.log(2.0)), (np.log(0.5), np.log(100.0)), (np.log(1e-5), np.log(0.2))]


@dataclass(frozen=True, slots=True)
class GaussianFit:
    """What a profile stores, and log residuals [n] each predicted without its own row."""

    residual: GaussianResidual
    leave_one_out: Array


def _covariance(x: Array, theta: Array) -> Array:
    signal, length, noise = np.exp(theta)
    return np.asarray(signal * matern(x, x, float(length)) + noise * np.eye(len(x)))


def _negative_log_likelihood(theta: Array, x: Array, y: Array) -> float:
    factor = cho_factor(_covariance(x, theta), lower=True)
    log_determinant = 2.0 * float(np.log(np.diag(factor[0])).sum())
    return 0.5 * (float(y @ cho_solve(factor, y)) + log_determinant)


def fit_gaussian(features: Array, log_residual: Array) -> GaussianFit:
    """From features [n, F] and log(measured/physical) [n]."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x = (features - mean) / scale
    solved = minimize(_negative_log_likelihood, START, args=(x, log_residual), method="L-BFGS-B", bounds=BOUNDS)
    covariance = _covariance(x, solved.x)
    factor = cho_factor(covariance, lower=True)
    weights = cho_solve(factor, log_residual)
    inverse_diagonal = np.diag(cho_solve(factor, np.eye(len(x))))
    signal, length, _ = np.exp(solved.x)
    residual = GaussianResidual(
        feature_mean=tuple(mean.tolist()),
        feature_scale=tuple(scale.tolist()),
        feature_low=tuple(x.min(axis=0).tolist()),
        feature_high=tuple(x.max(axis=0).tolist()),
        low=float(log_residual.min()),
        high=float(log_residual.max()),
        length=float(length),
        points_base64=encode_floats(x),
        weights_base64=encode_floats(signal * weights),
    )
    return GaussianFit(residual, log_residual - weights / inverse_diagonal)
