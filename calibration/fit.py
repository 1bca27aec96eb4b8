"""Fit: timed rows and a device's facts → a profile.

Per class and dtype: physical coefficients by robust least squares in log seconds, networks for the log
residual, and split-conformal intervals from rows that neither saw. A small table gets a
Gaussian process instead of networks, and its intervals from folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from calibration.conformal import intervals
from calibration.folds import Predictor, held_out_seconds
from calibration.forest import lessons, teaches, training_for
from calibration.gaussian import fit_gaussian
from calibration.network import Training, train
from calibration.novelty import Fitted, grid, novel_errors
from calibration.rows import Table, TimedRow, tables
from calibration.transferring import donor_model, transferred_model
from calibration.transfers import collective_curves, memory_costs, send_recv
from simulator.cluster import Gpu
from simulator.costs import physics_flash3, physics_flash3_decode
from simulator.costs.columns import range_columns
from simulator.costs.cost import PHYSICAL_MODELS, dtype_bytes
from simulator.costs.learned import apply_residual
from simulator.costs.physics import GEMM_START, Array, Device
from simulator.costs.physics_attention import DECODE_START, PREFILL_START
from simulator.costs.physics_moe import MOE_START, TUNED_FILES, TUNED_START
from simulator.errors import ProfileError
from simulator.profile import Intervals, KernelModel, Profile, Provenance, Range, Tag
from simulator.residual import GaussianResidual, Residual

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
    "moe": {"fixed_tiles": (0.0, 1.0), "spreads_rows": (0.0, 1.0)},
}
# FlashAttention-3 exists for Hopper alone, which its number of SMs tells (H100 PCIe; H100, H200 SXM).
FLASH3_SMS, FLASH3 = (114, 132), 3.0
FLASH3_START: Mapping[str, Mapping[str, float]] = {
    "attention_prefill": physics_flash3.PREFILL_START,
    "attention_decode": physics_flash3_decode.DECODE_START,
}
FLASH3_VARIANTS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "attention_prefill": {"flash_version": (FLASH3,)},
    "attention_decode": {"flash_version": (FLASH3,), "max_splits": (32.0, 128.0)},
}
# The files that vLLM ships tuned for experts are named by device: the A100's is told by its number of SMs.
TUNED_SMS = 108
LOG_REACH = 3.5  # a coefficient may move by a factor e^3.5 = 33 from its start
FEW_REACH = {"cta_power": 0.7, "launch_power": 0.7}  # exponents of a width that few rows hardly vary
# Weights, in log seconds a log unit, that hold a coefficient where it starts when no row speaks about it. Fitted
# starting values (FLASH3_START) are held more firmly when rows are few.
PULL, FIRM_PULL = 0.02, 0.1
SHORT_REACH = {"wide_slowdown": 0.7}  # one odd row of a rare kernel must not carry this one off
# Only the exposed share is bounded: an efficiency fitted above 1 says that a tile's fixed cost took the rest
# over, and no prediction goes below the datasheet's bound anyway.
AT_MOST_ONE = ("exposed_share",)
NUDGE = np.array([[1e-6], [-1e-6]])  # keeps a start inside its bounds, as the solver demands
MAX_PHYSICS_ROWS = 2500
PHYSICS_STEPS, FEW_STEPS = 60, 10  # of the solver, from physics' starting values and from those of all rows
OUTLIER_SPREADS = 4.0
FEW_ROWS = 400
MIN_RESIDUAL_ROWS = 12
CONFORMAL_SHARE, CONFORMAL_ROWS = 0.1, 500  # held from the fit for the intervals, whichever is fewer
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
    donor: Profile | None = None  # of the same generation: its models are corrected instead of new ones fitted


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
    provenance = Provenance(
        source=options.source,
        licence=options.licence,
        num_rows=len(table.seconds),
        rebuilt_with=options.rebuilt_with,
    )
    donor = donor_model(options.donor, table) if options.donor is not None else None
    if donor is not None and len(table.seconds) < FEW_ROWS:
        return transferred_model(table, donor, device, provenance)
    if len(table.seconds) >= FEW_ROWS:
        coefficients, residual, missed = _fit_many(table, device, options)
    else:
        coefficients, residual, missed = _fit_few(table, device)
    floor = PHYSICAL_MODELS[table.kernel](table.x, coefficients, device).floor_s
    calibrated = {
        name: Range(low=float(values.min()), high=float(values.max()), values=grid(values) if missed.novel else ())
        for name, values in range_columns(table.kernel, table.x).items()
    }
    return KernelModel.model_validate(
        {
            "kernel": table.kernel,
            "dtype": table.dtype,
            "compute_flop_per_s": device.flop_per_s,
            "bound_share": float(min(1.0, np.min(table.seconds / floor))),
            "coefficients": coefficients,
            "residual": residual,
            "intervals": missed,
            "calibrated": calibrated,
            "tag": options.tag,
            "provenance": provenance,
        }
    )


Parts = tuple[dict[str, float], Residual | GaussianResidual | None, Intervals]


def _fit_many(table: Table, device: Device, options: FitOptions) -> Parts:
    """Networks; intervals from rows they never saw (split-conformal: a tenth, at most CONFORMAL_ROWS)."""
    held = held_for_intervals(len(table.seconds), options.seed)
    fit, out = table.take(~held), table.take(held)
    training = training_for(table, options.training)
    coefficients, residual = _trained(fit, fit_coefficients(fit, device), device, training)
    predicted = _predict(out, coefficients, residual, device)
    fitted = Fitted(fit, coefficients, device, out, np.log(out.seconds / predicted))
    missed = intervals(predicted, out.seconds).model_copy(update={"novel": novel_errors(fitted, training)})
    return coefficients, residual, missed


def held_for_intervals(num_rows: int, seed: int) -> npt.NDArray[np.bool_]:
    """[num_rows] which rows of a large table the networks never see."""
    return np.asarray(np.random.default_rng(seed).random(num_rows) < min(CONFORMAL_SHARE, CONFORMAL_ROWS / num_rows))


def _trained(
    table: Table, coefficients: dict[str, float], device: Device, training: Training
) -> tuple[dict[str, float], Residual]:
    shape = PHYSICAL_MODELS[table.kernel](table.x, coefficients, device)
    steps = min(training.steps, max(3000, training.steps_per_row * len(table.seconds)))
    features, log_residual = shape.features, np.log(table.seconds / shape.base_s)
    if teaches(table):
        features, log_residual = lessons(table, coefficients, device, log_residual, training.seed)
    return coefficients, train(features, log_residual, replace(training, steps=steps))


def _predict(
    table: Table, coefficients: dict[str, float], residual: Residual | GaussianResidual | None, device: Device
) -> Array:
    shape = PHYSICAL_MODELS[table.kernel](table.x, coefficients, device)
    return np.maximum(apply_residual(shape, residual), shape.floor_s)


def _fit_few(table: Table, device: Device) -> Parts:
    """A Gaussian process on what the physics leaves; intervals from what was missed on rows out of their fold."""
    coefficients = fit_coefficients(table, device)
    held_out = held_out_seconds(table, lambda rest: _few_predictor(rest, device, coefficients))
    return coefficients, _gaussian(table, coefficients, device), intervals(held_out, table.seconds, between=True)


def _few_predictor(table: Table, device: Device, start: dict[str, float]) -> Predictor:
    """What ``table``'s rows teach, sought from the coefficients ``start``, whose variant is kept."""
    names, variants = starts(table.kernel, device)
    variant = {name: start[name] for name in variants}
    coefficients = _fit_variant(table, device, names, variant, start)[1]
    gaussian = _gaussian(table, coefficients, device)
    return lambda other: _predict(other, coefficients, gaussian, device)


