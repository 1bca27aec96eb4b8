"""``plan calibrate`` and ``plan predict``: profiles from measurements, seconds from profiles."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.commands.output import progress, say, table, to_terminal
from simulator.errors import SpecError
from simulator.formats.files import to_json, write_atomically
from simulator.kernel import ComputeKernel
from simulator.profile import Profile, load_profile

if TYPE_CHECKING:
    from calibration.journal import Journal
    from calibration.sweep import OnProgress, Sweep

DEFAULT_BUDGET_S = {"cpu": 45.0, "cuda": 600.0}
DTYPE = {"cpu": "fp32", "cuda": "bf16"}


def calibrate(arguments: argparse.Namespace) -> int:
    """Measure this machine with the executor's own operations and fit a profile."""
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch sees no CUDA device here; use --device cpu")
    budget_s = DEFAULT_BUDGET_S[device] if arguments.budget is None else arguments.budget
    if budget_s <= 0:
        raise SpecError(f"--budget {budget_s:g}: must be positive seconds")
    donor = load_profile(arguments.like) if arguments.like else None
    hints = plan_kernels(arguments.plan) if arguments.plan else ()
    journal = open_journal(arguments.output, device)
    if journal.seconds:
        say(f"{journal.path}: {len(journal.seconds)} points are timed already")
    with progress(f"calibrate {device}, about {budget_s:.0f} s") as update:
        sweep = measure(device, budget_s, hints, journal, lambda what, share: update(round(100 * share), 100))
    save(profile_of(device, sweep, donor), arguments.output)
    journal.path.unlink(missing_ok=True)
    return 0


def plan_kernels(path: Path) -> tuple[ComputeKernel, ...]:
    """The kernels of an allocation's placements, a prefill and a decode step a length: what to time first."""
    from calibration.sweep import hints_of
    from planner.execution import default_question, inputs, programs
    from simulator.allocation import Allocation
    from simulator.formats.files import load

    allocation = load(path, Allocation)
    found, lengths = inputs(allocation), [choice.tokens for choice in allocation.policy if choice.phase == "prefill"]
    questions = [default_question(allocation, tokens, 1, "chosen") for tokens in lengths]
    return hints_of(program for question in questions for program in programs(allocation, found, question))


def open_journal(output: Path, device: str) -> Journal:
    """Beside ``output``; ProfileError naming what changed when it was begun on another device, driver or torch."""
    from calibration.journal import Journal
    from calibration.points import facts, journal_beside

    return Journal(journal_beside(output), facts(device, DTYPE[device]))


def measure(
    device: str, budget_s: float, hints: Sequence[ComputeKernel], journal: Journal, on_progress: OnProgress
) -> Sweep:
    from calibration import sweep

    run = sweep.calibrate_cpu if device == "cpu" else sweep.calibrate_cuda
    return run(budget_s, dtype=DTYPE[device], hints=hints, on_progress=on_progress, journal=journal)


def profile_of(device: str, timed: Sweep, donor: Profile | None) -> Profile:
    from calibration import sweep

    return sweep.cpu_profile(timed, donor=donor) if device == "cpu" else sweep.cuda_profile(timed, donor=donor)


def save(profile: Profile, path: Path) -> None:
    """Write a profile and list what it holds."""
    write_atomically(path, to_json(profile))
    rows = [
        (
            model.kernel,
            model.dtype,
            str(model.provenance.num_rows),
            f"{min(model.intervals.low):+.0%} – {max(model.intervals.high):+.0%}",
            model.tag,
        )
        for model in profile.kernels
    ]
    columns = ("kernel", "dtype", "rows", "90 % of held-out rows within", "tag")
    to_terminal(table(f"Profile {profile.name}: {profile.gpu.name}", columns, rows))
    say(f"wrote {path}")


def import_(arguments: argparse.Namespace) -> int:
    """A profile from AIConfigurator's tables; collectives from nccl-tests logs; kernels from Vidur's CSVs."""
    from calibration.importing import imported_profile

    save(imported_profile(arguments.source, arguments.files, arguments.system, arguments.framework), arguments.output)
    return 0


def update(arguments: argparse.Namespace) -> int:
    """What runs taught: residuals refitted, intervals re-set."""
    from planner.learning import learn
    from simulator.allocation import Allocation
    from simulator.formats.files import load
    from simulator.measurement import Measurement

    profile, allocation = load_profile(arguments.profile), load(arguments.allocation, Allocation)
    measurements = [load(path, Measurement) for path in arguments.measurements]
    save(learn(profile, allocation, measurements), arguments.output)
    return 0


def holdout(arguments: argparse.Namespace) -> int:
    """The accuracy table on rows held out of the fit."""
    from calibration.holdout import print_table

    print_table(arguments.system, as_json=arguments.json)
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Seconds, p05, p95 and tag of every row of a table of operations."""
    from planner.ops_csv import predicted_csv

    text = predicted_csv(arguments.operations, load_profile(arguments.profile))
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        write_atomically(arguments.output, text)
        say(f"wrote {arguments.output}")
    return 0
