"""What a problem remembers of its kernels is what would be predicted of them now."""

from __future__ import annotations

import dataclasses

import numpy as np

from planner.predicted import Predicted
from simulator.costs.cost import predict
from simulator.kernel import AttentionDecode, Gemm, Memory
from simulator.profile import load_profile

KERNELS = (Gemm(64, 4096, 4096, "bf16"), Memory("add", 1 << 20), AttentionDecode(8, 1024, 4, 4, 128, 0, "bf16"))


def test_remembered_predictions_are_those_of_every_kernel_alone_on_its_own_gpu() -> None:
    predicted, profiles = Predicted(), [load_profile(name) for name in ("a100-sxm4-80gb", "h100-sxm")]
    for kernels in (KERNELS[:2], KERNELS[::-1], (KERNELS[0], KERNELS[0]), ()):
        for profile in profiles:
            found = predicted(kernels, profile)
            for field in dataclasses.fields(found):
                alone = [getattr(predict([kernel], profile), field.name)[0] for kernel in kernels]
                assert np.array_equal(getattr(found, field.name), alone), field.name
    assert len(predicted.known) == 2 * len(KERNELS)
