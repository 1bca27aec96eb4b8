"""The shipped profiles, rebuilt from AIConfigurator's tables: ``python -m calibration.presets``."""

from __future__ import annotations

import sys
from pathlib import Path

from calibration.fit import FitOptions, fit_profile
from calibration.importers import aiconfigurator
from simulator.formats.files import to_json, write_atomically
from simulator.profile import PRESETS, Profile

SYSTEMS = {"a100-sxm4-80gb": "a100_sxm", "h100-sxm": "h100_sxm", "h200-sxm": "h200_sxm"}
GPU_NAMES = {"a100-sxm4-80gb": "A100-SXM4-80GB", "h100-sxm": "H100-SXM", "h200-sxm": "H200-SXM"}
FRAMEWORK = "vllm"


def build(name: str, folder: Path | None = None) -> Profile:
    """One preset from the tables; deterministic."""
    system = SYSTEMS[name]
    imported = aiconfigurator.load_rows(folder, system, FRAMEWORK)
    gpu = aiconfigurator.load_gpu(folder, system, GPU_NAMES[name])
    options = FitOptions(
        name=name,
        source=f"aiconfigurator-core 0.12.0, data/{system}, {FRAMEWORK} and nccl, newest version of each table",
        licence=aiconfigurator.LICENCE,
        rebuilt_with=f"python -m calibration.presets {name}",
    )
    return fit_profile(imported.rows, gpu, options)


def rebuild(names: tuple[str, ...] = tuple(SYSTEMS), folder: Path | None = None) -> tuple[Path, ...]:
    """Write the presets' files; returns their paths."""
    paths = []
    for name in names:
        path = PRESETS / f"{name}.json"
        write_atomically(path, to_json(build(name, folder)))
        print(f"{path.name}: written", file=sys.stderr)
        paths.append(path)
    return tuple(paths)


if __name__ == "__main__":
    rebuild(tuple(sys.argv[1:]) or tuple(SYSTEMS))
