"""Other people's measurements → a profile: AIConfigurator's tables, nccl-tests logs, Vidur's CSVs.

Logs and CSVs carry no datasheet, so the GPU's facts come from the shipped profile of the same system. Rows a
profile of one node cannot hold (several nodes, broadcasts) are counted on stderr, never silently dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calibration.fit import FitOptions, fit_profile
from calibration.importers import aiconfigurator, nccl_tests, vidur
from calibration.importers.collective_row import CollectiveRow
from calibration.importers.engine_all_reduce import load_all_reduce
from calibration.presets import FRAMEWORK, GPU_NAMES, SYSTEMS
from calibration.rows import TimedRow
from simulator.cluster import Gpu
from simulator.errors import SpecError
from simulator.formats.table import read_lines
from simulator.profile import Profile, SendRecv, load_profile

SOURCES = ("aiconfigurator", "engine-all-reduce", "nccl-tests", "vidur")
CURVE_KINDS = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})


def imported_profile(
    source: str, files: Sequence[Path] = (), system: str = "a100_sxm", framework: str = FRAMEWORK
) -> Profile:
    """A profile of ``system`` from ``files`` (AIConfigurator: its systems folder, or none for the package's)."""
    if source == "aiconfigurator":
        return _from_aiconfigurator(files, system, framework)
    if source == "engine-all-reduce":
        return _with_engine_all_reduce(files, system, framework)
    if source not in SOURCES:
        raise SpecError(f"import: unknown source {source!r}; known: {', '.join(SOURCES)}")
    if not files:
        raise SpecError(f"import {source}: name at least one file")
    if source == "nccl-tests":
        runs = [nccl_tests.read_run(path) for path in files]
        kernels: list[TimedRow] = []
        collectives = [row for run in runs for row in run.rows]
    else:
        kernels, collectives = _vidur_rows(files)
    options = _options(source, files, system)
    rows = [*kernels, *(TimedRow(row.kernel(), row.duration_s, row.place) for row in _in_a_node(collectives))]
    pair = _pair([row for row in collectives if row.collective == "send_recv" and row.nodes == 1])
    if not rows and pair is None:
        raise SpecError(f"import {source}: no row of one node in {', '.join(map(str, files))}")
    gpu = _known_gpu(system)
    profile = fit_profile(rows, gpu, options) if rows else Profile(name=options.name, gpu=gpu, kernels=())
    return profile if pair is None else profile.model_copy(update={"send_recv": pair})


def _from_aiconfigurator(files: Sequence[Path], system: str, framework: str) -> Profile:
    if len(files) > 1:
        raise SpecError(f"import aiconfigurator: one systems folder, got {len(files)} paths")
    folder = files[0] if files else None
    imported = aiconfigurator.load_rows(folder, system, framework)
    for reason, count in sorted(imported.left_out.items()):
        print(f"left out: {count} rows: {reason}", file=sys.stderr)
    names = {preset_system: GPU_NAMES[name] for name, preset_system in SYSTEMS.items()}
    gpu = aiconfigurator.load_gpu(folder, system, names.get(system, system))
    options = FitOptions(
        name=f"{system}-{framework}",
        source=f"AIConfigurator tables, data/{system}, {framework} and nccl, newest version of each",
        licence=aiconfigurator.LICENCE,
        rebuilt_with=f"plan calibrate import aiconfigurator --system {system} --framework {framework}",
    )
    return fit_profile(imported.rows, gpu, options)


def _with_engine_all_reduce(files: Sequence[Path], system: str, framework: str) -> Profile:
    """The shipped profile of ``system`` with the all-reduce of a serving engine in NCCL's place."""
    if len(files) > 1:
        raise SpecError(f"import engine-all-reduce: one systems folder, got {len(files)} paths")
    rows = load_all_reduce(files[0] if files else None, system, framework)
    base = load_profile(_preset(system))
    options = FitOptions(
        name=f"{base.name}-{framework}-all-reduce",
        source=f"AIConfigurator tables, data/{system}/comm/{framework}, custom all-reduce, newest version",
        licence=aiconfigurator.LICENCE,
        rebuilt_with=f"plan calibrate import engine-all-reduce --system {system} --framework {framework}",
    )
    curves = fit_profile(rows, base.gpu, options)
    kept = tuple(curve for curve in base.collectives if curve.kind != "all_reduce")
    update = {"name": options.name, "collectives": (*curves.collectives, *kept)}
    return base.model_copy(update=update | {"provenance": (*base.provenance, *curves.provenance)})


def _options(source: str, files: Sequence[Path], system: str) -> FitOptions:
    names = ", ".join(path.name for path in files)
    return replace(
        FitOptions(),
        name=f"{system}-{source}",
        source=f"{source}: {names}",
        licence="MIT" if source == "vidur" else "as the logs' owner states",
        rebuilt_with=f"plan calibrate import {source} {names} --system {system}",
    )


def _known_gpu(system: str) -> Gpu:
    return load_profile(_preset(system)).gpu


def _preset(system: str) -> str:
    presets = {preset_system: name for name, preset_system in SYSTEMS.items()}
    if system not in presets:
        raise SpecError(f"--system: no datasheet facts for {system!r}; known: {', '.join(presets)}")
    return presets[system]


def _vidur_rows(files: Sequence[Path]) -> tuple[list[TimedRow], list[CollectiveRow]]:
    """Network tables have a ``collective`` column; every other file is read as a compute table."""
    kernels: list[TimedRow] = []
    collectives: list[CollectiveRow] = []
    for path in files:
        header = next((line for _, line in read_lines(path)), "").strip().split(",")
        if "collective" in header:
            collectives.extend(vidur.read_network(path))
        else:
            kernels.extend(TimedRow(row.kernel, row.duration_s, row.place) for row in vidur.read_compute(path))
    return kernels, collectives


def _in_a_node(rows: Sequence[CollectiveRow]) -> list[CollectiveRow]:
    kept = [row for row in rows if row.nodes == 1 and row.collective in CURVE_KINDS]
    across = sum(row.nodes > 1 for row in rows)
    other = sum(row.nodes == 1 and row.collective not in (*CURVE_KINDS, "send_recv") for row in rows)
    for count, reason in ((across, "across nodes (a profile describes one)"), (other, "kinds a profile does not hold")):
        if count:
            print(f"left out: {count} rows {reason}", file=sys.stderr)
    return kept


def _pair(rows: Sequence[CollectiveRow]) -> SendRecv | None:
    """latency + bytes/bandwidth through two GPUs' messages, relative least squares."""
    if len({row.num_bytes for row in rows}) < 2:
        return None
    size = np.array([float(row.num_bytes) for row in rows])
    seconds = np.array([row.duration_s for row in rows])
    design = np.stack([1.0 / seconds, size / seconds], axis=1)
    latency, inverse = np.linalg.lstsq(design, np.ones(len(size)), rcond=None)[0]
    if inverse <= 0:
        raise SpecError(f"{rows[0].place}: messages do not take longer when they grow; no bandwidth can be fitted")
    return SendRecv(
        latency_s=max(float(latency), 0.0),
        bandwidth_bytes_per_s=float(1.0 / inverse),
        tag="fitted",
        source=f"{len(rows)} send_recv rows",
    )
