"""Two-level partitioning's own rules: shapes, parameters, what each form moves, and how wrong softmax per slice is.

Forms (n head groups × m dimension slices): ``per_slice`` as written (another model), and three exact ones —
``score_sum`` (add partial scores before the softmax), ``gather_qk`` (gather Q and K in the group, slice V only) and
``all_to_all`` (dimension slices become whole heads inside the group, so W_O takes them where they are).
What it ignores: time; see ``paper_two_level.py``. Source: two-level partitioning document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulator.units import DTYPE_BYTES

Form = Literal["per_slice", "score_sum", "gather_qk", "all_to_all"]
FORMS: tuple[Form, ...] = ("per_slice", "score_sum", "gather_qk", "all_to_all")
PARAMETERS_AS_WRITTEN = 196_608
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TwoLevel:
    """The document's sizes: B=128, L=10000, D = 32 heads × 128, n=4 groups, m=4 slices, fp16."""

    batch: int = 128
    length: int = 10_000
    heads: int = 32
    head_dim: int = 128
    groups: int = 4
    slices: int = 4
    dtype: str = "fp16"

    def __post_init__(self) -> None:
        if self.heads % self.groups or self.head_dim % self.slices:
            raise ValueError(
                f"groups {self.groups} must divide heads {self.heads} and slices {self.slices} head_dim {self.head_dim}"
            )

    @property
    def hidden_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def heads_per_group(self) -> int:
        return self.heads // self.groups

    @property
    def slice_dim(self) -> int:
        return self.head_dim // self.slices

    @property
    def devices(self) -> int:
        return self.groups * self.slices

    @property
    def block_columns(self) -> int:
        """Columns of W^(i,j): heads of the group × dimensions of the slice."""
        return self.heads_per_group * self.slice_dim


def block_shape_as_written(sizes: TwoLevel) -> tuple[int, int]:
    """ℝ^(d_s·h_g × d_s·h_g): sixteen such blocks cover 1/16 of W."""
    return sizes.block_columns, sizes.block_columns


def block_shape(sizes: TwoLevel) -> tuple[int, int]:
    """All D input rows × the block's columns: what X·W^(i,j) needs."""
    return sizes.hidden_size, sizes.block_columns


def block_coverage(sizes: TwoLevel, shape: tuple[int, int]) -> float:
    """Share of the D×D matrix that all devices' blocks together hold."""
    return sizes.devices * shape[0] * shape[1] / sizes.hidden_size**2


def parameters_per_device(sizes: TwoLevel) -> int:
    """Three blocks (Q, K, V): 3·4096·256 = 3,145,728."""
    rows, columns = block_shape(sizes)
    return 3 * rows * columns


def input_bytes(sizes: TwoLevel) -> int:
    """The whole X that every device multiplies."""
    return sizes.batch * sizes.length * sizes.hidden_size * DTYPE_BYTES[sizes.dtype]


def group_output_width(sizes: TwoLevel) -> int:
    """m slices of the group's heads side by side: 8·128 = 1024, not 128."""
    return sizes.slices * sizes.block_columns


def score_bytes(sizes: TwoLevel, dtype: str | None = None) -> int:
    """B·h_g·L² scores of one device's heads."""
    return sizes.batch * sizes.heads_per_group * sizes.length**2 * DTYPE_BYTES[dtype or sizes.dtype]


def moved_bytes(sizes: TwoLevel, form: Form) -> float:
    """Bytes one device sends inside its group before W_O.

    score_sum: a ring all-reduce of its heads' scores, 2(m−1)/m·S. gather_qk: an all-gather of Q and K slices, each
    device sends its own two (m−1) times. all_to_all: it sends (m−1)/m of its slice of Q, K and V.
    """
    m = sizes.slices
    activation = sizes.batch * sizes.length * sizes.block_columns * DTYPE_BYTES[sizes.dtype]
    match form:
        case "per_slice":
            return 0.0
        case "score_sum":
            return 2 * (m - 1) / m * score_bytes(sizes)
        case "gather_qk":
            return float((m - 1) * 2 * activation)
        case "all_to_all":
            return (m - 1) / m * 3 * activation


def most_head_parallel_devices(sizes: TwoLevel) -> int:
    """Head parallelism alone reaches h devices; the document's 16 are fewer."""
    return sizes.heads


def softmax(scores: Floats) -> Floats:
    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exps / exps.sum(axis=-1, keepdims=True))


def attend(q: Floats, k: Floats, v: Floats) -> Floats:
    """[..., L, d] attention without a mask."""
    return np.asarray(softmax(q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])) @ v)


def attend_per_slice(q: Floats, k: Floats, v: Floats, slices: int) -> Floats:
    """As written: a softmax over every slice's own scores, scaled by √d_s."""
    parts = [np.split(x, slices, axis=-1) for x in (q, k, v)]
    return np.concatenate([attend(a, b, c) for a, b, c in zip(*parts, strict=True)], axis=-1)


def attend_score_sum(q: Floats, k: Floats, v: Floats, slices: int) -> Floats:
    """Exact: partial scores are added before one softmax; V stays sliced."""
    queries, keys, values = (np.split(x, slices, axis=-1) for x in (q, k, v))
    scores = sum(a @ np.swapaxes(b, -1, -2) for a, b in zip(queries, keys, strict=True)) / np.sqrt(q.shape[-1])
    weights = softmax(np.asarray(scores))
    return np.concatenate([weights @ value for value in values], axis=-1)


def relative_error(ours: Floats, reference: Floats) -> float:
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def form_errors(rng: np.random.Generator, *, length: int = 128, heads: int = 4, dim: int = 128) -> tuple[float, float]:
    """(per-slice, score-sum) relative error against plain attention on standard normal data, m = 4."""
    q, k, v = (rng.standard_normal((heads, length, dim)) for _ in range(3))
    reference = attend(q, k, v)
    errors = [relative_error(form(q, k, v, 4), reference) for form in (attend_per_slice, attend_score_sum)]
    return errors[0], errors[1]
