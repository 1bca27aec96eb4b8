"""The accuracy table: what profiles predict for rows they were not fitted on (``docs/accuracy.md``).

Every line is a fit of its own on the rows a split leaves, by the same function that makes shipped profiles.
MAPE is the mean of |predicted/measured − 1| in per cent, p90 its ninth decile, coverage the share of held-out
rows inside the 90 % interval. Beside ours: the datasheet roofline, a fitted roofline (launch + the slower of
fitted FLOP/s and bytes/s), the physical model alone and the documents' layers on raw columns.

    python -m calibration.holdout [SYSTEM [CLASSES]]    some lines only; `plan calibrate holdout` prints all
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from calibration.fit import START, VARIANTS, FitOptions, device_for, fit_model
from calibration.importers import aiconfigurator
from calibration.predictor import paired_samples, raw_predictor, train_predictor
from calibration.presets import FRAMEWORK, GPU_NAMES
from calibration.presets import SYSTEMS as PRESET_SYSTEMS
from calibration.rows import Table, TimedRow, tables
from calibration.splits import SPLITS, TEST_SHARE, Mask
from calibration.transfers import collective_curves
from simulator.cluster import Gpu
from simulator.costs.collective_curve import curve_seconds
from simulator.costs.cost import PHYSICAL_MODELS, predict_rows
from simulator.costs.physics import Array
from simulator.kernel import GroupCollective
from simulator.profile import CollectiveCurve, load_profile

CURVE_POINTS = 8  # measured sizes a curve keeps in the NCCL line
LARGE_BYTES = 128e6


@dataclass(frozen=True, slots=True)
class Line:
    """One split of one class on one device; errors in per cent, NaN where a method was not run."""

    device: str
    kernel: str
    split: str
    num_fitted: int
    num_held_out: int
    mape: float
    p90: float
    coverage: float = float("nan")
    datasheet_roof: float = float("nan")
    fitted_roof: float = float("nan")
    physical: float = float("nan")
    raw_mlp: float = float("nan")


def percent_errors(predicted_s: Array, measured_s: Array) -> Array:
    return np.asarray(100.0 * np.abs(predicted_s / measured_s - 1.0))


def fitted_roof(fit: Table, held: Table, gpu: Gpu) -> Array:
    """launch + max(FLOPs/a, bytes/b) with launch, a and b fitted: what a roofline can do at best."""
    device = device_for(fit.dtype, gpu)
    coefficients = dict.fromkeys(_any_coefficients(fit.kernel), 1.0)

    def parts(table: Table) -> Array:
        return PHYSICAL_MODELS[table.kernel](table.x, coefficients, device).floor_s

    def seconds(theta: Array, floor: Array) -> Array:
        return np.asarray(np.exp(theta[0]) + np.exp(theta[1]) * floor)

    floor, log_seconds = parts(fit), np.log(fit.seconds)
    start = np.array([np.log(float(fit.seconds.min())), 0.0])
    solved = least_squares(lambda t: np.log(seconds(t, floor)) - log_seconds, start, loss="soft_l1", f_scale=0.1)
    return seconds(solved.x, parts(held))


def _any_coefficients(kernel: str) -> tuple[str, ...]:
    return (*START[kernel], *VARIANTS[kernel])


DONORS = {"H100-SXM": "h200-sxm", "H200-SXM": "h100-sxm"}
POINTS = ("200 points", "50 points")


def transfer_lines(table: Table, gpu: Gpu, options: FitOptions) -> Iterator[Line]:
    """The shipped profile of the same generation plus the N points, errors on all other rows."""
    if gpu.name not in DONORS or table.dtype != "bf16":
        return
    donor = load_profile(DONORS[gpu.name])
    for split in POINTS:
        found = line(table, split, gpu, replace(options, donor=donor))
        yield replace(found, split=f"{split} and {donor.gpu.name}'s profile", raw_mlp=float("nan"))


def line(table: Table, split: str, gpu: Gpu, options: FitOptions) -> Line:
    """Fit on what ``split`` leaves, predict what it holds out."""
    mask: Mask = SPLITS[table.kernel][split](table)
    fit, held = table.take(~mask), table.take(mask)
    model = fit_model(fit, gpu, options)
    prediction = predict_rows(held.x, model, gpu)
    errors = percent_errors(prediction.seconds, held.seconds)
    shape = PHYSICAL_MODELS[table.kernel](held.x, model.coefficients, device_for(table.dtype, gpu))
    covered = (prediction.p05_s <= held.seconds) & (held.seconds <= prediction.p95_s)

    def mean(seconds: Array) -> float:
        return float(percent_errors(seconds, held.seconds).mean())

    return Line(
        device=gpu.name,
        kernel=f"{table.kernel} {table.dtype}",
        split=split,
        num_fitted=len(fit.seconds),
        num_held_out=len(held.seconds),
        mape=float(errors.mean()),
        p90=float(np.quantile(errors, 0.9)),
        coverage=100.0 * float(covered.mean()),
        datasheet_roof=mean(shape.floor_s),
        fitted_roof=mean(fitted_roof(fit, held, gpu)),
        physical=mean(shape.base_s),
        raw_mlp=mean(raw_predictor(fit, options.seed)(held)),
    )


def nccl_lines(rows: Sequence[TimedRow], device: str) -> Iterator[Line]:
    """Curves from CURVE_POINTS sizes (log-spaced, both ends kept), errors on the others; and sizes beyond."""
    curves = collective_curves([row for row in rows if isinstance(row.kernel, GroupCollective)])
    inner: list[Array] = []
    beyond: list[Array] = []
    for curve in curves:
        sizes, seconds = np.array(curve.bytes), np.array(curve.seconds)
        kept = np.unique(np.round(np.linspace(0, len(sizes) - 1, CURVE_POINTS)).astype(int))
        few = curve.model_copy(update={"bytes": tuple(sizes[kept]), "seconds": tuple(seconds[kept])})
        out = np.setdiff1d(np.arange(len(sizes)), kept)
        inner.append(percent_errors(curve_seconds(sizes[out], few), seconds[out]))
        small = sizes < LARGE_BYTES
        short = curve.model_copy(update={"bytes": tuple(sizes[small]), "seconds": tuple(seconds[small])})
        beyond.append(percent_errors(curve_seconds(sizes[~small], short), seconds[~small]))
    anchored = [percent_errors(*pair) for pair in _from_fewer_gpus(curves)]
    for split, parts, fitted in (
        ("8 GPUs from 2 and 4 + 3 anchors", anchored, 3 * len(anchored)),
        (f"{CURVE_POINTS} points a curve", inner, CURVE_POINTS * len(curves)),
        ("beyond 128 MB", beyond, sum(len(c.bytes) for c in curves) - sum(map(len, beyond))),
    ):
        errors = np.concatenate(parts)
        yield Line(device, "nccl", split, fitted, len(errors), float(errors.mean()), float(np.quantile(errors, 0.9)))


def _from_fewer_gpus(curves: Sequence[CollectiveCurve]) -> Iterator[tuple[Array, Array]]:
    """(predicted, measured) on 8 GPUs: :func:`continued` from 2 and 4, corrected at three anchor sizes."""
    by_gpus = {(curve.kind, curve.gpus): curve for curve in curves}
    for (kind, gpus), curve in by_gpus.items():
        if gpus != 8 or not {(kind, 2), (kind, 4)} <= set(by_gpus):
            continue
        sizes, seconds = np.array(curve.bytes), np.array(curve.seconds)
        two, four = (np.log(curve_seconds(sizes, by_gpus[kind, count])) for count in (2, 4))
        guess = continued(np.log(sizes), two, four)
        anchors = np.array([0, len(sizes) // 2, len(sizes) - 1])
        missed = np.log(seconds[anchors]) - guess[anchors]
        corrected = guess + np.interp(np.log(sizes), np.log(sizes[anchors]), missed)
        rest = np.setdiff1d(np.arange(len(sizes)), anchors)
        yield np.exp(corrected[rest]), seconds[rest]


def continued(log_bytes: Array, two: Array, four: Array) -> Array:
    """log seconds on 8 GPUs from those on 2 and 4: latency goes on growing as from 2 to 4, bandwidth-bound time as
    (p − 1)/p, the share of a ring's traffic (every kind's, all-reduce twice); the curve's slope, 0 where latency and
    1 where bandwidth bounds, mixes them. Chosen among six rules on L40S, B200, B300 and RTX PRO 6000 tables."""
    slope = np.gradient(four, log_bytes)
    smooth = np.convolve(np.pad(slope, 1, mode="edge"), (0.25, 0.5, 0.25), "valid")
    bound = np.clip(smooth, 0.0, 1.0)
    latency = float(np.median((four - two)[:4]))
    return np.asarray(four + bound * np.log((7.0 / 8.0) / (3.0 / 4.0)) + (1.0 - bound) * latency)


def predictor_line(rows: Sequence[TimedRow], gpu: Gpu, seed: int) -> Iterator[Line]:
    """The documents' predictor on pairs: random fifth, and sequences beyond 4096 when fitted below.

    Features and times go in as logarithms, which the documents do not ask for and which helps it.
    """
    by_class = {(table.kernel, table.dtype): table for table in tables(rows)}
    if not {("attention_prefill", "bf16"), ("moe", "bf16")} <= set(by_class):
        return
    pairs = paired_samples(
        by_class["attention_prefill", "bf16"], by_class["moe", "bf16"], gpu.memory_bandwidth_bytes_per_s
    )
    x, y = pairs
    random = np.random.default_rng(seed).random(len(x)) < TEST_SHARE
    for split, mask in (("random", random), ("beyond seq > 4096", x[:, 0] > 4096)):
        predicted = train_predictor(np.log2(x[~mask]), y[~mask], seed)(np.log2(x[mask]))
        errors = percent_errors(predicted, np.exp(y[mask]))
        for index, name in enumerate(("T_attention", "T_moe")):
            yield Line(
                gpu.name,
                f"documents' predictor {name}",
                split,
                int((~mask).sum()),
                int(mask.sum()),
                float(errors[:, index].mean()),
                float(np.quantile(errors[:, index], 0.9)),
            )


def table(
    rows: Sequence[TimedRow], gpu: Gpu, options: FitOptions, kernels: Sequence[str] = tuple(SPLITS)
) -> Iterator[Line]:
    """Every line of one device, as it is ready: bf16 (and any other dtype's random split)."""
    for part in tables(rows):
        if part.kernel not in kernels:
            continue
        for split in SPLITS[part.kernel]:
            mask = SPLITS[part.kernel][split](part)
            if mask.any() and not mask.all() and (part.dtype == "bf16" or split == "random"):
                yield line(part, split, gpu, options)
        yield from transfer_lines(part, gpu, options)
    yield from nccl_lines(rows, gpu.name)
    yield from predictor_line(rows, gpu, options.seed)


HEADER = (
    "| device | class | held out | fitted | held | MAPE | p90 | coverage | datasheet roof | fitted roof "
    "| physical | raw MLP |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def render(entry: Line) -> str:
    """One row of the Markdown table; a dash where a method was not run."""

    def number(value: float, digits: int) -> str:
        return "–" if np.isnan(value) else f"{value:.{digits}f}"

    others = (entry.datasheet_roof, entry.fitted_roof, entry.physical, entry.raw_mlp)
    cells = [entry.device, entry.kernel, entry.split, str(entry.num_fitted), str(entry.num_held_out)]
    cells += [f"**{entry.mape:.2f}**", number(entry.p90, 1), number(entry.coverage, 1)]
    return "| " + " | ".join([*cells, *(number(value, 1) for value in others)]) + " |"


def lines(names: Sequence[str], folder: Path | None = None, kernels: Sequence[str] = tuple(SPLITS)) -> Iterator[Line]:
    """The table's lines for presets by name, or for AIConfigurator's system names; all presets when empty."""
    for name in names or PRESET_SYSTEMS:
        system = PRESET_SYSTEMS.get(name, name)
        rows = aiconfigurator.load_rows(folder, system, FRAMEWORK).rows
        gpu = aiconfigurator.load_gpu(folder, system, GPU_NAMES.get(name, system))
        yield from table(rows, gpu, FitOptions(name=name), kernels)


def print_table(system: str | None = None, *, as_json: bool = False, kernels: Sequence[str] = tuple(SPLITS)) -> None:
    """Print the table line by line as fits finish: Markdown, or one JSON array."""
    found = lines((system,) if system else (), kernels=kernels)
    if as_json:
        rows = [{k: v for k, v in asdict(entry).items() if v == v} for entry in found]  # NaN: not run
        print(json.dumps(rows, indent=2))
        return
    print(HEADER, flush=True)
    printed = []
    for entry in found:
        print(render(entry), flush=True)
        printed.append(entry)
    print("\ncovered, of all held-out rows of a class: " + by_class(printed))


def by_class(found: Iterable[Line]) -> str:
    """Each kernel class's coverage over the held-out rows of all its lines that have one."""
    covered: dict[str, float] = {}
    held: dict[str, int] = {}
    for entry in found:
        if not np.isnan(entry.coverage):
            name = entry.kernel.split()[0]
            covered[name] = covered.get(name, 0.0) + entry.coverage * entry.num_held_out
            held[name] = held.get(name, 0) + entry.num_held_out
    return ", ".join(f"{name} {covered[name] / held[name]:.1f} %" for name in held)


if __name__ == "__main__":
    print_table(sys.argv[1] if len(sys.argv) > 1 else None, kernels=sys.argv[2:] or tuple(SPLITS))
