"""The peers' table is what its measurement says."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers import CASES, TOOLS, table

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "peers.json"


def test_the_committed_table_is_made_from_the_committed_measurement() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert table(result) == RESULT.with_suffix(".md").read_text(encoding="utf-8")


def test_every_tool_answered_every_case_or_says_that_it_cannot() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert result["cases"] == CASES
    for tool in TOOLS:
        assert len(result["predicted"][tool]) == len(CASES)
        for one in result["predicted"][tool]:
            assert "error" in one or (one["ttft_s"] > 0 and one["tpot_s"] > 0)
