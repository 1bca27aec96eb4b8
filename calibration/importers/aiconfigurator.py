"""AIConfigurator's tables (package aiconfigurator-core, Apache-2.0) as timed rows.

Layout: ``<systems>/data/<system>/<family>/<framework>/<version>/<table>.parquet``, latency in milliseconds.
Reads dense GEMM, context and generation attention, encoder (not causal) attention, routed experts and NCCL.
``nccl_perf.message_size`` counts *elements* (half at S takes as long as int8 at 2·S). Tables hold the newest
version's rows only. What is not understood is refused by name: unknown columns, dtypes or distributions that
carry meaning; rows whose dtype we do not model (fp8_block, 4-bit weights, fp8 KV under bf16 queries) are
counted and left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from calibration.rows import TimedRow
from simulator.cluster import Gpu
from simulator.errors import SpecError
from simulator.formats.files import load
from simulator.kernel import AttentionDecode, AttentionPrefill, Gemm, GroupCollective, Kernel, Moe

PACKAGE = "aiconfigurator_core"
LICENCE = "Apache-2.0"
S_PER_MS = 1e-3
LABELS = frozenset({"framework", "version", "device", "op_name", "kernel_source", "latency"})
DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp8": "fp8",
    "int8": "int8",
    "float": "fp32",
}
LEFT_OUT_DTYPES = frozenset(
    {
        "fp8_block",
        "fp8_static",
        "int4_wo",
        "int8_wo",
        "nvfp4",
        "nvfp4_wo",
        "w4a16_mxfp4",
        "w4a8_mxfp4_mxfp8",
        "w4afp8",
    }
)
NCCL_KINDS = {
    "all_gather": "all_gather",
    "all_reduce": "all_reduce",
    "alltoall": "all_to_all",
    "reduce_scatter": "reduce_scatter",
}
NCCL_ELEMENT_BYTES = {"half": 2, "int8": 1}
# SMs, HBM bytes and memory are datasheet facts the systems files leave out or round.
NUM_SMS = {
    "a100_sxm": 108,
    "a100_pcie": 108,
    "h100_sxm": 132,
    "h100_pcie": 114,
    "h200_sxm": 132,
    "l40s": 142,
    "a30": 56,
    "l4": 58,
    "b200_sxm": 148,
    "gb200": 152,
}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _TableKind:
    """A table: where it lies, which columns it may have, and how one of its rows becomes a kernel."""

    family: str
    file: str
    columns: frozenset[str]
    kernel: Callable[[Row, str], Kernel | None]


@dataclass(frozen=True, slots=True)
class Imported:
    """Rows, and how many were left out because we do not model them (by reason)."""

    rows: tuple[TimedRow, ...]
    left_out: Mapping[str, int]


def systems_folder() -> Path:
    """The ``systems`` folder of the installed package, or SpecError saying how to get it."""
    found = util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SpecError(
            f"aiconfigurator: package {PACKAGE} is not installed; `pip install aiconfigurator-core==0.12.0`"
        )
    return Path(next(iter(found.submodule_search_locations))) / "systems"


def load_rows(folder: Path | None, system: str, framework: str = "vllm") -> Imported:
    """All rows of one system and framework; ``folder`` None is the installed package's systems folder."""
    data = _data_folder(folder or systems_folder(), system)
    rows: list[TimedRow] = []
    left_out: dict[str, int] = {}
    for kind in _KINDS:
        owner = "nccl" if kind.file == "nccl_perf" else framework
        path = newest(data / kind.family / owner, f"{kind.file}.parquet")
        if path is None:
            continue
        source = f"aiconfigurator-core {path.relative_to(data.parent).as_posix()}"
        for row, kernel in _kernels(path, kind):
            if isinstance(kernel, str):
                left_out[kernel] = left_out.get(kernel, 0) + 1
            else:
                rows.append(TimedRow(kernel, row["latency"] * S_PER_MS, source))
    if not rows:
        raise SpecError(f"{data}: no rows for framework {framework!r}; known: {', '.join(_frameworks(data))}")
    return Imported(tuple(rows), left_out)


