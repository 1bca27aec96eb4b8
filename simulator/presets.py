"""Presets: models, clusters, workloads and scenarios by name, or from a path wherever a name goes.

The files live in ``simulator/presets/<kind>/<name>.yaml`` and are ordinary input files: copy one to start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from simulator.cluster import Cluster, Gpu
from simulator.errors import SpecError
from simulator.formats import hf_config
from simulator.formats.files import load, parse, validate
from simulator.model import Model
from simulator.scenario import Scenario
from simulator.workload import Workload

Kind = Literal["models", "clusters", "workloads", "scenarios"]
FOLDER = Path(__file__).with_suffix("")
SUFFIXES = (".json", ".yaml", ".yml")
TRACES = (".csv", ".jsonl")


def names(kind: Kind) -> tuple[str, ...]:
    """The names of the shipped presets of one kind, sorted."""
    return tuple(sorted(path.stem for path in (FOLDER / kind).glob("*.yaml")))


def is_path(name_or_path: str) -> bool:
    """A path has a slash, ends in .json, .yaml or .yml, or exists; anything else is a preset's name."""
    if "/" in name_or_path or name_or_path.endswith(SUFFIXES):
        return True
    return "\0" not in name_or_path and len(name_or_path) < 256 and Path(name_or_path).is_file()


def model(name_or_path: str) -> Model:
    """A model from a preset, an attnplan model file or a Hugging Face ``config.json``."""
    path = _locate("models", name_or_path)
    value = parse(path)
    return hf_config.load(path) if hf_config.is_config(value) else validate(value, Model, source=str(path))


def cluster(name_or_path: str) -> Cluster:
    """A cluster from a preset or a file."""
    return load(_locate("clusters", name_or_path), Cluster)


def workload(name_or_path: str) -> Workload:
    """A workload from a preset or a file; a trace is refused with the command that makes one of it."""
    path = _locate("workloads", name_or_path)
    if path.suffix in TRACES:
        raise SpecError(
            f"{path}: a trace, not a workload; make one: plan workload import trace {path} -o workload.yaml"
        )
    return load(path, Workload)


def scenario(name_or_path: str) -> Scenario:
    """A scenario from a preset or a file; relative paths in a file start at that file's folder."""
    path = _locate("scenarios", name_or_path)
    found = load(path, Scenario)
    parts = {key: getattr(found, key) for key in ("model", "cluster", "workload", "profile")}
    moved = {key: str(path.parent / part) for key, part in parts.items() if _is_relative_path(part)}
    return found.model_copy(update=moved)


def gpus() -> dict[str, Gpu]:
    """Every GPU type the shipped clusters know, by name: the facts an importer needs and no tool prints."""
    found = {gpu.name: gpu for name in names("clusters") for gpu in cluster(name).gpus}
    return dict(sorted(found.items()))


def _existing(kind: Kind, path: Path) -> Path:
    """The path, or SpecError with what could be given: a repository's name, say, has a slash and is no path."""
    if "\0" not in str(path) and not os.path.exists(path):  # also False for a name the system finds too long
        wanted = "its config.json" if kind == "models" else "a .yaml or .json file"
        raise SpecError(
            f"{str(path)[:200]}: no such file; give the path of {wanted}, or one of {', '.join(names(kind))}"
        )
    return path


def _is_relative_path(part: str) -> bool:
    return ("/" in part or part.endswith(SUFFIXES)) and not Path(part).is_absolute()


def _locate(kind: Kind, name_or_path: str) -> Path:
    assert kind in get_args(Kind), kind
    known = names(kind)
    if name_or_path in known:
        return FOLDER / kind / f"{name_or_path}.yaml"
    if is_path(name_or_path):
        return _existing(kind, Path(name_or_path))
    raise SpecError(f"{kind[:-1]}: unknown {name_or_path[:80]!r}; known: {', '.join(known)}; or give a path")
