"""``plan workload import trace``: a workload file from a log of requests."""

from __future__ import annotations

import argparse

from planner.commands.output import say, table, to_terminal
from simulator.errors import SpecError
from simulator.formats.files import to_yaml, write_atomically
from simulator.workload import Workload


def import_trace(arguments: argparse.Namespace) -> int:
    from simulator.formats.trace import MAX_BUCKETS, from_trace

    if arguments.buckets > MAX_BUCKETS:
        raise SpecError(f"--buckets {arguments.buckets}: must be at most {MAX_BUCKETS}")
    workload = with_batches(
        from_trace(arguments.file, arguments.buckets), arguments.prefill_batch, arguments.decode_batch
    )
    write_atomically(arguments.output, to_yaml(workload, comment="Made by plan workload import trace."))
    show(workload)
    say(f"wrote {arguments.output}")
    return 0


def with_batches(workload: Workload, prefill: int | None, decode: int | None) -> Workload:
    """The trace's workload with the batch sizes that a trace does not tell; 1 where none is given, said as assumed."""
    stated = {"prefill_batch": prefill, "decode_batch": decode}
    assumptions = [
        f"{name.replace('_', ' ')} 1: a trace does not tell it" for name, size in stated.items() if size is None
    ]
    return workload.model_copy(
        update={
            **{name: size for name, size in stated.items() if size is not None},
            "assumptions": tuple(assumptions),
        }
    )


def show(workload: Workload) -> None:
    rows = [
        (
            f"{bucket.min_tokens:,}–{'∞' if bucket.max_tokens is None else f'{bucket.max_tokens:,}'}",
            f"{bucket.tokens:,}",
            f"{bucket.output_tokens:,}",
            f"{bucket.share:.1%}",
        )
        for bucket in workload.buckets
    ]
    rate = "unknown" if workload.requests_per_s is None else f"{workload.requests_per_s:.3g} requests/s"
    caption = "; ".join(
        (
            f"a prefill step takes {workload.prefill_batch} prompts, a decode step {workload.decode_batch} sequences",
            f"arrivals: {rate}",
            *(f"assumed: {text}" for text in workload.assumptions),
        )
    )
    columns = ("prompt tokens", "planned at", "output tokens", "of requests")
    to_terminal(table(f"Workload {workload.name}", columns, rows, caption))
