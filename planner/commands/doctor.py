"""``plan doctor``: what this machine has, and which of attnplan's places can run on it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from planner.commands.output import table, to_terminal

PACKAGES = (
    "torch",
    "triton",
    "flash-attn",
    "flash-attn-4",
    "numpy",
    "scipy",
    "simpy",
    "networkx",
    "pydantic",
    "streamlit",
)


def doctor(arguments: argparse.Namespace) -> int:
    found = facts()
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        to_terminal(table("This machine", ("what", "found"), [(key, str(value)) for key, value in found.items()]))
    return 0


def facts() -> dict[str, object]:
    """Versions, cores, memory, devices and the places that can run here."""
    import torch

    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        **{name: _version(name) for name in PACKAGES},
        "cuda_devices": devices,
        "run --on cpu (gloo)": torch.distributed.is_gloo_available(),
        "run --on cuda (nccl)": cuda and torch.distributed.is_nccl_available(),
        "run --on replay": True,
        "emulated hosts (network namespaces)": os.geteuid() == 0,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
