"""Validate: measured steps over predicted bands, and the error of every kind of operation, worst first."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Literal, TypeVar

import streamlit as st

from app import charts, style
from app.inputs import choose, note
from app.nearby import nearby
from planner.overlay import overlay
from planner.validation import OperationRow, Validation, validate
from simulator.allocation import Allocation, digest
from simulator.errors import AttnplanError, SpecError
from simulator.formats.files import load
from simulator.measurement import Measurement
from simulator.units import format_seconds

MOST_STEPS = 4096
NONE = "none"
T = TypeVar("T", Allocation, Measurement)
Loaded = tuple[str, str]
"""(name, text) of a file."""


def show() -> None:
    st.title("Validate")
    st.caption(
        "A plan and what a run of it measured (`plan run`): measured points over predicted 90 % bands, and the error "
        "by kind of operation."
    )
    left, right = st.columns(2)
    with right:
        measurement = _file("measurement", tuple(nearby("measurement")))
    with left:
        allocation = _file("allocation", _first(nearby("allocation"), measurement))
    if allocation is None or measurement is None:
        st.info(
            "Give both files: upload what `plan make` and `plan run` wrote, or start `plan app` in the folder that "
            "holds them (or its `out`).",
            icon=":material/upload_file:",
        )
        return
    try:
        found = validated(allocation, measurement)
    except AttnplanError as error:
        note(str(error))
        return
    _results(found)


def _first(paths: dict[str, Path], measurement: Loaded | None) -> tuple[str, ...]:
    """The plan that the measurement is of comes first."""
    wanted = re.search(r'"allocation":\s*"([0-9a-f]{64})"', measurement[1]) if measurement else None
    if wanted is None:
        return tuple(paths)
    own = [name for name, path in paths.items() if _digest(str(path), path.stat().st_mtime_ns) == wanted[1]]
    return tuple(dict.fromkeys((*own, *paths)))


@st.cache_resource(max_entries=64, show_spinner=False)
def _digest(path: str, changed: int) -> str:
    """Empty where the file is no plan."""
    try:
        return digest(load(Path(path), Allocation))
    except AttnplanError:
        return ""


def _file(kind: Literal["allocation", "measurement"], names: tuple[str, ...]) -> Loaded | None:
    """An upload, else a file picked from where the explorer was started."""
    uploaded = st.file_uploader(f"Upload {kind}.json", type=["json"], key=f"upload.{kind}")
    found = nearby(kind)
    options = (NONE, *names)
    picked = choose(kind, f"or pick one ({len(found)} here)", options, options[1] if names else NONE)
    if uploaded is not None:
        try:
            return uploaded.name, uploaded.getvalue().decode("utf-8")
        except UnicodeDecodeError:
            note(f"{uploaded.name}: not UTF-8 text; upload the JSON file that attnplan wrote")
            return None
    return None if picked == NONE else (picked, found[picked].read_text(encoding="utf-8"))


@st.cache_resource(max_entries=8, show_spinner="Simulating the programs that ran …")
def validated(allocation: Loaded, measurement: Loaded) -> Validation:
    """SpecError where a file is not what it should be or the two do not belong together."""
    plan, run = _parse(allocation, Allocation), _parse(measurement, Measurement)
    if run.question is not None and run.question.decoded_tokens > MOST_STEPS:
        raise SpecError(f"{measurement[0]}: {run.question.decoded_tokens} decoded tokens; the page shows {MOST_STEPS}")
    try:
        return validate(plan, run)
    except (LookupError, ValueError, ArithmeticError, StopIteration, RuntimeError, MemoryError) as error:
        raise SpecError(f"{measurement[0]} does not fit {allocation[0]}; upload the pair that one run wrote") from error


def _parse(file: Loaded, kind: type[T]) -> T:
    """Read as the command line reads; messages name the file as the user knows it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        path.write_text(file[1], encoding="utf-8", errors="surrogatepass")
        try:
            return load(path, kind)
        except AttnplanError as error:
            raise SpecError(str(error).replace(str(path), file[0])) from error


def _results(found: Validation) -> None:
    tag = found.measurement.tag
    outside = sum(not row.inside for row in found.steps)
    shown = []
    for phase in ("prefill", "decode"):
        error = found.median_error(phase)
        shown.append(
            (f"median step error, {phase}", "no step" if error != error else f"{error:.1%}", "|predicted/measured − 1|")
        )
    shown.append(("steps inside their band", f"{len(found.steps) - outside} of {len(found.steps)}", "90 % interval"))
    st.html(style.stats(shown))
    st.caption(f"Measured values are tagged {tag} ({found.measurement.place}, {found.measurement.environment.device}).")
    st.altair_chart(charts.validation(_points(found)), width="stretch")
    st.markdown("#### By kind of operation, worst error first")
    st.dataframe(operation_rows(found.operations), hide_index=True, width="stretch")
    st.caption(
        "Rank-seconds a step, summed over ranks. Waiting: blocked on transfers. Error: predicted over measured − 1."
    )
    if found.timelines:
        st.download_button(
            "Download both timelines for Perfetto", lambda: overlay(found).encode(), "overlay.trace.json",
            "application/json", icon=":material/download:",
        )  # fmt: skip


def _points(found: Validation) -> list[dict[str, object]]:
    return [
        {
            "step": row.index, "predicted": row.predicted_s * charts.MS, "low": row.p05_s * charts.MS,
            "high": row.p95_s * charts.MS, "measured": row.measured_s * charts.MS,
            "inside": "inside the band" if row.inside else "outside",
        }
        for row in found.steps
    ]  # fmt: skip


def operation_rows(operations: tuple[OperationRow, ...]) -> list[dict[str, object]]:
    """Largest relative error first."""
    return [
        {
            "phase": row.phase, "operation": row.kind, "count": row.count, "predicted": format_seconds(row.predicted_s),
            "measured": format_seconds(row.measured_s), "error": f"{row.error:+.0%}".replace("-", "−"),
        }
        for row in sorted(operations, key=lambda row: -abs(row.error))
    ]  # fmt: skip
