"""Cost: seconds of kernels on the device of a profile, with a 90 % interval and whether data backs them.

seconds = max(bound, physical model x exp(learned residual(physical features))). Outside the calibrated range the
physical model carries the prediction, the interval widens with the distance in octaves and ``inside`` is False. Beyond
the timed lengths of ``SMOOTH_COLUMNS`` the residual is the mean of what it says of the shape and of the nearest timed
one. Pure numpy; nothing is cached but the decoded weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.cluster import Gpu
from simulator.costs import physics, physics_attention, physics_flash3, physics_flash3_decode, physics_moe
from simulator.costs.collective_curve import collective_seconds
from simulator.costs.columns import class_of, octaves_outside, range_columns, rows_of
from simulator.costs.learned import apply_residual
from simulator.costs.physics import Array, Coefficients, Device, Physics
from simulator.errors import ProfileError, SpecError
from simulator.kernel import GroupCollective, Kernel, Memory
from simulator.profile import KernelModel, Profile
from simulator.units import DTYPE_BYTES

PARALLEL_CHUNKS = 8  # fewer are not worth starting threads
CHUNK_ROWS = 8192  # keeps a chunk's activations inside the L2 cache
# Columns beyond whose largest value the nearest timed shape's residual is as good a guess as the shape's own: chosen on
# rows inside the training parts (A100, H200). Not GEMM's m, prefill's or decode's lengths: there it was worse.
SMOOTH_COLUMNS: Mapping[str, tuple[str, ...]] = {"gemm": ("n", "k"), "moe": ("tokens",)}
WIDENING_CAP = 4.0  # octaves outside the range after which an interval grows no further


def _prefill(x: Array, c: Coefficients, device: Device) -> Physics:
    flash3 = c.get("flash_version") == 3.0
    return physics_flash3.prefill(x, c, device) if flash3 else physics_attention.prefill(x, c, device)


def _decode(x: Array, c: Coefficients, device: Device) -> Physics:
    flash3 = c.get("flash_version") == 3.0
    return physics_flash3_decode.decode(x, c, device) if flash3 else physics_attention.decode(x, c, device)


PHYSICAL_MODELS: Mapping[str, physics.PhysicalModel] = {
    "gemm": physics.gemm,
    "attention_prefill": _prefill,
    "attention_decode": _decode,
    "moe": physics_moe.moe,
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """Arrays over the kernels asked for, in their order; all [rows]."""

    seconds: Array
    p05_s: Array
    p95_s: Array
    inside: npt.NDArray[np.bool_]
    tag: npt.NDArray[np.str_]


def predict(kernels: Sequence[Kernel], profile: Profile) -> Prediction:
    """Every kernel's seconds; ProfileError where the profile has no model for a kernel's class or dtype."""
    result = Prediction(
        np.empty(len(kernels)),
        np.empty(len(kernels)),
        np.empty(len(kernels)),
        np.zeros(len(kernels), dtype=np.bool_),
        np.full(len(kernels), "assumed", dtype="<U9"),
    )
    groups: dict[tuple[str, str | int], list[int]] = {}
    for index, kernel in enumerate(kernels):
        groups.setdefault(_group_of(kernel), []).append(index)
    for (name, detail), indices in groups.items():
        part = _predict_group(name, detail, [kernels[i] for i in indices], profile)
        for whole, piece in zip(_fields(result), _fields(part), strict=True):
            whole[indices] = piece
    return result


def predict_rows(rows: Array, model: KernelModel, gpu: Gpu) -> Prediction:
    """The array-level call: ``rows`` [n, columns of ``physics.COLUMNS[model.kernel]``]."""
    seconds, floor = seconds_of_rows(rows, model, gpu)
    columns = range_columns(model.kernel, rows)
    distance = octaves_outside(columns, model)
    edges, lows, highs = model.intervals.arrays
    region = np.searchsorted(edges, seconds, side="right")
    widen = model.intervals.widening_per_octave * np.minimum(distance, WIDENING_CAP)
    low, high = lows[region], highs[region]
    if model.intervals.novel:
        low, high = _novel(columns, model, low, high)
    low, high = low - widen, high + widen
    inside = distance == 0.0
    return Prediction(
        seconds,
        np.maximum(seconds * np.exp(np.minimum(low, 0.0)), floor),
        seconds * np.exp(np.maximum(high, 0.0)),
        inside,
        np.where(inside, "fitted", "assumed").astype("<U9"),
    )


def seconds_of_rows(rows: Array, model: KernelModel, gpu: Gpu) -> tuple[Array, Array]:
    """(seconds, what no prediction is below) of ``predict_rows``, without their interval."""
    seconds, floor = _seconds_and_floor(rows, model, device_of(model, gpu))
    floor = floor * model.bound_share
    return np.maximum(seconds, floor), floor


def _novel(columns: Mapping[str, Array], model: KernelModel, low: Array, high: Array) -> tuple[Array, Array]:
    """Interval ends no narrower than those of any column whose value lies between the timed ones."""
    for name, errors in model.intervals.novel.items():
        known, values = model.calibrated[name].known, columns[name]
        new = known[known[:-1].searchsorted(values)] != values  # beyond the last: compared with the last
        if new.any():
            low = np.where(new, np.minimum(low, errors.low), low)
            high = np.where(new, np.maximum(high, errors.high), high)
    return low, high


def _seconds_and_floor(rows: Array, model: KernelModel, device: Device) -> tuple[Array, Array]:
    """Chunk by chunk, on all cores when there are several chunks (numpy lets go of the interpreter lock)."""
    seconds, floor = np.empty(len(rows)), np.empty(len(rows))

    def fill(start: int) -> None:
        chunk = slice(start, start + CHUNK_ROWS)
        shape = PHYSICAL_MODELS[model.kernel](rows[chunk], model.coefficients, device)
        seconds[chunk], floor[chunk] = apply_residual(shape, model.residual), shape.floor_s
        nearest = _nearest_timed(rows[chunk], model)
        beyond = (nearest != rows[chunk]).any(axis=1)
        if beyond.any():
            near = PHYSICAL_MODELS[model.kernel](nearest[beyond], model.coefficients, device)
            own = seconds[chunk][beyond] / shape.base_s[beyond]
            ratio = np.sqrt(own * apply_residual(near, model.residual) / near.base_s)
            seconds[chunk][beyond] = shape.base_s[beyond] * ratio

    starts = range(0, len(rows), CHUNK_ROWS)
    if len(starts) < PARALLEL_CHUNKS:
        list(map(fill, starts))
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fill, starts))
    return seconds, floor


def _nearest_timed(rows: Array, model: KernelModel) -> Array:
    """``rows`` with the columns of SMOOTH_COLUMNS no larger than what calibration saw."""
    nearest = rows.copy()
    for index, name in enumerate(physics.COLUMNS[model.kernel]):
        if name in SMOOTH_COLUMNS.get(model.kernel, ()) and name in model.calibrated:
            np.minimum(rows[:, index], model.calibrated[name].high, out=nearest[:, index])
    return nearest


def device_of(model: KernelModel, gpu: Gpu) -> Device:
    return Device(model.compute_flop_per_s, gpu.memory_bandwidth_bytes_per_s, gpu.num_sms, dtype_bytes(model.dtype))


def dtype_bytes(dtype: str) -> int:
    """Bytes an element, or SpecError naming the known dtypes."""
    if dtype not in DTYPE_BYTES:
        raise SpecError(f"dtype: unknown {dtype!r}; known: {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def _group_of(kernel: Kernel) -> tuple[str, str | int]:
    match kernel:
        case Memory(kind=kind):
            return "memory", kind
        case GroupCollective(kind=kind, gpus=gpus):
            return f"collective:{kind}", gpus
        case _:
            return class_of(kernel), kernel.dtype


def _predict_group(name: str, detail: str | int, kernels: list[Kernel], profile: Profile) -> Prediction:
    if name == "memory":
        return _predict_memory(
            str(detail), np.array([float(k.bytes_moved) for k in kernels if isinstance(k, Memory)]), profile
        )
    if name.startswith("collective:"):
        sizes = np.array([float(k.num_bytes) for k in kernels if isinstance(k, GroupCollective)])
        return _predict_collective(name.removeprefix("collective:"), int(detail), sizes, profile)
    dtype_bytes(str(detail))
    return predict_rows(rows_of(kernels), profile.model(name, str(detail)), profile.gpu)


def _predict_memory(kind: str, num_bytes: Array, profile: Profile) -> Prediction:
    costs = {cost.kind: cost for cost in profile.memory}
    cost = costs.get(kind, costs.get("default"))
    if cost is None:
        raise ProfileError(
            f"profile {profile.name}: no memory kernel {kind!r} (it has: {', '.join(costs) or 'none'}); "
            "add it or a 'default' entry under memory, or run `plan calibrate` on this device"
        )
    floor = num_bytes / profile.gpu.memory_bandwidth_bytes_per_s
    seconds = cost.launch_s + np.maximum(num_bytes / cost.bytes_per_s, floor)
    return _with_error(seconds, cost.log_error, np.ones(len(seconds), dtype=np.bool_), cost.tag)


def _predict_collective(kind: str, gpus: int, num_bytes: Array, profile: Profile) -> Prediction:
    seconds, inside, log_error, tag = collective_seconds(kind, gpus, num_bytes, profile)
    return _with_error(seconds, log_error, inside, tag)


def _with_error(seconds: Array, log_error: float, inside: npt.NDArray[np.bool_], tag: str) -> Prediction:
    wide = np.where(inside, log_error, 2.0 * log_error + 0.05)
    tags = np.where(inside, tag, "assumed").astype("<U9")
    return Prediction(seconds, seconds * np.exp(-wide), seconds * np.exp(wide), inside, tags)


_FIELDS: tuple[Callable[[Prediction], npt.NDArray[np.generic]], ...] = (
    lambda p: p.seconds,
    lambda p: p.p05_s,
    lambda p: p.p95_s,
    lambda p: p.inside,
    lambda p: p.tag,
)


def _fields(prediction: Prediction) -> tuple[npt.NDArray[np.generic], ...]:
    return tuple(field(prediction) for field in _FIELDS)
