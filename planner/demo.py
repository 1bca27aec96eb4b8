"""``make demo``: the two halves of attnplan on one machine, as a sequence of its own commands.

(a) plan the documents' cluster for their four length categories and for a real conversation trace;
(b) calibrate this machine, plan it, run the plan and the best pool for real, and say how wrong the prediction was.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from planner.cli import main as plan
from planner.commands.output import say

OUT = Path("out")
CALIBRATION_S = 40
TOKENS = 1024


def commands() -> tuple[tuple[str, str], ...]:
    """(what it shows, the command), in order."""
    allocation, profile = OUT / "allocation.json", OUT / "local-profile.json"
    local, chosen, pool = OUT / "local-allocation.json", OUT / "measurement.json", OUT / "pool-measurement.json"
    run = f"run {local} --on cpu --tokens {TOKENS} --decode-tokens 32 --repeats 5"
    return (
        ("the documents' cluster, their four length categories", f"make fa-pool -o {allocation}"),
        ("why", f"explain {allocation}"),
        (
            "the same cluster under a real conversation trace's lengths",
            f"make fa-pool --workload azure-conv -o {OUT / 'conversation.json'}",
        ),
        ("an independent check of the plan", f"verify {allocation}"),
        (
            "what this machine's kernels, cores and messages cost",
            f"calibrate --device cpu --budget {CALIBRATION_S} -o {profile}",
        ),
        ("a plan for this machine: 2 base ranks, up to 2 pool ranks", f"make local --profile {profile} -o {local}"),
        ("run it: prefill and 32 decoded tokens, four processes at most", f"{run} -o {chosen}"),
        ("run the best FA Pool of 2 + 2 as well", f"{run} --candidate pool -o {pool}"),
        ("predicted vs measured", f"validate {local} {chosen} {pool} --trace {OUT / 'overlay.json'}"),
    )


def main() -> int:
    """Run every command; stop at the first that fails."""
    OUT.mkdir(exist_ok=True)
    began_s = time.monotonic()
    steps = commands()
    for number, (what, command) in enumerate(steps, 1):
        say(f"\n[{number}/{len(steps)}] {what}   ({time.monotonic() - began_s:.0f} s so far)\n$ plan {command}")
        code = plan(shlex.split(command))
        sys.stdout.flush()
        if code:
            return code
    say(f"\ndone in {time.monotonic() - began_s:.0f} s; everything written is in {OUT}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
