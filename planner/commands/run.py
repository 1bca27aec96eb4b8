"""``plan run``: run the plan for real and write what was measured."""

from __future__ import annotations

import argparse

from planner.commands.output import progress, say, table, to_terminal
from planner.execution import Executed, RunOptions, default_question, execute
from planner.serve import Served, Traffic, serve
from simulator.allocation import Allocation
from simulator.errors import SpecError
from simulator.formats.files import load, to_json, write_atomically
from simulator.units import format_bytes, format_seconds


def run(arguments: argparse.Namespace) -> int:
    allocation = load(arguments.allocation, Allocation)
    if arguments.batches is not None or arguments.requests is not None:
        return serve_batches(allocation, arguments)
    question = default_question(
        allocation, arguments.tokens, arguments.decode_tokens, arguments.candidate, packing=arguments.compress
    )
    options = options_of(arguments)
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


def options_of(arguments: argparse.Namespace) -> RunOptions:
    from executor.sampling import Sampling

    drawn = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    return RunOptions(
        on=arguments.on,
        repeats=arguments.repeats,
        limit_s=arguments.time_limit,
        weights=arguments.weights,
        sampling=drawn,
        backend=arguments.backend,
        graphs=arguments.graphs,
        transport=arguments.transport,
    )


def serve_batches(allocation: Allocation, arguments: argparse.Namespace) -> int:
    """``--batches``: every decision of the resource manager with its measured cost."""
    batches = 8 if arguments.batches is None else arguments.batches
    if arguments.compress != "none":
        raise SpecError("--compress: not with --batches; run one generation to see what it does")
    traffic = Traffic(batches, arguments.decode_tokens, arguments.requests, arguments.seed)
    with progress(f"serve {batches} batches by the {arguments.candidate} plan") as update:
        done = serve(allocation, traffic, options_of(arguments), candidate=arguments.candidate, on_batch=update)
    text = to_json(done.log)
    write_atomically(arguments.output, text)
    if arguments.json:
        print(text, end="")
    else:
        show_served(done)
    say(f"wrote {arguments.output}")
    return 0


def show_served(done: Served) -> None:
    """One row a batch: what it asked for, what it got, what the change and the steps cost."""
    rows = []
    for batch in done.log.batches:
        tpot_s, wanted = batch.tpot_s, batch.wanted_gpus
        rows.append(
            (
                str(batch.number),
                ", ".join(str(length) for length in sorted(batch.lengths, reverse=True)),
                f"{batch.prefill_placement} · {batch.decode_placement}",
                f"{batch.prefill_pool_gpus} of {wanted[0]} · {batch.decode_pool_gpus} of {wanted[1]}",
                format_seconds(batch.switch_s),
                format_seconds(batch.ttft_s),
                "–" if tpot_s is None else format_seconds(tpot_s),
            )
        )
    columns = ("batch", "prompt tokens", "prefill · decode", "pool: got of wanted", "switch", "TTFT", "TPOT")
    to_terminal(table(f"Served; every group made and used in {format_seconds(done.log.warm_s)}", columns, rows))
    if done.matching_tokens is not None:
        total = sum(len(tokens) for batch in done.log.batches for tokens in batch.generated)
        to_terminal(f"{done.matching_tokens} of {total} generated tokens equal the one-device reference's")


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
    if done.compression is not None:
        lost = done.compression
        to_terminal(
            f"packed: the prefill sends {format_bytes(lost.packed_bytes)} for {format_bytes(lost.plain_bytes)}; its "
            f"logits move by {lost.relative_error:.2%} (at most {lost.max_abs_error:.3g}), "
            f"{lost.same_tokens:.0%} of its tokens stay"
        )
