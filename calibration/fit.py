"""Fit: timed rows and a device's facts → a profile.

Per class and dtype: physical coefficients by robust least squares in log seconds, networks for the log
residual, split-conformal intervals from a tenth of the rows that neither step saw; then both steps again on
all rows. With few rows the residual is kept only if cross-validation says it helps, and the intervals come
from the same cross-validation (leave-one-out below 60 rows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from calibration.conformal import intervals
from calibration.network import Training, train
from calibration.rows import Table, TimedRow, tables
from calibration.transfers import collective_curves, memory_costs, send_recv
from simulator.cluster import Gpu
from simulator.cost import PHYSICAL_MODELS, apply_residual, dtype_bytes, range_columns
from simulator.errors import ProfileError
from simulator.physics import GEMM_START, Array, Device
from simulator.physics_attention import DECODE_START, PREFILL_START
from simulator.physics_moe import MOE_START
from simulator.profile import KernelModel, Profile, Provenance, Range, Residual, Tag

START: Mapping[str, Mapping[str, float]] = {
    "gemm": GEMM_START,
    "attention_prefill": PREFILL_START,
    "attention_decode": DECODE_START,
    "moe": MOE_START,
}
# Choices a library makes that are not continuous; each combination is fitted, the best kept.
VARIANTS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "gemm": {},
    "attention_prefill": {"tile_q": (64.0, 128.0), "packs_groups": (0.0, 1.0), "splits_prefill": (0.0, 1.0)},
    "attention_decode": {"splits_single_heads": (0.0, 1.0), "split_keys": (128.0, 256.0, 704.0)},
    "moe": {},
}
LOG_REACH = 3.5  # a coefficient may move by a factor e^3.5 = 33 from its start
SHARPNESS_RANGE = (1.0, 12.0)
MAX_PHYSICS_ROWS = 2500
FEW_ROWS = 300
LEAVE_ONE_OUT_ROWS = 60
FOLDS = 10
FASTER_DTYPES = {"fp8": 2.0, "int8": 2.0}  # dense tensor-core rate over bf16, Hopper and Ampere int8


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What the profile says about itself, and how hard to train."""

    name: str = "local"
    source: str = "measured by attnplan"
    licence: str = "own measurement"
    rebuilt_with: str = "plan calibrate"
    tag: Tag = "fitted"
    host_launch_s: float = 5e-6
    seed: int = 0
    training: Training = field(default_factory=Training)


def fit_profile(rows: Sequence[TimedRow], gpu: Gpu, options: FitOptions = FitOptions()) -> Profile:
    """A profile of ``gpu`` from timed rows of any classes; classes without rows are absent."""
    if not rows:
        raise ProfileError(f"{gpu.name}: no rows to fit; measure or import some first")
    sources = Provenance(
        source=options.source, licence=options.licence, num_rows=len(rows), rebuilt_with=options.rebuilt_with
    )
    curves = collective_curves(rows)
    return Profile(
        name=options.name,
        gpu=gpu,
        kernels=tuple(fit_model(table, gpu, options) for table in tables(rows)),
        memory=memory_costs(rows, gpu),
        host_launch_s=options.host_launch_s,
        collectives=curves,
        send_recv=send_recv(curves),
        provenance=(sources,),
    )


def fit_model(table: Table, gpu: Gpu, options: FitOptions) -> KernelModel:
    """One class and dtype; see the module's text."""
    device = device_for(table.dtype, gpu)
    if len(table.seconds) >= FEW_ROWS:
        held = np.random.default_rng(options.seed).random(len(table.seconds)) < 0.1
        trial = _fit_parts(table.take(~held), device, options.training)
        predicted, measured = _predict(table.take(held), trial, device), table.seconds[held]
        parts = _fit_parts(table, device, options.training)
    else:
        parts, predicted, measured = _fit_few(table, device, options)
    coefficients, residual = parts
    floor = PHYSICAL_MODELS[table.kernel](table.x, coefficients, device).floor_s
    ranges = range_columns(table.kernel, table.x)
    return KernelModel.model_validate(
        {
            "kernel": table.kernel,
            "dtype": table.dtype,
            "compute_flop_per_s": device.flop_per_s,
            "bound_share": float(min(1.0, np.min(table.seconds / floor))),
            "coefficients": coefficients,
            "residual": residual,
            "intervals": intervals(predicted, measured),
            "calibrated": {n: Range(low=float(v.min()), high=float(v.max())) for n, v in ranges.items()},
            "tag": options.tag,
            "provenance": Provenance(
                source=options.source,
                licence=options.licence,
                num_rows=len(table.seconds),
                rebuilt_with=options.rebuilt_with,
            ),
        }
    )