def _gaussian(table: Table, coefficients: dict[str, float], device: Device) -> GaussianResidual | None:
    if len(table.seconds) < MIN_RESIDUAL_ROWS:
        return None
    shape = PHYSICAL_MODELS[table.kernel](table.x, coefficients, device)
    return fit_gaussian(shape.features, without_outliers(np.log(table.seconds / shape.base_s)))


def without_outliers(log_residual: Array) -> Array:
    """Log residuals pulled in to OUTLIER_SPREADS robust spreads of their median: few rows would bend to one."""
    middle = np.median(log_residual)
    spread = 1.4826 * float(np.median(np.abs(log_residual - middle)))  # of a normal distribution, its deviation
    return np.asarray(np.clip(log_residual, middle - OUTLIER_SPREADS * spread, middle + OUTLIER_SPREADS * spread))


def device_for(dtype: str, gpu: Gpu) -> Device:
    """The datasheet facts at one dtype."""
    flop_per_s = gpu.compute_flop_per_s * (FASTER_DTYPES.get(dtype, 1.0) if gpu.kind == "gpu" else 1.0)
    return Device(flop_per_s, gpu.memory_bandwidth_bytes_per_s, gpu.num_sms, dtype_bytes(dtype))


def fit_coefficients(table: Table, device: Device, seed: int = 0) -> dict[str, float]:
    """Physical coefficients: log least squares, soft L1, on at most MAX_PHYSICS_ROWS rows, best variant."""
    chosen = np.random.default_rng(seed).permutation(len(table.seconds))[:MAX_PHYSICS_ROWS]
    part = table.take(chosen)
    start, variants = starts(table.kernel, device)
    fits = [
        _fit_variant(part, device, start, dict(zip(variants, values, strict=True)))
        for values in product(*variants.values())
    ]
    return min(fits, key=lambda item: item[0])[1]


