"""Ranking: over the campaign's committed runs, plans predicted faster were measured faster.

Kendall's τ of predicted against measured step times, plan against plan, in every (place, model, phase, length) of
the campaign, recomputed from the committed rows by another implementation than the campaign's own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from statistics import median

import pytest
from scipy.stats import kendalltau

from tests.reliability.scale import ROOT, record

RESULTS = ROOT / "benchmarks" / "results" / "validate.json"
LEAST_MEDIAN = 0.75  # the goal of 0.9 is missed, and the table says by how much


def test_committed_predictions_rank_the_plans_as_the_runs_did() -> None:
    campaign = json.loads(RESULTS.read_text(encoding="utf-8"))
    cells: dict[tuple[str, str, str, int], list[tuple[float, float]]] = defaultdict(list)
    for row in campaign["rows"]:
        assert len(row["measured_s"]) == campaign["rounds"]
        cell = row["phase"], row["place"], row["model"], row["tokens"]
        cells[cell].append((row["predicted_s"], median(row["measured_s"])))
    assert all(len(pairs) >= 10 for pairs in cells.values())
    for phase in ("prefill", "decode"):
        taus = [kendalltau(*zip(*pairs, strict=True)).statistic for cell, pairs in cells.items() if cell[0] == phase]
        assert len(taus) >= 16
        assert median(taus) >= LEAST_MEDIAN
        said = campaign["figures"]["predicted beforehand"][phase]
        assert (said["cells"], said["tau_median"]) == (len(taus), pytest.approx(median(taus), abs=1e-9))
        record(
            "ranking",
            phase=phase,
            cells=len(taus),
            kendall_tau_median=round(median(taus), 2),
            worst=round(min(taus), 2),
        )


def test_the_statistic_tells_a_reversed_ranking() -> None:
    assert kendalltau([1, 2, 3, 4], [4, 3, 2, 1]).statistic == pytest.approx(-1.0)
