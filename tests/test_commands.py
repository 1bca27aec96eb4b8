"""Each command of this file's owners once through the command line: exit code, parseable output, files that load."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from planner.cli import main
from simulator import presets
from simulator.errors import SpecError
from simulator.profile import load_profile
from tests.shared_data import shared

WORKLOAD = """
name: one
buckets: [{name: all, min_tokens: 512, max_tokens: 2048, tokens: 1024, share: 1.0, output_tokens: 8}]
prefill_batch: 1
decode_batch: 4
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Options of a question that is planned in a second."""
    path = tmp_path / "one.yaml"
    path.write_text(WORKLOAD)
    return ["fa-pool", "--workload", str(path), "--max-gpus", "8"]


def test_paper_prints_one_row_a_statement_of_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "paper", "--document", "K", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows
    assert all(row["id"].startswith("K") and row["verdict"] for row in rows)
    code, out, _ = run(capsys, "paper", "--document", "K")
    assert code == 0
    assert f"{len(rows)} statements" in out
    assert run(capsys, "paper", "--document", "Z")[0] == 2


def test_a_topology_becomes_a_cluster_file_that_loads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, output = shared("topo") / "dgx_a100_12mlx5.txt", tmp_path / "cluster.yaml"
    options = ["--gpu", "A100-SXM4-80GB", "--nodes", "5", "--nic-gbit-s", "200", "-o", str(output)]
    assert run(capsys, "cluster", "import", "topo", str(source), *options)[0] == 0
    cluster = presets.cluster(str(output))
    assert cluster.num_ranks == 40
    assert cluster.nodes[0].nics is not None
    assert cluster.nodes[0].nics.bandwidth_bytes_per_s == 25e9  # 200 Gbit/s over 8


def test_a_topology_asks_for_options_by_their_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, output = shared("topo") / "2x_rtxpro6000_pcie_node.txt", tmp_path / "cluster.yaml"
    code, _, err = run(capsys, "cluster", "import", "topo", str(source), "--gpu", "A100-SXM4-80GB", "-o", str(output))
    assert code == 2
    assert "--pcie-gbyte-s" in err
    assert not output.exists()
    code, _, err = run(capsys, "cluster", "import", "topo", str(source), "--gpu", "B300", "-o", str(output))
    assert code == 2
    assert "known: " in err


def test_a_trace_becomes_a_workload_file_with_the_batches_stated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace, output = tmp_path / "trace.csv", tmp_path / "workload.yaml"
    trace.write_text(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,10\n1,100,20\n2,900,30\n3,900,40\n8,900,50\n"
    )
    command = ["workload", "import", "trace", str(trace), "--buckets", "2", "--decode-batch", "32", "-o", str(output)]
    assert main(command) == 0
    workload = presets.workload(str(output))
    assert [(one.tokens, one.output_tokens, one.share) for one in workload.buckets] == [(100, 15, 0.4), (900, 40, 0.6)]
    assert (workload.prefill_batch, workload.decode_batch, workload.requests_per_s) == (1, 32, 0.5)  # 4 gaps in 8 s
    assert workload.assumptions == ("prefill batch 1: a trace does not tell it",)
    assert "32 sequences" in capsys.readouterr().out


def test_a_trace_where_a_workload_is_asked_for_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,10\n")
    with pytest.raises(SpecError, match=r"make one: plan workload import trace .*trace\.csv -o workload\.yaml"):
        presets.workload(str(tmp_path / "trace.csv"))


def test_compare_prints_json_and_nothing_else(capsys: pytest.CaptureFixture[str], small: list[str]) -> None:
    code, out, _ = run(capsys, "compare", *small, "--per-category", "10", "--json")
    found = json.loads(out)
    assert code == 0
    chosen = next(row for row in found["schemes"] if row["name"] == "chosen policy")
    assert chosen["metrics"]["ttft_s"]["mean"] > 0
    assert all("infeasible" in row for row in found["schemes"])


def test_compare_shows_tables(capsys: pytest.CaptureFixture[str], small: list[str]) -> None:
    code, out, _ = run(capsys, "compare", *small, "--per-category", "10")
    assert code == 0
    assert "saturates at" in out
    assert "efficiency a GPU" in out
    assert run(capsys, "compare", *small, "--per-category", "1")[0] == 2


def test_launch_prints_three_forms(capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert run(capsys, "make", *small, "-o", str(plan))[0] == 0
    for options in ([], ["--slurm"]):
        code, out, _ = run(capsys, "launch", str(plan), *options)
        assert code == 0
        subprocess.run(["bash", "-n"], input=out, text=True, check=True)
    code, out, _ = run(capsys, "launch", str(plan), "--kubernetes")
    assert code == 0
    assert yaml.safe_load(out)["kind"] == "JobSet"


def test_nccl_logs_become_a_profile_of_collectives(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log, output = shared("nccl-tests") / "a100_1x8_allreduce_superbench.log", tmp_path / "profile.json"
    code, _, _ = run(capsys, "calibrate", "import", "nccl-tests", str(log), "-o", str(output))
    assert code == 0
    assert load_profile(output).collectives
    assert run(capsys, "calibrate", "import", "nccl-tests", "-o", str(output))[0] == 2


def test_vidur_tables_become_a_profile_of_kernels(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "profile.json"
    table = shared("vidur") / "a100_pairwise_nvlink_all_reduce.csv"
    code, _, _ = run(capsys, "calibrate", "import", "vidur", str(table), "-o", str(output))
    assert code == 0
    assert load_profile(output).collectives
