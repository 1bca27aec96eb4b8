"""The shipped profiles, rebuilt from AIConfigurator's tables.

python -m calibration.presets [NAMES]            writes them
python -m calibration.presets --check [NAMES]    makes them and says where they differ from the shipped files
"""

from __future__ import annotations

import sys
from pathlib import Path

from calibration.fit import FitOptions, fit_profile
from calibration.importers import aiconfigurator
from simulator.formats.files import to_json, write_atomically
from simulator.profile import PRESETS, Profile, load_profile

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


def differing(name: str, folder: Path | None = None) -> list[str]:
    """Where a preset made now differs from its file; both as text, so to the last digit."""
    made, shipped = parts(build(name, folder)), parts(load_profile(name))
    return sorted(place for place in made.keys() | shipped.keys() if made.get(place) != shipped.get(place))


def parts(profile: Profile) -> dict[str, str]:
    """The text of every field of a profile, of its kernels one by one."""
    kernels = {f"{model.kernel} {model.dtype}": to_json(model) for model in profile.kernels}
    rest = profile.model_copy(update={"kernels": ()})
    return kernels | {"all but kernels": to_json(rest)}


def check(names: tuple[str, ...] = tuple(SYSTEMS)) -> bool:
    """Whether all presets made now are the shipped files; prints what differs."""
    found = {name: differing(name) for name in names}
    for name, places in found.items():
        print(f"{name}: {'differs in ' + ', '.join(places) if places else 'as shipped'}")
    return not any(found.values())


if __name__ == "__main__":
    chosen = tuple(name for name in sys.argv[1:] if name != "--check") or tuple(SYSTEMS)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if check(chosen) else 1)
    rebuild(chosen)
