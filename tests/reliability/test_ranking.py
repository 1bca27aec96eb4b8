"""Ranking: over the campaign's committed runs, plans predicted faster were measured faster.

Kendall's τ of predicted against measured step times, plan against plan, in every (model, phase, length) of the
campaign; the figures themselves come from ``benchmarks``, this recomputes them from the rows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from statistics import median

import pytest
from scipy.stats import kendalltau

from tests.reliability.scale import ROOT, record

RESULTS = ROOT / "benchmarks" / "results" / "validate_local.json"
LEAST_MEDIAN = 0.6  # the committed campaign has 0.76 and 0.79; the goal, 0.9, is missed and the table says so


def test_committed_predictions_rank_the_plans_as_the_runs_did() -> None:
    cells: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
    for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]:
        cell = row["model"], row["phase"], row["tokens"]
        cells[cell].append((row["predicted_s"], median(row["measured_s"])))
    for phase in ("prefill", "decode"):
        taus = [kendalltau(*zip(*pairs, strict=True)).statistic for cell, pairs in cells.items() if cell[1] == phase]
        assert len(taus) >= 4
        assert all(len(pairs) >= 10 for pairs in cells.values())
        assert median(taus) >= LEAST_MEDIAN
        record(
            "ranking",
            phase=phase,
            cells=len(taus),
            kendall_tau_median=round(median(taus), 2),
            worst=round(min(taus), 2),
        )


def test_the_statistic_tells_a_reversed_ranking() -> None:
    assert kendalltau([1, 2, 3, 4], [4, 3, 2, 1]).statistic == pytest.approx(-1.0)
