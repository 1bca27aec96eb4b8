"""What a plan costs, counted and not timed: simulations of the documents' scenario, planned in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MOST_SIMULATED = 120  # 118 of 10,392 candidates; more means that a bound has become looser


def test_planning_the_documents_scenario_proves_every_choice_in_few_simulations(tmp_path: Path) -> None:
    output = tmp_path / "allocation.json"
    command = [sys.executable, "-m", "planner.cli", "make", "fa-pool", "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    searches = [choice["search"] for choice in json.loads(output.read_text())["policy"]]
    assert [search["gap"] for search in searches] == [0.0] * 8
    assert sum(search["simulated"] for search in searches) <= MOST_SIMULATED
