"""Published measurements: the committed figures are the sources', and stated hardware simulates to within 15 %."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from calibration.importers.nccl_tests import read_run
from planner.published import all_reduce, dispatch, ring_attention
from planner.published.all_reduce import LOGS, Log
from planner.published.comparison import Comparison
from simulator.kernel import attended_pairs
from tests.shared_data import shared

LOG_FILES = {
    "3 × 8 A100": "a100_3x8_allreduce_4hdr_issue119_excerpt.log",
    "2 × 8 A100": "a100_2x8_allreduce_oci_bmgpu_b4_8.log",
    "2 × 8 H100": "h100_2x8_allreduce_oci.log",
    "2 × 4 H100": "h100_2x4_allreduce_dgx.log",
    "2 × 4 GH200": "gh200_2x4_allreduce_cscs_slingshot.log",
    "18 × 4 GB200": "gb200_18x4_allreduce_coreweave.log",
}
WITH_CURVES = [log for log in LOGS if log.profile is not None and log.name != "2 × 4 H100, 4 NICs of 400 Gb/s"]


def published(entry: str) -> dict[str, object]:
    rows = yaml.safe_load((shared("published-scaling") / "published.yaml").read_text())
    return next(row for row in rows if row["id"] == entry)


def outside(found: tuple[Comparison, ...]) -> list[str]:
    return [f"{one.what}: {one.simulated:.4g} for {one.measured:.4g} {one.unit}" for one in found if not one.within]


def test_rings_of_attention_on_eight_h800_are_within_15_percent() -> None:
    found = ring_attention.comparisons()
    assert len(found) == 8
    assert outside(found) == []


def test_dispatch_and_combine_on_h800_are_within_15_percent() -> None:
    found = dispatch.comparisons()
    assert len(found) == 8
    assert outside(found) == []


@pytest.mark.parametrize("log", WITH_CURVES, ids=lambda log: log.name)
def test_all_reduces_over_nodes_with_known_nics_are_within_15_percent(log: Log) -> None:
    assert outside(all_reduce.comparisons(log)) == []


def test_every_log_that_states_its_nics_is_held_to_the_margin() -> None:
    stated = {
        path.with_suffix(".log").name
        for path in shared("nccl-tests").glob("*.yaml")
        if (facts := yaml.safe_load(path.read_text())).get("nic_facts") == "stated" and facts["nodes"] > 1
    }
    assert stated == {LOG_FILES[log.name.split(",")[0]] for log in LOGS if log.stated and log in WITH_CURVES}


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_logs_hold_the_published_rows(log: Log) -> None:
    path: Path = shared("nccl-tests") / LOG_FILES[log.name.split(",")[0]]
    wanted = {row.num_bytes: row.duration_s for row in read_run(path).rows if row.num_bytes >= all_reduce.LEAST_BYTES}
    assert {size: us * 1e-6 for size, us in log.rows.items()} == pytest.approx(wanted)


def test_attention_and_dispatch_hold_the_published_rows() -> None:
    for backward, entry in (
        (False, "ring_flash_attn_8xh800_batch_fwd"),
        (True, "ring_flash_attn_8xh800_batch_fwd_bwd"),
    ):
        row = published(entry)["measured_iter_per_s"]
        assert isinstance(row, dict)
        ours = ring_attention.MEASURED_PER_S[backward]
        assert [row["flash_attn_one_gpu_8k"], row["ring"], row["zigzag_ring"], row["striped"]] == list(ours.values())
    rows = published("deepep_v1_normal_h800")["measured_bottleneck_gbyte_s"]
    assert isinstance(rows, list)
    assert {row["ep"]: {way: row[way] for way in ("dispatch", "combine")} for row in rows} == dispatch.MEASURED


@pytest.mark.parametrize("scheme", ["ring", "zigzag", "striped"])
def test_the_schedules_score_every_pair_of_the_whole_sequence_once(scheme: ring_attention.Scheme) -> None:
    total = 0
    for rank in range(ring_attention.RANKS):
        for step in range(ring_attention.RANKS):
            block = ring_attention.block_of(scheme, rank, step)
            if block is not None:
                total += attended_pairs(block.queries, block.keys, causal=block.causal)
    whole = ring_attention.RANKS * ring_attention.TOKENS
    assert total == attended_pairs(whole, whole, causal=True)


def test_the_calibrated_kernel_is_the_one_gpu_row() -> None:
    operation = ring_attention.Block(8192, 8192, True).operation((), "o")
    assert ring_attention.attention_seconds(operation) == pytest.approx(1 / 591.5, rel=1e-12)
    assert ring_attention.attention_seconds(operation, backward=True) == pytest.approx(1 / 154.7 - 1 / 591.5, rel=1e-12)


def test_copies_of_a_token_are_counted_as_drawn() -> None:
    # 8 of 256 experts without replacement; of 8 GPUs with 32 each, one is missed with C(224, 8)/C(256, 8) = 0.3373
    one = dispatch.copies(1, np.random.default_rng(1))
    assert one.nodes == 1
    assert one.gpus == pytest.approx(8 * (1 - 0.3373), rel=0.01)  # sampling: 20,000 tokens
    assert dispatch.copies(8, np.random.default_rng(1)).nodes <= dispatch.MOST_NODES


def test_own_tokens_and_latency_only_slow_dispatch_down() -> None:
    base = dispatch.exchange(1, "dispatch")
    assert base < dispatch.exchange(1, "dispatch", own_copies=False)
    # 160 GB/s a port, all of a GPU's tokens through it: what the accounting divides by
    assert dispatch.exchange(1, "dispatch", latency_s=0.0) == pytest.approx(160, rel=1e-6)
