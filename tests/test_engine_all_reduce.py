"""An engine's own all-reduce: what its table means, and the shipped profile with it in NCCL's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.importers.engine_all_reduce import load_all_reduce
from calibration.importing import imported_profile
from simulator.errors import SpecError
from simulator.kernel import GroupCollective
from simulator.profile import load_profile

pyarrow = pytest.importorskip("pyarrow")
SIZES = tuple(128 * 4**power for power in range(10))  # elements: 256 B to 67 MB


def systems(tmp_path: Path, **changes: object) -> Path:
    """A systems folder with one table: 5 µs, then 100 GB/s; eager rows take 40 µs more."""
    from pyarrow import parquet

    folder = tmp_path / "data" / "a100_sxm" / "comm" / "vllm" / "0.9.1"
    folder.mkdir(parents=True)
    rows = [
        {"framework": "vLLM", "version": "0.9.1", "device": "A100", "op_name": "all_reduce",
         "kernel_source": f"vLLM_custom_{mode}", "allreduce_dtype": "bfloat16", "num_gpus": gpus,
         "message_size": size, "latency": 5e-3 + 2 * size / 100e9 * 1e3 + extra_ms, "backend": f"vllm_{mode}"} | changes
        for gpus in (2, 8) for size in SIZES for mode, extra_ms in (("graph", 0.0), ("eager", 0.04))
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "custom_allreduce_perf.parquet")
    return tmp_path


def test_sizes_are_elements_of_two_bytes_and_eager_rows_are_left_out(tmp_path: Path) -> None:
    rows = load_all_reduce(systems(tmp_path), "a100_sxm", "vllm")
    assert len(rows) == 2 * len(SIZES)
    assert rows[0].kernel == GroupCollective("all_reduce", 256, 2)
    assert rows[0].seconds == pytest.approx(5e-6 + 256 / 100e9)
    assert rows[0].source.endswith("a100_sxm/comm/vllm/0.9.1/custom_allreduce_perf.parquet")


def test_the_shipped_profile_keeps_all_but_its_all_reduce(tmp_path: Path) -> None:
    base = load_profile("a100-sxm4-80gb")
    changed = imported_profile("engine-all-reduce", (systems(tmp_path),), "a100_sxm", "vllm")
    assert changed.kernels == base.kernels
    other = [[c for c in one.collectives if c.kind != "all_reduce"] for one in (base, changed)]
    assert other[0] == other[1]
    curves = [curve for curve in changed.collectives if curve.kind == "all_reduce"]
    assert [curve.gpus for curve in curves] == [2, 8]
    assert curves[0].tag == "imported"
    assert "custom all-reduce" in changed.provenance[-1].source
    assert changed.name == "a100-sxm4-80gb-vllm-all-reduce"


def test_tables_that_lack_or_mean_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no custom_allreduce_perf\.parquet; choose a --system"):
        load_all_reduce(tmp_path, "a100_sxm", "vllm")
    with pytest.raises(SpecError, match="allreduce_dtype 'float' unknown"):
        load_all_reduce(systems(tmp_path, allreduce_dtype="float"), "a100_sxm", "vllm")


def test_files_without_a_row_under_a_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no row was measured under a CUDA graph"):
        load_all_reduce(systems(tmp_path, kernel_source="vLLM_custom_eager"), "a100_sxm", "vllm")
