"""Profile: what the kernels of one GPU type and the collectives of its node cost, as a file.

A kernel class and dtype has one model: coefficients of its physical model, a learned residual
(simulator/residual.py), quantiles of what the model missed on rows held out, and the range it was calibrated in.
What it ignores: temperature, clocks, several kernels sharing a GPU.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from simulator.cluster import Gpu
from simulator.errors import ProfileError, SpecError
from simulator.formats.files import Record, load
from simulator.host import Host
from simulator.interference import Interference
from simulator.residual import AnyResidual

Tag = Literal["measured", "replayed", "emulated", "imported", "fitted", "assumed"]
KernelClass = Literal["gemm", "attention_prefill", "attention_decode", "moe"]
CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
Float64 = npt.NDArray[np.float64]
PRESETS = Path(__file__).parent / "presets" / "profiles"
MAX_NAME_BYTES = 255  # of a file name
DTYPE_ALIASES = {"fp16": "bf16"}  # same tensor-core rate and bytes; used where a profile has no fp16 rows


class Provenance(Record):
    """Where numbers come from."""

    source: str
    licence: str
    num_rows: int = Field(ge=0)
    rebuilt_with: str = Field(description="the command that makes this file again")


class Range(Record):
    low: float
    high: float
    values: tuple[float, ...] = Field(default=(), description="of a column: the distinct values timed, if a grid")

    @cached_property
    def known(self) -> Float64:
        return np.array(self.values)


class Intervals(Record):
    """p05 and p95 of log(measured/predicted) on held-out rows, by region of predicted seconds."""

    edges_s: tuple[float, ...] = Field(description="region i is below edges_s[i]; the last is open")
    low: tuple[float, ...]
    high: tuple[float, ...]
    widening_per_octave: float = Field(ge=0, description="added to both sides a doubling outside the range")
    novel: dict[str, Range] = Field(
        default_factory=dict, description="p05 and p95 where this column's value lies between those timed"
    )

    @model_validator(mode="after")
    def _regions_agree(self) -> Intervals:
        if not len(self.low) == len(self.high) == len(self.edges_s) + 1:
            raise ValueError("low and high need one entry more than edges_s")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("low exceeds high")
        return self

    @cached_property
    def arrays(self) -> tuple[Float64, Float64, Float64]:
        """(edges, low, high)."""
        return np.array(self.edges_s), np.array(self.low), np.array(self.high)


class KernelModel(Record):
    """One kernel class at one dtype."""

    kernel: KernelClass
    dtype: str
    compute_flop_per_s: float = Field(gt=0, description="dense peak of this dtype; bounds every prediction")
    bound_share: float = Field(
        default=1.0, gt=0, le=1, description="below 1 where measured rows beat the datasheet bound (caches)"
    )
    coefficients: dict[str, float]
    residual: Annotated[AnyResidual, Field(discriminator="kind")] | None = None
    intervals: Intervals
    calibrated: dict[str, Range]
    tag: Tag
    provenance: Provenance


class MemoryCost(Record):
    """An element-wise kernel: launch_s + bytes / bytes_per_s."""

    kind: str = Field(description="norm, rope, ...; 'default' for every kind not listed")
    launch_s: float = Field(ge=0)
    bytes_per_s: float = Field(gt=0)
    log_error: float = Field(default=0.3, ge=0, description="half-width of the 90 % interval, log seconds")
    tag: Tag
    source: str


class CollectiveCurve(Record):
    """Seconds of one collective on ``gpus`` GPUs of a node; bytes are nccl-tests' size column."""

    kind: CollectiveKind
    gpus: int = Field(ge=2)
    bytes: tuple[float, ...] = Field(min_length=2)
    seconds: tuple[float, ...] = Field(min_length=2)
    log_error: float = Field(default=0.1, ge=0, description="half-width of the 90 % interval, log seconds")
    tag: Tag
    source: str

    @model_validator(mode="after")
    def _increasing(self) -> CollectiveCurve:
        if len(self.bytes) != len(self.seconds):
            raise ValueError("bytes and seconds differ in length")
        if any(a >= b for a, b in zip(self.bytes, self.bytes[1:], strict=False)) or self.bytes[0] <= 0:
            raise ValueError("bytes must be positive and increase")
        if min(self.seconds) <= 0:
            raise ValueError("seconds must be positive")
        return self


class SendRecv(Record):
    """Point to point inside a node: latency_s + bytes / bandwidth_bytes_per_s."""

    latency_s: float = Field(ge=0)
    bandwidth_bytes_per_s: float = Field(gt=0)
    tag: Tag
    source: str


