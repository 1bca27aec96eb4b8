"""The error report of the two-level document's form, beside its controls."""

from __future__ import annotations

import math

import pytest
import torch

from executor.error_report import divergence, error_report
from tests.schemes import tiny_model


def test_error_report_finds_the_documents_form_about_as_wrong_as_uniform_attention() -> None:
    model = tiny_model(heads=4, kv_heads=4, layers=1).model_copy(update={"head_dim": 64})
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(97, (24,), generator=generator) for _ in range(24)]
    per_slice_error, rounding, ignorant = error_report(model, 4, sequences)
    assert [per_slice_error.form, rounding.form, ignorant.form] == ["per_slice", "bf16", "uniform"]
    # bf16 has 8 bits of mantissa: 2⁻⁹ a rounding; a softmax per slice is off by the order of the result itself
    assert rounding.relative_error < 0.02 < 0.4 < per_slice_error.relative_error
    assert rounding.logits_relative_error < 0.05 < per_slice_error.logits_relative_error
    assert rounding.attention_kl < 1e-3 < 0.1 < per_slice_error.attention_kl
    assert min(rounding.head_cosine) > 0.999 > max(per_slice_error.head_cosine)
    assert rounding.top1_agreement > per_slice_error.top1_agreement
    assert len(ignorant.head_cosine) == 4
    assert per_slice_error.relative_error == pytest.approx(ignorant.relative_error, rel=0.25)
    assert per_slice_error.attention_kl == pytest.approx(ignorant.attention_kl, rel=0.25)


def test_divergence_of_a_distribution_is_zero_from_itself_and_ln_2_from_half_of_it() -> None:
    row = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]], dtype=torch.float64)
    flat = torch.full((1, 1, 1, 4), 0.25, dtype=torch.float64)
    assert divergence(row, row[None]).item() == pytest.approx(0.0, abs=1e-15)
    assert divergence(row, flat).item() == pytest.approx(math.log(2))  # every weight is twice the flat one