Parts = tuple[dict[str, float], Residual | None]


def device_for(dtype: str, gpu: Gpu) -> Device:
    """The datasheet facts at one dtype."""
    flop_per_s = gpu.compute_flop_per_s * (FASTER_DTYPES.get(dtype, 1.0) if gpu.kind == "gpu" else 1.0)
    return Device(flop_per_s, gpu.memory_bandwidth_bytes_per_s, gpu.num_sms, dtype_bytes(dtype))


def fit_coefficients(table: Table, device: Device, seed: int = 0) -> dict[str, float]:
    """Physical coefficients: log least squares, soft L1, on at most MAX_PHYSICS_ROWS rows, best variant."""
    chosen = np.random.default_rng(seed).permutation(len(table.seconds))[:MAX_PHYSICS_ROWS]
    part = table.take(chosen)
    variants = VARIANTS[table.kernel]
    fits = [
        _fit_variant(part, device, dict(zip(variants, values, strict=True))) for values in product(*variants.values())
    ]
    return min(fits, key=lambda item: item[0])[1]


def _fit_variant(table: Table, device: Device, variant: dict[str, float]) -> tuple[float, dict[str, float]]:
    model, start = PHYSICAL_MODELS[table.kernel], START[table.kernel]
    names, log_seconds = list(start), np.log(table.seconds)
    origin = np.log([start[name] for name in names])

    def coefficients(theta: Array) -> dict[str, float]:
        values = dict(zip(names, np.exp(theta).tolist(), strict=True)) | variant
        values["sharpness"] = float(np.clip(values["sharpness"], *SHARPNESS_RANGE))
        return values

    def misses(theta: Array) -> Array:
        error = np.log(model(table.x, coefficients(theta), device).base_s) - log_seconds
        # Weak pull to the start, so that a coefficient no row speaks about stays where physics put it.
        return np.concatenate([error, 0.02 * (theta - origin)])

    bounds = (origin - LOG_REACH, origin + LOG_REACH)
    solved = least_squares(misses, origin, loss="soft_l1", f_scale=0.1, bounds=bounds, max_nfev=60)
    return float(solved.cost), coefficients(solved.x)


def _fit_parts(table: Table, device: Device, training: Training | None) -> Parts:
    coefficients = fit_coefficients(table, device)
    if training is None:
        return coefficients, None
    shape = PHYSICAL_MODELS[table.kernel](table.x, coefficients, device)
    return coefficients, train(shape.features, np.log(table.seconds / shape.base_s), training)


def _predict(table: Table, parts: Parts, device: Device) -> Array:
    shape = PHYSICAL_MODELS[table.kernel](table.x, parts[0], device)
    return np.maximum(apply_residual(shape, parts[1]), 0.0)


def few_row_trainings(training: Training) -> tuple[Training | None, ...]:
    """Candidates for a small table, simplest first: no residual, then stiffer to looser networks."""
    small = replace(training, steps=1500, batch=32, networks=4, width=24, learning_rate=3e-3)
    return None, replace(small, weight_decay=0.3), replace(small, weight_decay=0.03)


def _folds(num_rows: int, seed: int) -> npt.NDArray[np.int64]:
    count = num_rows if num_rows < LEAVE_ONE_OUT_ROWS else FOLDS
    return np.random.default_rng(seed).permutation(np.arange(num_rows) % max(count, 1))


def _fit_few(table: Table, device: Device, options: FitOptions) -> tuple[Parts, Array, Array]:
    """Choose the residual by cross-validated error; its out-of-fold predictions give the intervals."""
    fold = _folds(len(table.seconds), options.seed)
    candidates = few_row_trainings(options.training) if len(table.seconds) >= 20 else (None,)
    coefficients = fit_coefficients(table, device)
    best: tuple[float, Training | None, Array] | None = None
    for training in candidates:
        predicted = np.empty(len(table.seconds))
        for number in np.unique(fold):
            out = fold == number
            parts = (
                _fit_given(table.take(~out), coefficients, device, training)
                if out.sum() < len(fold)
                else (coefficients, None)
            )
            predicted[out] = _predict(table.take(out), parts, device)
        error = float(np.mean(np.abs(np.log(table.seconds / predicted))))
        if best is None or error < 0.95 * best[0]:
            best = (error, training, predicted)
    assert best is not None
    return _fit_given(table, coefficients, device, best[1]), best[2], table.seconds


def _fit_given(table: Table, coefficients: dict[str, float], device: Device, training: Training | None) -> Parts:
    if training is None:
        return coefficients, None
    shape = PHYSICAL_MODELS[table.kernel](table.x, coefficients, device)
    return coefficients, train(shape.features, np.log(table.seconds / shape.base_s), training)
