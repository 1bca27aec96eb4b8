"""Tuned tiles: the shapes for which vLLM ships a file of tiles for its grouped GEMM, and what these files hold.

A file is named by the experts on the rank, the width of one of them, the device and the dtype, and gives tiles by
tokens. Here: which shapes have one for bf16 on the A100-SXM4-80GB, and tiles read off one or two files of each number
of experts; files of equal experts differ by little.
Source: vllm 0.27.1, fused_moe/configs/E=…,N=…,device_name=NVIDIA_A100-SXM4-80GB.json and
fused_moe.py:try_get_optimal_moe_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Widths by experts on the rank.
WIDTHS: Mapping[int, tuple[int, ...]] = {
    1: (1792, 3584, 7168, 14336),
    8: (1792, 2048, 3584, 4096, 7168),
    16: (1344, 1792, 2688, 3584, 7168, 14336),
    64: (640, 1280),
    128: (192,),
    512: (64, 128),
}
# Tokens up to which tiles are 16, 32 and 64 rows high (128 beyond), by experts on the rank.
LIMITS: Mapping[int, tuple[float, float, float]] = {
    1: (20.0, 48.0, 192.0),
    8: (48.0, 192.0, 1792.0),
    16: (80.0, 192.0, 3584.0),
    64: (80.0, 192.0, 2560.0),
    128: (192.0, 384.0, 3584.0),
    512: (768.0, 1280.0, 3584.0),
}
ROWS = np.array([16.0, 32.0, 64.0, 128.0])
COLUMNS = np.array([128.0, 128.0, 256.0, 128.0])
DEPTH = np.array([128.0, 128.0, 64.0, 64.0])  # elements of K a step


@dataclass(frozen=True, slots=True)
class TunedTiles:
    """Whether a file exists [n], and the index [n] of its tile into ROWS, COLUMNS and DEPTH (any where none exists)."""

    exists: npt.NDArray[np.bool_]
    index: npt.NDArray[np.int64]


def tuned_tiles(tokens: Array, local_experts: Array, width: Array) -> TunedTiles:
    """The tile of every row's file; ``local_experts`` and ``width`` are those of one rank."""
    exists, index = np.zeros(len(tokens), dtype=np.bool_), np.zeros(len(tokens), dtype=np.int64)
    for experts, widths in WIDTHS.items():
        named = (local_experts == experts) & np.isin(width, widths)
        exists |= named
        index[named] = np.searchsorted(LIMITS[experts], tokens[named])  # a limit itself has the lower tile
    return TunedTiles(exists, index)
