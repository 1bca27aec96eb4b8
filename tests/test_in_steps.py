"""Kernels in steps: what programs that were played whole teach a profile."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.in_steps import preferred, rows_in_steps, with_classes
from calibration.rows import TimedRow
from calibration.teachers import DENSE, ROUTED, lectures, one_core
from simulator.costs.pricing import price
from simulator.kernel import Gemm, Memory
from simulator.program import Collective, Recv, Send
from tests.hand_made import CPU, compute, program
from tests.test_pricing import profile


def test_teachers_show_every_operation_that_cpu_plans_have_but_slices_of_heads() -> None:
    shown = {type(op).__name__ for one in lectures() for built in one.programs for ops in built.ranks for op in ops}
    dense = {"Embed", "Norm", "Linear", "Rope", "Store", "Attention", "MergeAttention", "Activation", "Add", "Slice",
             "Concat", "Sample"}  # fmt: skip
    assert shown - {"Send", "Recv", "Collective"} == dense | {"Route", "Dispatch", "Experts", "Combine"}
    assert (DENSE.experts, ROUTED.experts is None) == (None, False)


def test_what_a_class_takes_beyond_its_kernels_is_removed_and_views_are_timed() -> None:
    built = program([compute() for _ in range(92)])
    fitted = profile(gpu=CPU)
    priced = price(built, one_core(CPU), {"cpu": fitted}).kernels_s[0]
    learned = with_classes(fitted, [(built, [(1.5 * priced).tolist()])], one_core(CPU))
    again = price(built, one_core(CPU), {"cpu": learned}).kernels_s[0]
    assert np.log(again / priced) == pytest.approx(np.full(92, np.log(1.5) * 92 / (92 + 8)))  # shrunk by 8 rows
    assert learned.host is not None
    assert learned.host.view_s == 0.0  # there were none


def test_rows_in_steps_come_before_those_alone_but_for_larger_memory_kernels() -> None:
    gemm, other = Gemm(1, 2, 3, "fp32"), Gemm(4, 5, 6, "fp32")
    small, large = Memory("copy", 1000), Memory("copy", 9000)
    in_steps = [TimedRow(gemm, 2.0, "steps"), TimedRow(Memory("copy", 2000), 1.0, "steps")]
    alone = [TimedRow(kernel, 1.0, "alone") for kernel in (gemm, other, small, large)]
    kept = [(row.kernel, row.source) for row in preferred(in_steps, alone)]
    assert kept == [(gemm, "steps"), (Memory("copy", 2000), "steps"), (other, "alone"), (large, "alone")]


def test_a_kernel_met_twice_is_one_row_and_transfers_are_none() -> None:
    lecture = next(lectures())
    built = lecture.programs[1]
    seconds = [[float(number) for number, _ in enumerate(operations)] for operations in built.ranks]
    rows = rows_in_steps([(built, seconds)])
    assert len({row.kernel for row in rows}) == len(rows) > 5
    assert any(isinstance(op, Send | Recv | Collective) for ops in built.ranks for op in ops)