class _GpuFacts(BaseModel):
    """What we use of a system file's ``gpu``; its other keys are AIConfigurator's own."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    bfloat16_tc_flops: float = Field(gt=0)
    mem_bw: float = Field(gt=0)
    mem_capacity: int = Field(gt=0)


class _System(BaseModel):
    """``<systems>/<system>.yaml``."""

    model_config = ConfigDict(frozen=True)
    gpu: _GpuFacts


def load_gpu(folder: Path | None, system: str, name: str) -> Gpu:
    """The GPU's datasheet facts from ``<systems>/<system>.yaml``."""
    path = (folder or systems_folder()) / f"{system}.yaml"
    facts = load(path, _System).gpu
    if system not in NUM_SMS:
        raise SpecError(f"{path}: number of SMs of {system!r} unknown; known systems: {', '.join(NUM_SMS)}")
    return Gpu(
        name=name,
        compute_flop_per_s=facts.bfloat16_tc_flops,
        memory_bandwidth_bytes_per_s=facts.mem_bw,
        memory_bytes=facts.mem_capacity,
        num_sms=NUM_SMS[system],
        source=f"datasheet, by way of aiconfigurator-core {path.name}",
    )


def _data_folder(folder: Path, system: str) -> Path:
    data = folder / "data" / system
    if not data.is_dir():
        parent = folder / "data"
        known = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        raise SpecError(f"{folder}: no data/{system}; known systems: {', '.join(known) or 'none'}")
    return data


def _frameworks(data: Path) -> list[str]:
    return sorted({path.name for path in data.glob("gemm/*")} | {path.name for path in data.glob("attention/*")})


def version_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Orders version folders: 1.0.0 < 1.3.0rc10 < 1.3.0rc20 < 1.3.0."""
    parts: list[tuple[int, int | str]] = []
    for piece in re.findall(r"\d+|[a-z]+", name.lower()):
        parts.append((2, int(piece)) if piece.isdigit() else (0 if piece in ("rc", "a", "b", "dev") else 3, piece))
    return (*parts, (1, 0))


def newest(folder: Path, file: str) -> Path | None:
    versions = [path for path in folder.glob("*") if (path / file).is_file()]
    return max(versions, key=lambda path: version_key(path.name)) / file if versions else None


def _kernels(path: Path, kind: _TableKind) -> Iterator[tuple[Row, Kernel | str]]:
    """Every row with its kernel, or with the reason why it is left out."""
    for place, row in table_rows(path, kind.columns):
        reason = _left_out(row)
        kernel = None if reason else kind.kernel(row, place)
        yield row, kernel or reason or "shape not modelled"


def table_rows(path: Path, columns: frozenset[str]) -> Iterator[tuple[str, Row]]:
    """Every row of a table with its place; SpecError where columns or latencies are not understood."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise SpecError(f"{path}: reading parquet needs pyarrow; `pip install pyarrow`") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise SpecError(f"{path}: not a parquet table: {error}") from error
    names = set(table.column_names)
    unknown, missing = names - columns - LABELS, columns - names - _OPTIONAL
    if unknown or missing or "latency" not in names:
        raise SpecError(f"{path}: columns not understood: unknown {sorted(unknown)}, missing {sorted(missing)}")
    for number, row in enumerate(table.to_pylist()):
        place = f"{path} row {number}"
        if not isinstance(row["latency"], (int, float)) or not 0 < row["latency"] < 1e7:
            raise SpecError(f"{place}: latency {row['latency']!r} is not a number of milliseconds")
        yield place, row


_OPTIONAL = frozenset({"window_size", "step"})


def _left_out(row: Row) -> str | None:
    for column in ("gemm_dtype", "moe_dtype", "attn_dtype", "kv_cache_dtype"):
        if row.get(column) in LEFT_OUT_DTYPES:
            return f"{column} {row[column]}"
    if row.get("kv_cache_dtype", row.get("attn_dtype")) != row.get("attn_dtype"):
        return f"KV cache {row['kv_cache_dtype']} under {row['attn_dtype']} queries"
    return None