class Correction(Record):
    """What runs taught about one operation class: log(measured/predicted) = log_offset + log_slope·log(s/center_s), for
    predicted seconds s clamped to [low_s, high_s]; p05 and p95 of what that leaves."""

    operation: str = Field(description="class name in simulator/program.py")
    log_offset: float
    log_slope: float = 0.0
    center_s: float = Field(gt=0)
    low_s: float = Field(gt=0)
    high_s: float = Field(gt=0)
    log_low: float = Field(le=0)
    log_high: float = Field(ge=0)
    num_rows: int = Field(ge=1)

    def factor(self, seconds: float, quantile: Literal["median", "p05", "p95"]) -> float:
        """What to multiply a prediction of ``seconds`` by."""
        clamped = min(max(seconds, self.low_s), self.high_s)
        spread = {"median": 0.0, "p05": self.log_low, "p95": self.log_high}[quantile]
        return math.exp(self.log_offset + self.log_slope * math.log(clamped / self.center_s) + spread)


class Profile(Record):
    """A profile file."""

    schema_version: Literal[1] = 1
    name: str
    gpu: Gpu
    kernels: tuple[KernelModel, ...]
    memory: tuple[MemoryCost, ...] = ()
    host_launch_s: float = Field(default=0.0, ge=0, description="host seconds to issue one kernel")
    collectives: tuple[CollectiveCurve, ...] = ()
    send_recv: SendRecv | None = None
    host: Host | None = Field(default=None, description="CPU devices: what ranks of a node share")
    interference: Interference | None = Field(default=None, description="what transfers take from kernels beside them")
    corrections: tuple[Correction, ...] = Field(default=(), description="learned by `plan calibrate update`")
    step_log_low: float | None = Field(
        default=None, le=0, description="5th percentile of log(measured/predicted) of whole steps that taught it"
    )
    step_log_high: float | None = Field(default=None, ge=0, description="the 95th")
    step_log_apart: float | None = Field(
        default=None,
        ge=0,
        description="95th percentile of what log(measured/predicted) of two plans of one step differ by",
    )
    provenance: tuple[Provenance, ...] = ()

    @model_serializer(mode="wrap")
    def _known(self, as_usual: SerializerFunctionWrapHandler) -> dict[str, object]:
        """What no run has taught is not written: digests of profiles from before, and the app's grids, hold."""
        found: dict[str, object] = as_usual(self)
        return {name: value for name, value in found.items() if name != "step_log_apart" or value is not None}

    @model_validator(mode="after")
    def _each_once(self) -> Profile:
        models = [(model.kernel, model.dtype) for model in self.kernels]
        curves = [(curve.kind, curve.gpus) for curve in self.collectives]
        for names, what in (
            (models, "kernels"),
            (curves, "collectives"),
            ([m.kind for m in self.memory], "memory"),
            ([c.operation for c in self.corrections], "corrections"),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what}: an entry appears twice")
        return self

    def model(self, kernel: str, dtype: str) -> KernelModel:
        """The model of a class and dtype, or ProfileError with what there is."""
        dtypes = {model.dtype: model for model in self.kernels if model.kernel == kernel}
        for wanted in (dtype, DTYPE_ALIASES.get(dtype, dtype)):
            if wanted in dtypes:
                return dtypes[wanted]
        if dtypes:
            known = ", ".join(sorted(dtypes))
            raise ProfileError(
                f"profile {self.name}: {kernel} has no {dtype!r} rows; known dtypes: {known}; "
                "plan a model whose weights are of one of them, or give a profile that has it"
            )
        classes = ", ".join(sorted({model.kernel for model in self.kernels})) or "none"
        raise ProfileError(
            f"profile {self.name}: no {kernel!r} measurements (it has: {classes}); "
            "import a table that has them or run `plan calibrate` on this device"
        )


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PRESETS.glob("*.json")))


def load_profile(name_or_path: str | Path) -> Profile:
    """A preset by name, or a profile file by path."""
    name, path, known = str(name_or_path), Path(name_or_path), preset_names()
    if name in known:
        path = PRESETS / f"{name}.json"
    elif not path.suffix and not (name.isprintable() and len(name.encode()) < MAX_NAME_BYTES and path.exists()):
        raise SpecError(f"profile: unknown {name[:80]!r}; known: {', '.join(known)}, or a path to a .json file")
    return load(path, Profile)
