"""The importer of AIConfigurator's tables, on small tables written here; and on the package where installed."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.conformal import intervals
from calibration.fit import FitOptions, device_for, held_for_intervals
from calibration.importers.aiconfigurator import load_gpu, load_rows, version_key
from calibration.rows import TimedRow, tables
from simulator.costs.cost import PHYSICAL_MODELS
from simulator.costs.learned import apply_residual
from simulator.errors import SpecError
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, GroupCollective, Moe
from simulator.profile import load_profile

pyarrow = pytest.importorskip("pyarrow")
INSTALLED = util.find_spec("aiconfigurator_core") is not None

LABELS = {"framework": "VLLM", "version": "1", "device": "A100", "op_name": "x", "kernel_source": "y"}
GEMM = LABELS | {"gemm_dtype": "bfloat16", "m": 1, "n": 2, "k": 3, "latency": 0.5}
ATTENTION = LABELS | {
    "batch_size": 2,
    "isl": 512,
    "num_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "beam_width": 1,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "step": 1024,
    "window_size": 128,
    "latency": 0.25,
}
MOE = LABELS | {
    "moe_dtype": "fp8",
    "num_tokens": 4,
    "hidden_size": 8,
    "inter_size": 16,
    "topk": 2,
    "num_experts": 8,
    "moe_tp_size": 2,
    "moe_ep_size": 4,
    "distribution": "power_law_1.2",
    "latency": 1.0,
}
NCCL = LABELS | {"op_name": "alltoall", "nccl_dtype": "half", "num_gpus": 8, "message_size": 256, "latency": 0.01}


def write(root: Path, table: str, rows: list[dict[str, Any]], version: str = "1.0") -> Path:
    from pyarrow import Table, parquet

    path = root / "data" / "a100_sxm" / f"{table.rsplit('/', 1)[0]}/{version}/{table.rsplit('/', 1)[1]}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(Table.from_pylist(rows), path)
    return path


def test_each_table_becomes_its_kernels_in_seconds_and_bytes(tmp_path: Path) -> None:
    write(tmp_path, "gemm/vllm/gemm_perf", [GEMM])
    write(tmp_path, "attention/vllm/context_attention_perf", [ATTENTION])
    write(tmp_path, "attention/vllm/generation_attention_perf", [ATTENTION | {"isl": 1}])
    write(tmp_path, "moe/vllm/moe_perf", [MOE])
    write(tmp_path, "comm/nccl/nccl_perf", [NCCL])
    rows = load_rows(tmp_path, "a100_sxm", "vllm").rows
    assert [row.kernel for row in rows] == [
        Gemm(1, 2, 3),
        AttentionPrefill(2, 512, 1536, 8, 4, 128, window=128),  # step is the prefix
        AttentionDecode(2, 1025, 8, 4, 128, window=128),
        Moe(4, 8, 16, 2, 8, tp=2, ep=4, routing="power_law_1.2", dtype="fp8"),
        GroupCollective("all_to_all", 512, 8),  # 256 elements of two bytes
    ]
    assert [row.seconds for row in rows] == pytest.approx([5e-4, 2.5e-4, 2.5e-4, 1e-3, 1e-5])
    assert rows[0].source == "aiconfigurator-core a100_sxm/gemm/vllm/1.0/gemm_perf.parquet"


def test_the_newest_version_counts(tmp_path: Path) -> None:
    write(tmp_path, "gemm/vllm/gemm_perf", [GEMM], version="0.9.0")
    write(tmp_path, "gemm/vllm/gemm_perf", [GEMM | {"m": 7}], version="0.14.0")
    assert [row.kernel for row in load_rows(tmp_path, "a100_sxm", "vllm").rows] == [Gemm(7, 2, 3)]


def test_versions_are_ordered_as_numbers_and_candidates_come_before_releases() -> None:
    versions = ["1.3.0", "1.0.0", "1.3.0rc20", "1.3.0rc5", "0.5.6.post2", "0.5.10"]
    ordered = ["0.5.6.post2", "0.5.10", "1.0.0", "1.3.0rc5", "1.3.0rc20", "1.3.0"]
    assert sorted(versions, key=version_key) == ordered


def test_dtypes_we_do_not_model_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "gemm/vllm/gemm_perf", [GEMM, GEMM | {"gemm_dtype": "fp8_block"}])
    write(tmp_path, "attention/vllm/context_attention_perf", [ATTENTION | {"kv_cache_dtype": "fp8"}])
    imported = load_rows(tmp_path, "a100_sxm", "vllm")
    assert len(imported.rows) == 1
    assert imported.left_out == {"gemm_dtype fp8_block": 1, "KV cache fp8 under bfloat16 queries": 1}


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("gemm/vllm/gemm_perf", GEMM | {"watts": 3}, r"columns not understood: unknown \['watts'\], missing \[\]"),
        ("gemm/vllm/gemm_perf", {k: v for k, v in GEMM.items() if k != "k"}, r"missing \['k'\]"),
        ("gemm/vllm/gemm_perf", GEMM | {"gemm_dtype": "fp12"}, "row 0: gemm_dtype 'fp12' unknown; known: "),
        ("gemm/vllm/gemm_perf", GEMM | {"latency": -1.0}, "row 0: latency -1.0 is not a number of milliseconds"),
        ("moe/vllm/moe_perf", MOE | {"distribution": "zipf"}, "distribution 'zipf' unknown"),
        ("comm/nccl/nccl_perf", NCCL | {"op_name": "gossip"}, "op_name 'gossip' unknown"),
        ("comm/nccl/nccl_perf", NCCL | {"nccl_dtype": "float8"}, "nccl_dtype 'float8' unknown"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, table: str, row: dict[str, Any], message: str
) -> None:
    write(tmp_path, table, [row])
    with pytest.raises(SpecError, match=message):
        load_rows(tmp_path, "a100_sxm", "vllm")


def test_unknown_systems_and_frameworks_list_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path, "gemm/vllm/gemm_perf", [GEMM])
    with pytest.raises(SpecError, match="no data/h900; known systems: a100_sxm"):
        load_rows(tmp_path, "h900", "vllm")
    with pytest.raises(SpecError, match="no rows for framework 'jax'; known: vllm"):
        load_rows(tmp_path, "a100_sxm", "jax")


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "gemm/vllm/gemm_perf", [GEMM])
    path.write_bytes(b"not parquet")
    with pytest.raises(SpecError, match="not a parquet table"):
        load_rows(tmp_path, "a100_sxm", "vllm")


@pytest.fixture(scope="module")
def a100_rows() -> tuple[TimedRow, ...]:
    if not INSTALLED:
        pytest.skip("aiconfigurator-core is not installed")
    return load_rows(None, "a100_sxm", "vllm").rows


def test_the_installed_package_gives_the_a100s_rows_and_facts(a100_rows: tuple[TimedRow, ...]) -> None:
    assert len(a100_rows) == 9240 + 5457 + 5431 + 6360 + 504  # gemm, prefill, decode, experts, nccl
    gpu = load_gpu(None, "a100_sxm", "A100-SXM4-80GB")
    assert (gpu.compute_flop_per_s, gpu.memory_bandwidth_bytes_per_s, gpu.num_sms) == (312e12, 2.039e12, 108)


def test_the_shipped_a100_has_the_intervals_that_todays_physics_leaves_on_the_rows_held_from_its_fit(
    a100_rows: tuple[TimedRow, ...],
) -> None:
    # `python -m calibration.presets --check` makes all of a profile again, networks too: minutes
    shipped = load_profile("a100-sxm4-80gb")
    for table in tables(a100_rows):
        model = shipped.model(table.kernel, table.dtype)
        held = table.take(held_for_intervals(len(table.seconds), FitOptions().seed))
        shape = PHYSICAL_MODELS[model.kernel](held.x, model.coefficients, device_for(model.dtype, shipped.gpu))
        found = intervals(np.maximum(apply_residual(shape, model.residual), shape.floor_s), held.seconds)
        assert np.allclose(found.low, model.intervals.low, rtol=1e-6)
        assert np.allclose(found.high, model.intervals.high, rtol=1e-6)