def _dtype(row: Row, column: str, place: str) -> str:
    value = row[column]
    if value not in DTYPES:
        raise SpecError(f"{place}: {column} {value!r} unknown; known: {', '.join(sorted(DTYPES))}")
    return DTYPES[value]


def _gemm(row: Row, place: str) -> Kernel | None:
    return Gemm(row["m"], row["n"], row["k"], _dtype(row, "gemm_dtype", place))


def _prefill(row: Row, place: str) -> Kernel | None:
    if row["beam_width"] != 1:
        return None
    step = row.get("step") or 0
    return AttentionPrefill(
        batch=row["batch_size"],
        seq_q=row["isl"],
        seq_kv=row["isl"] + step,
        heads=row["num_heads"],
        kv_heads=row["num_key_value_heads"],
        head_dim=row["head_dim"],
        window=row.get("window_size") or 0,
        dtype=_dtype(row, "attn_dtype", place),
    )


def _encoder(row: Row, place: str) -> Kernel | None:
    return AttentionPrefill(
        batch=row["batch_size"],
        seq_q=row["isl"],
        seq_kv=row["isl"],
        heads=row["num_heads"],
        kv_heads=row["num_heads"],
        head_dim=row["head_dim"],
        causal=False,
        dtype=_dtype(row, "attn_dtype", place),
    )


def _decode(row: Row, place: str) -> Kernel | None:
    if row["beam_width"] != 1:
        return None
    return AttentionDecode(
        batch=row["batch_size"],
        context=row["isl"] + (row.get("step") or 0),
        heads=row["num_heads"],
        kv_heads=row["num_key_value_heads"],
        head_dim=row["head_dim"],
        window=row.get("window_size") or 0,
        dtype=_dtype(row, "attn_dtype", place),
    )


def _moe(row: Row, place: str) -> Kernel | None:
    routing = row["distribution"]
    if routing != "balanced" and not re.fullmatch(r"power_law_\d+(\.\d+)?", routing):
        raise SpecError(f"{place}: distribution {routing!r} unknown; known: balanced, power_law_A")
    return Moe(
        tokens=row["num_tokens"],
        hidden=row["hidden_size"],
        inter=row["inter_size"],
        topk=row["topk"],
        experts=row["num_experts"],
        tp=row["moe_tp_size"],
        ep=row["moe_ep_size"],
        routing=routing,
        dtype=_dtype(row, "moe_dtype", place),
    )


def _nccl(row: Row, place: str) -> Kernel | None:
    if row["op_name"] not in NCCL_KINDS:
        raise SpecError(f"{place}: op_name {row['op_name']!r} unknown; known: {', '.join(NCCL_KINDS)}")
    if row["nccl_dtype"] not in NCCL_ELEMENT_BYTES:
        raise SpecError(f"{place}: nccl_dtype {row['nccl_dtype']!r} unknown; known: half, int8")
    num_bytes = row["message_size"] * NCCL_ELEMENT_BYTES[row["nccl_dtype"]]
    return GroupCollective(NCCL_KINDS[row["op_name"]], num_bytes, row["num_gpus"])


_ATTENTION = {"batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "beam_width", "attn_dtype"}
_ATTENTION |= {"kv_cache_dtype", "step", "window_size"}
_MOE = {"moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"}
_MOE |= {"moe_ep_size", "distribution"}
_ENCODER = {"batch_size", "isl", "num_heads", "head_dim", "attn_dtype"}
_KINDS = (
    _TableKind("gemm", "gemm_perf", frozenset({"gemm_dtype", "m", "n", "k"}), _gemm),
    _TableKind("attention", "context_attention_perf", frozenset(_ATTENTION), _prefill),
    _TableKind("encoder_attention", "encoder_attention_perf", frozenset(_ENCODER), _encoder),
    _TableKind("attention", "generation_attention_perf", frozenset(_ATTENTION), _decode),
    _TableKind("moe", "moe_perf", frozenset(_MOE), _moe),
    _TableKind("comm", "nccl_perf", frozenset({"nccl_dtype", "num_gpus", "message_size"}), _nccl),
)
