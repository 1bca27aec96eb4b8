"""Residual: what a kernel's physical model misses, learned, as numbers in a profile file.

Log seconds over physical features. Weights are base64 of little-endian float32 inside JSON; nothing is ever unpickled.
``simulator/costs/learned.py`` evaluates it.
"""

from __future__ import annotations

import base64
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from simulator.formats.files import Record

Float32 = npt.NDArray[np.float32]


class Layer(Record):
    """One dense layer, row-major ``[num_inputs, num_outputs]`` float32 in base64."""

    num_inputs: int = Field(ge=1)
    num_outputs: int = Field(ge=1)
    weights_base64: str
    bias_base64: str

    @model_validator(mode="after")
    def _sizes_agree(self) -> Layer:
        if len(decode_floats(self.weights_base64)) != self.num_inputs * self.num_outputs:
            raise ValueError("weights_base64 does not hold num_inputs·num_outputs float32")
        if len(decode_floats(self.bias_base64)) != self.num_outputs:
            raise ValueError("bias_base64 does not hold num_outputs float32")
        return self


class Scaled(Record):
    """Features as a residual reads them: standardised, then clamped to what was seen."""

    feature_mean: tuple[float, ...]
    feature_scale: tuple[float, ...]
    feature_low: tuple[float, ...] = Field(description="standardised; features are clamped to what was seen")
    feature_high: tuple[float, ...]
    low: float = Field(description="smallest log residual seen; outputs are clamped")
    high: float

    @cached_property
    def scaling(self) -> tuple[Float32, Float32, Float32, Float32]:
        """(mean, 1/scale, low, high), float32."""
        mean, scale, low, high = (
            np.array(values, dtype=np.float32)
            for values in (self.feature_mean, self.feature_scale, self.feature_low, self.feature_high)
        )
        return mean, np.float32(1.0) / scale, low, high


class GaussianResidual(Scaled):
    """Small tables: kernel-weighted mean of the rows' own log residuals (a Gaussian process's posterior mean)."""

    kind: Literal["gaussian"] = "gaussian"
    length: float = Field(gt=0, description="of the Matern-5/2 kernel, in standard deviations of the features")
    points_base64: str = Field(description="[rows, features] standardised float32")
    weights_base64: str = Field(description="[rows] float32")

    @model_validator(mode="after")
    def _shapes_agree(self) -> GaussianResidual:
        rows, width = len(decode_floats(self.weights_base64)), len(self.feature_mean)
        if {len(self.feature_scale), len(self.feature_low), len(self.feature_high)} != {width}:
            raise ValueError("feature_mean, feature_scale, feature_low and feature_high differ in length")
        if len(decode_floats(self.points_base64)) != rows * width:
            raise ValueError("points_base64 does not hold rows·features float32")
        return self

    @cached_property
    def points(self) -> Float32:
        return decode_floats(self.points_base64).reshape(-1, len(self.feature_mean))

    @cached_property
    def weights(self) -> Float32:
        return decode_floats(self.weights_base64)


class Residual(Scaled):
    """Networks (tanh between layers, averaged) from standardised, clamped features to log(measured/physical)."""

    kind: Literal["networks"] = "networks"
    networks: tuple[tuple[Layer, ...], ...]

    @model_validator(mode="after")
    def _shapes_agree(self) -> Residual:
        width = len(self.feature_mean)
        if {len(self.feature_scale), len(self.feature_low), len(self.feature_high)} != {width}:
            raise ValueError("feature_mean, feature_scale, feature_low and feature_high differ in length")
        for index, layers in enumerate(self.networks):
            ends = [width, *(layer.num_outputs for layer in layers)]
            if [layer.num_inputs for layer in layers] != ends[:-1] or ends[-1] != 1:
                raise ValueError(f"networks[{index}]: layers do not chain from {width} features to 1 output")
        return self

    @cached_property
    def arrays(self) -> tuple[tuple[tuple[Float32, Float32], ...], ...]:
        """((weights [in, out], bias [out]) by layer) by network."""
        return tuple(
            tuple(
                (
                    decode_floats(layer.weights_base64).reshape(layer.num_inputs, layer.num_outputs),
                    decode_floats(layer.bias_base64),
                )
                for layer in layers
            )
            for layers in self.networks
        )


class TransferredResidual(Record):
    """Another device's residual, and a Gaussian process for what a few local rows still miss."""

    kind: Literal["transferred"] = "transferred"
    donor: Annotated[Residual | GaussianResidual, Field(discriminator="kind")]
    local: GaussianResidual

    @model_validator(mode="after")
    def _same_features(self) -> TransferredResidual:
        if len(self.donor.feature_mean) != len(self.local.feature_mean):
            raise ValueError("donor and local read different numbers of features")
        return self

    @property
    def feature_mean(self) -> tuple[float, ...]:
        return self.local.feature_mean


AnyResidual = Residual | GaussianResidual | TransferredResidual


def decode_floats(text: str) -> Float32:
    """base64 → float32; ValueError when it is neither."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")


def encode_floats(values: npt.ArrayLike) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