def starts(kernel: str, device: Device) -> tuple[Mapping[str, float], Mapping[str, tuple[float, ...]]]:
    """(coefficients to start from, variants to try) of a class on a device."""
    if device.num_sms in FLASH3_SMS and kernel in FLASH3_START:
        return FLASH3_START[kernel], FLASH3_VARIANTS[kernel]
    if device.num_sms == TUNED_SMS and kernel == "moe":
        return {**MOE_START, **TUNED_START}, {**VARIANTS[kernel], "fixed_tiles": (0.0, 1.0, TUNED_FILES)}
    return START[kernel], VARIANTS[kernel]


def _fit_variant(
    table: Table,
    device: Device,
    start: Mapping[str, float],
    variant: dict[str, float],
    begin: Mapping[str, float] | None = None,
) -> tuple[float, dict[str, float]]:
    """(cost, coefficients) pulled to ``start``; sought from there, or for a fold from ``begin``, those of all rows."""
    model = PHYSICAL_MODELS[table.kernel]
    names, log_seconds = list(start), np.log(table.seconds)
    origin = np.log([start[name] for name in names])

    def coefficients(theta: Array) -> dict[str, float]:
        return dict(zip(names, np.exp(theta).tolist(), strict=True)) | variant

    def misses(theta: Array) -> Array:
        error = np.log(model(table.x, coefficients(theta), device).base_s) - log_seconds
        return np.concatenate([error, pull * (theta - origin)])

    few = len(log_seconds) < FEW_ROWS
    pull = FIRM_PULL if few and variant.get("flash_version") == FLASH3 else PULL
    highest = [0.0 if name in AT_MOST_ONE else np.inf for name in names]
    short = SHORT_REACH | FEW_REACH if few else SHORT_REACH
    reach = np.array([short.get(name, LOG_REACH) for name in names])
    bounds = np.array([origin - reach, np.minimum(origin + reach, highest)])
    steps = FEW_STEPS if begin is not None else PHYSICS_STEPS
    solved_x = origin if begin is None else np.clip(np.log([begin[name] for name in names]), *(bounds + NUDGE))
    # One odd row among few would bend the coefficients: in the end it must count for little.
    for loss in ("cauchy",) if begin is not None else ("soft_l1", "cauchy") if few else ("soft_l1",):
        solved = least_squares(misses, solved_x, loss=loss, f_scale=0.1, bounds=bounds, max_nfev=steps)
        solved_x = solved.x
    return float(solved.cost), coefficients(solved.x)
