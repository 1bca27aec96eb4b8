"""Environment: the facts about this machine that a measurement carries."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from simulator.measurement import Environment

REPORTED = ("numpy", "flash-attn", "flash-attn-4", "triton")


def environment(device: torch.device, backend: str) -> Environment:
    """Of this process and ``device``."""
    found = {}
    for name in REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return Environment(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        backend=backend,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.system(),
        cores=usable_cores(),
        threads_per_rank=torch.get_num_threads(),
        versions=found,
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's model name, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
