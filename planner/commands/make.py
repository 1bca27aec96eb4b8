"""``plan make``: choose the best policy and write allocation.json."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import replace

from planner.commands.output import ERR, say, table, to_terminal
from planner.make import QUICK_SIMULATIONS, make_problem
from planner.problem import Problem, load_problem
from simulator import presets
from simulator.allocation import Allocation, Alternative, Choice
from simulator.errors import SpecError
from simulator.formats.files import to_json, write_atomically
from simulator.profile import load_profile
from simulator.scenario import Scenario
from simulator.units import format_bytes, format_seconds

PARTS = ("model", "cluster", "workload", "profile")


def make(arguments: argparse.Namespace) -> int:
    scenario = scenario_of(arguments)
    if ERR.is_terminal:
        say(f"planning {scenario.model} on {scenario.cluster} for {scenario.workload} …")
    problem = load_problem(
        scenario,
        command=command_of(scenario, arguments),
        ttft_slo_s=arguments.ttft_slo,
        tpot_slo_s=arguments.tpot_slo,
        slo_quantile=arguments.slo_quantile,
        exactness=arguments.exactness,
    )
    check_profile(arguments, problem)
    limits = problem.limits.model_copy(update={"activation_s": arguments.activation})
    problem = replace(problem, limits=limits)
    limit = None if arguments.exact else arguments.simulations or QUICK_SIMULATIONS
    allocation = make_problem(problem, limit=limit, workers=os.cpu_count() or 1)
    text = to_json(allocation)
    write_atomically(arguments.output, text)
    if arguments.json:
        print(text, end="")
    else:
        show(allocation)
    say(f"wrote {arguments.output}")
    return 0


def check_profile(arguments: argparse.Namespace, problem: Problem) -> None:
    """A profile that was asked for must be of a GPU of the cluster: other GPUs take the shipped one of their name."""
    if arguments.profile is None or (found := load_profile(arguments.profile)).gpu.name in problem.profiles:
        return
    fitting = ", ".join(f"{profile.name} for {gpu}" for gpu, profile in problem.profiles.items())
    raise SpecError(
        f"--profile {arguments.profile}: of {found.gpu.name}, which cluster {problem.cluster.name} lacks; use {fitting}"
    )


def scenario_of(arguments: argparse.Namespace) -> Scenario:
    """The named scenario with the options laid over it; without a name, every part must be given."""
    changes = {name: getattr(arguments, name) for name in PARTS if getattr(arguments, name) is not None}
    for name in ("objective", "max_gpus", "base_gpus"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)
    if (getattr(arguments, "simulations", None) or 1) < 1:
        raise SpecError(f"--simulations {arguments.simulations}: must be at least 1")
    for name in ("max_gpus", "base_gpus"):
        if name in changes and changes[name] < 1:
            raise SpecError(f"--{name.replace('_', '-')} {changes[name]}: must be at least 1")
    if arguments.scenario is not None:
        base = presets.scenario(arguments.scenario)
        return Scenario.model_validate(base.model_dump() | changes)
    missing = [name for name in PARTS if name not in changes]
    if missing:
        raise SpecError(
            f"give a scenario, e.g. fa-pool, or all parts; missing: {', '.join('--' + name for name in missing)}"
        )
    return Scenario.model_validate({"name": "command-line", **changes})


def command_of(scenario: Scenario, arguments: argparse.Namespace) -> str:
    """The ``plan make`` line with every part spelled out: the same line from a scenario and from its parts."""
    words = ["plan", "make"]
    for name in PARTS:
        words += [f"--{name}", str(getattr(scenario, name))]
    words += ["--objective", scenario.objective]
    for name, value in (
        ("--max-gpus", scenario.max_gpus),
        ("--base-gpus", scenario.base_gpus),
        ("--ttft-slo", arguments.ttft_slo),
        ("--tpot-slo", arguments.tpot_slo),
        ("--activation", getattr(arguments, "activation", None)),
    ):
        if value is not None:
            words += [name, f"{value:g}"]
    for name, usual in (("slo_quantile", "median"), ("exactness", "drops-possible"), ("simulations", None)):
        value = getattr(arguments, name, usual)
        if value != usual:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if getattr(arguments, "exact", False):
        words.append("--exact")
    return shlex.join(words)


def show(allocation: Allocation) -> None:
    """The policy, one row a phase and length bucket, with the rivals' step times beside it."""
    title = f"{allocation.model} on {allocation.cluster} for {allocation.workload}: lowest {allocation.objective}"
    columns = (
        "phase",
        "prompt tokens",
        "placement",
        "GPUs",
        "pool",
        "step (90 % interval)",
        "runner-up",
        "best pool",
        "rule",
        "tag",
    )
    to_terminal(table(title, columns, [row_of(choice) for choice in allocation.policy]))
    for line in threshold_lines(allocation):
        to_terminal(line)


def row_of(choice: Choice) -> tuple[str, ...]:
    step = choice.metrics.step_s
    upper = f"{choice.max_tokens:,}" if choice.max_tokens else "∞"
    doubt = " (too close to call)" if choice.too_close_to_call else ""
    return (
        choice.phase,
        f"{choice.min_tokens:,}–{upper} (at {choice.tokens:,} × {choice.batch})",
        choice.placement.name,
        str(choice.num_gpus),
        str(choice.pool_gpus),
        f"{format_seconds(step.value)} ({format_seconds(step.p05)} – {format_seconds(step.p95)})",
        rival(choice.runner_up) + doubt,
        rival(choice.best_pool),
        rival(choice.rule),
        step.tag,
    )


def rival(alternative: Alternative | None) -> str:
    """``name 12.3 ms``, a proved bound, or why it cannot run."""
    if alternative is None:
        return "none"
    if alternative.step_s is not None:
        return f"{alternative.name} {format_seconds(alternative.step_s.value)}"
    if alternative.infeasible is not None:
        return f"{alternative.name}: infeasible"
    return f"{alternative.name} ≥ {format_seconds(alternative.bound_s or 0.0)}"


def threshold_lines(allocation: Allocation) -> list[str]:
    """What the search found where the documents fix 4096 tokens, and the tightest memory."""
    lines = []
    for threshold in allocation.thresholds:
        ours = "never" if threshold.tokens is None else f"from {threshold.tokens:,} tokens"
        pays = "never" if threshold.pool_tokens is None else f"from {threshold.pool_tokens:,} tokens"
        lines.append(
            f"{threshold.phase}: the best placement uses a pool {ours}; a pool beats the base alone {pays}; "
            f"the documents' rule says from {threshold.rule_tokens:,}"
        )
    rows = [rank for choice in allocation.policy for rank in choice.memory]
    rows += allocation.switching.residents if allocation.switching is not None else ()
    tightest = min(rows, key=lambda rank: rank.headroom_bytes)
    if allocation.switching is not None and allocation.switching.switching_cost > 0:
        lines.append(
            f"switching: {allocation.switching.probability:.0%} of batches wait "
            f"{format_seconds(allocation.switching.activation_s)} for GPUs that the one before did not hold"
        )
    lines.append(f"memory: rank {tightest.rank} is the tightest, with {format_bytes(tightest.headroom_bytes)} to spare")
    return lines
