"""``plan run``: run the plan for real and write what was measured."""

from __future__ import annotations

import argparse

from planner.commands.output import progress, say, table, to_terminal
from planner.execution import Executed, RunOptions, default_question, execute
from simulator.allocation import Allocation
from simulator.formats.files import load, to_json, write_atomically
from simulator.units import format_bytes, format_seconds


def run(arguments: argparse.Namespace) -> int:
    allocation = load(arguments.allocation, Allocation)
    question = default_question(allocation, arguments.tokens, arguments.decode_tokens, arguments.candidate)
    options = RunOptions(on=arguments.on, repeats=arguments.repeats, limit_s=arguments.time_limit)
    with progress(f"run {question.candidate} plan, {question.tokens} tokens × {question.batch}") as update:
        done = execute(allocation, question, options, on_step=update)
    text = to_json(done.measurement)
    write_atomically(arguments.output, text)
    if arguments.json:
        print(text, end="")
    else:
        show(done)
    say(f"wrote {arguments.output}")
    return 0


def show(done: Executed) -> None:
    """Step times, traffic, and whether the tokens are right."""
    measured = done.measurement
    rows = []
    for phase in ("prefill", "decode"):
        durations = sorted(step.duration_s for step in measured.steps if step.phase == phase)
        if not durations:
            continue
        step = next(step for step in measured.steps if step.phase == phase)
        rows.append(
            (
                phase,
                format_seconds(durations[len(durations) // 2]),
                f"{format_seconds(durations[0])} – {format_seconds(durations[-1])}",
                format_bytes(sum(rank.bytes_sent for rank in step.ranks)),
                str(sum(rank.messages for rank in step.ranks)),
                measured.tag,
            )
        )
    columns = ("phase", "step (median)", "fastest – slowest", "sent a step", "messages", "tag")
    to_terminal(table(f"Run on {measured.place}: {measured.environment.device}", columns, rows))
    if done.matching_tokens is not None:
        total = sum(len(tokens) for tokens in measured.generated)
        to_terminal(f"{done.matching_tokens} of {total} generated tokens equal the one-device reference's")
