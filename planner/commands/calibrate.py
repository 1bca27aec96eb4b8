"""``plan calibrate`` and ``plan predict``: profiles from measurements, seconds from profiles."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from planner.commands.output import progress, say, table, to_terminal
from simulator.errors import SpecError
from simulator.formats.files import to_json, write_atomically
from simulator.profile import Profile, load_profile

DEFAULT_BUDGET_S = {"cpu": 45.0, "cuda": 600.0}


def calibrate(arguments: argparse.Namespace) -> int:
    """Measure this machine with the executor's own operations and fit a profile."""
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: torch sees no CUDA device here; use --device cpu")
    budget_s = DEFAULT_BUDGET_S[device] if arguments.budget is None else arguments.budget
    if budget_s <= 0:
        raise SpecError(f"--budget {budget_s:g}: must be positive seconds")
    with progress(f"calibrate {device}, about {budget_s:.0f} s") as update:
        profile = measure(device, budget_s, lambda what, share: update(round(100 * share), 100))
    save(profile, arguments.output)
    return 0


def measure(device: str, budget_s: float, on_progress: object) -> Profile:
    from calibration import sweep

    assert callable(on_progress)
    if device == "cpu":
        return sweep.cpu_profile(sweep.calibrate_cpu(budget_s, on_progress=on_progress))
    return sweep.cuda_profile(sweep.calibrate_cuda(budget_s, on_progress=on_progress))


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
