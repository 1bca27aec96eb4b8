"""A serving engine's own all-reduce inside a node (AIConfigurator's ``custom_allreduce_perf`` tables) as timed rows.

vLLM sums messages of up to 8 MB with a kernel of its own that reads its peers' memory (one shot, or two), and leaves
larger ones to NCCL; the table holds what its all-reduce takes either way. A decode step's small sums are 2–4 times
faster so than by NCCL. ``message_size`` counts *elements* of bfloat16: the largest then goes through 8 A100 at 228 GB/s
a port, NCCL's own rate there; bytes would make it 114. Rows are those under a CUDA graph, as decode steps run.
"""

from __future__ import annotations

from pathlib import Path

from calibration.importers.aiconfigurator import S_PER_MS, newest, systems_folder, table_rows
from calibration.rows import TimedRow
from simulator.errors import SpecError
from simulator.kernel import GroupCollective

TABLE = "custom_allreduce_perf"
ELEMENT_BYTES = 2
COLUMNS = frozenset({"allreduce_dtype", "num_gpus", "message_size", "backend"})


def load_all_reduce(folder: Path | None, system: str, framework: str) -> tuple[TimedRow, ...]:
    """Rows of the newest version; SpecError where there is no such table."""
    data = (folder or systems_folder()) / "data" / system / "comm" / framework
    path = newest(data, f"{TABLE}.parquet")
    if path is None:
        raise SpecError(f"{data}: no {TABLE}.parquet; choose a --system and --framework that have one")
    rows = []
    for place, row in table_rows(path, COLUMNS):
        if row["allreduce_dtype"] != "bfloat16":
            raise SpecError(f"{place}: allreduce_dtype {row['allreduce_dtype']!r} unknown; known: bfloat16")
        if row["kernel_source"].endswith("_graph"):
            num_bytes = row["message_size"] * ELEMENT_BYTES
            source = f"aiconfigurator-core {path.relative_to(data.parent.parent.parent).as_posix()}"
            rows.append(
                TimedRow(GroupCollective("all_reduce", num_bytes, row["num_gpus"]), row["latency"] * S_PER_MS, source)
            )
    if not rows:
        raise SpecError(f"{path}: no row was measured under a CUDA graph")
    return tuple(rows)
