"""Holdout's table: what is said of a class is said of its held-out rows."""

from __future__ import annotations

from calibration.holdout import Line, by_class


def test_a_class_is_covered_as_its_rows_are_and_lines_without_intervals_do_not_count() -> None:
    found = [
        Line("A", "gemm bf16", "random", 10, 300, 1.0, 2.0, coverage=90.0),
        Line("B", "gemm fp8", "unseen", 10, 100, 1.0, 2.0, coverage=70.0),
        Line("A", "moe bf16", "random", 10, 5, 1.0, 2.0, coverage=100.0),
        Line("A", "nccl", "beyond", 10, 5, 1.0, 2.0),
    ]
    assert by_class(found) == "gemm 85.0 %, moe 100.0 %"
