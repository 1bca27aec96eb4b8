"""Logs and CSVs of others become profiles; what a profile of one node cannot hold is said, not dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.importing import imported_profile
from simulator.errors import SpecError

NETWORK = """collective,num_workers,devices_per_node,size,time_stats.send_recv.median
send_recv,2,2,1000000,0.02
send_recv,2,2,9000000,0.10
"""


def test_send_recv_rows_become_a_latency_and_a_bandwidth(tmp_path: Path) -> None:
    path = tmp_path / "send_recv.csv"
    path.write_text(NETWORK, encoding="utf-8")
    pair = imported_profile("vidur", [path]).send_recv
    assert pair is not None
    # 8e6 B in 0.08 ms: 100 GB/s; 0.02 ms − 1e6 B / 100 GB/s = 10 µs
    assert pair.bandwidth_bytes_per_s == pytest.approx(100e9)
    assert pair.latency_s == pytest.approx(10e-6)


def test_an_unknown_source_and_no_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match="unknown source 'rumour'; known: aiconfigurator, engine-all-reduce, nccl-tests, vidur"
    ):
        imported_profile("rumour", [tmp_path])
    with pytest.raises(SpecError, match="name at least one file"):
        imported_profile("vidur", [])
    with pytest.raises(SpecError, match="one systems folder, got 2 paths"):
        imported_profile("aiconfigurator", [tmp_path, tmp_path])


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8 text"):
        imported_profile("vidur", [path])
