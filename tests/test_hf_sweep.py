"""Every configuration at hand gets a plan or one line, on three clusters: the committed table, and two run anew."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.hf_sweep import CLUSTERS, ROWS, run, table
from tests.shared_data import shared

COMMITTED = Path(__file__).resolve().parents[1] / ROWS


def test_the_committed_sweep_has_a_plan_or_one_line_for_every_model_and_cluster() -> None:
    rows = [json.loads(line) for line in COMMITTED.read_text().splitlines()]
    models = {row["model"] for row in rows}
    assert {(row["model"], row["cluster"]) for row in rows} == {(m, c) for m in models for c in CLUSTERS}
    for row in rows:
        assert "traceback" not in row
        if "refused" in row:
            assert "\n" not in row["refused"]
            assert row["exit_code"] == 2
        else:
            assert min(row[phase]["headroom_bytes"] for phase in ("prefill", "decode")) >= 0
    assert COMMITTED.with_suffix(".md").read_text() == table(rows)
    configs = shared("hf-configs").glob("*.json")
    assert models == {path.stem.removesuffix("_config") for path in configs}


def test_a_small_model_is_planned_and_latent_attention_refused_by_name() -> None:
    folder = shared("hf-configs")
    small = run("small", (str(folder / "Qwen--Qwen3-0.6B_config.json"), "dgx-h200-2", 1))
    assert {"prefill", "decode"} <= set(small), small
    assert small["prefill"]["gpus"] <= 16
    latent = run("latent", (str(folder / "deepseek-ai--DeepSeek-V3_config.json"), "dgx-h200-2", 1))
    assert "not modelled: multi-head latent attention" in latent["refused"]
    assert str(folder) not in latent["refused"]
