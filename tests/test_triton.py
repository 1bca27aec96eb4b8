"""The documents' two kernels in Triton: right under its interpreter, and they compile for the GPUs planned for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from executor.attention_backends import chosen, probe
from executor.experts import router_for
from simulator.errors import ExecutionError


def in_a_process_of_its_own(module: str, **settings: str) -> str:
    """The module's output; triton reads its settings once, when it is loaded."""
    pytest.importorskip(
        "triton", minversion="3.8", reason="triton 3.8 or newer is not installed: no interpreter to run in"
    )
    done = subprocess.run(
        [sys.executable, "-m", module], capture_output=True, text=True, env={**os.environ, **settings}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_kernels_equal_torch_under_the_interpreter() -> None:
    out = in_a_process_of_its_own("tests.triton_interpreted", TRITON_INTERPRET="1")
    assert "uneven heads in one launch" in out
    assert "gates of 3 of 11" in out


def test_kernels_compile_for_ampere_and_hopper() -> None:
    out = in_a_process_of_its_own("tests.triton_compiled")
    assert out.count("compiled") == 6


def test_without_a_gpu_torch_routes_and_attends() -> None:
    assert router_for(torch.device("cpu")) == "torch"
    assert chosen(None, torch.device("cpu"), torch.float32, 64) == "cpu_flash"


def test_a_backend_asked_for_by_name_works_or_says_why_not() -> None:
    cpu = torch.device("cpu")
    assert chosen("math", cpu, torch.float32, 64) == "math"
    with pytest.raises(ExecutionError, match="attention backend flash_attn_2 does not work on cpu"):
        chosen("flash_attn_2", cpu, torch.float32, 64)
    with pytest.raises(ExecutionError, match="'fast' is unknown; known: flash_attn_4"):
        chosen("fast", cpu, torch.float32, 64)
    assert probe("triton", cpu, torch.float32, 64) is not None  # no interpreter in this process
