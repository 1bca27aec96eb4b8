"""The Matern-5/2 kernel: correlation (1 + d + d²/3)·exp(−d) with d = √5·distance/length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def matern(x: npt.NDArray[np.floating], points: npt.NDArray[np.floating], length: float) -> npt.NDArray[np.floating]:
    """[rows of ``x``, rows of ``points``]; Rasmussen & Williams 2006, equation 4.17."""
    squared = (x**2).sum(axis=1)[:, None] + (points**2).sum(axis=1)[None, :] - 2.0 * x @ points.T
    d = np.sqrt(5.0 * np.maximum(squared, 0.0)) / length
    return np.asarray((1.0 + d + d * d / 3.0) * np.exp(-d))
