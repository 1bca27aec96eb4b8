"""``plan launch``: the commands and manifests that start a plan on a cluster."""

from __future__ import annotations

import argparse

from planner.commands.output import say
from planner.execution import inputs
from planner.handover.launch import Launch, make_launch, slurm_script, torchrun_script
from simulator.allocation import Allocation
from simulator.formats.files import load


def launch(arguments: argparse.Namespace) -> int:
    """torchrun (default), ``--slurm`` or ``--kubernetes``: text on stdout, to be redirected into a file."""
    allocation = load(arguments.allocation, Allocation)
    made = make_launch(allocation, inputs(allocation))
    print(text_of(made, arguments), end="")
    say(f"{made.world_size} ranks on {len(made.hosts)} nodes; plan sha256 {made.digest[:12]}")
    return 0


def text_of(made: Launch, arguments: argparse.Namespace) -> str:
    if arguments.kubernetes:
        from planner.handover.kubernetes import jobset

        return jobset(made, arguments.allocation.stat().st_size)
    path = str(arguments.allocation)
    return slurm_script(made, path) if arguments.slurm else torchrun_script(made, path)
