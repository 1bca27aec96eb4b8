"""How much a step takes beyond its operations.

    python -m benchmarks.interpreter_overhead [-o benchmarks/results/interpreter_overhead.json]

One rank, prefill of a model whose operations take a millisecond and more (from 512 tokens). The step runs through the
interpreter as in any run; the same operations then run back to back on the values they had, with nothing in between.
Prints the ratio of medians; at most 1.10 on a CPU is asked for.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from executor import interpreter
from executor.environment import environment
from executor.mailboxes import MailboxTransport, Post, Turns
from executor.operations import Rank, Value, compute
from executor.replay import NoProgress
from executor.session import Generation, Session, prompts_of
from planner.documents.placements import static
from simulator import program as p
from simulator.formats.files import write_atomically
from simulator.lowering import lower
from simulator.model import Layer, Model
from simulator.workload import prefill_step

Call = tuple[p.Compute, Sequence[Value], Rank]


def model() -> Model:
    return Model(
        name="overhead",
        hidden_size=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=2048,
        layers=(Layer(),) * 4,
        vocab_size=512,
    )


def session_of(model: Model, tokens: int) -> Session:
    program = lower(model, prefill_step(1, tokens), static(model, 1), nodes=(0,), dtype="fp32")
    transport = MailboxTransport(0, Post(), Turns(0))
    generation = Generation(model, (program,))
    return Session(generation, 0, transport, NoProgress(), device=torch.device("cpu"))


def record_calls(session: Session, tokens: torch.Tensor) -> list[Call]:
    """Every operation of a step with the values it read."""
    calls: list[Call] = []

    def recorded(operation: p.Compute, reads: Sequence[Value], rank: Rank) -> tuple[Value, ...]:
        if not isinstance(operation, p.Store):
            calls.append((operation, tuple(reads), rank))
        return compute(operation, reads, rank)

    interpreter.compute = recorded  # type: ignore[assignment]
    session.step(0, tokens)
    interpreter.compute = compute
    return calls


@torch.inference_mode()
def run_raw(calls: list[Call]) -> float:
    began_s = time.perf_counter()
    for operation, reads, rank in calls:
        compute(operation, reads, rank)
    return time.perf_counter() - began_s


def run_step(session: Session, tokens: torch.Tensor) -> float:
    began_s = time.perf_counter()
    session.step(0, tokens)
    return time.perf_counter() - began_s


def measure(tokens: int, repeats: int) -> dict[str, float]:
    """Medians over ``repeats`` of the step and of its operations."""
    session = session_of(model(), tokens)
    prompts = torch.cat(prompts_of(session.generation))
    calls = record_calls(session, prompts)
    steps, raws = [], []
    for _ in range(repeats):  # in turn, so that a busy machine disturbs both alike
        steps.append(run_step(session, prompts))
        raws.append(run_raw(calls))
    step_s, raw_s = median(steps), median(raws)
    return {
        "tokens": tokens,
        "operations": len(calls),
        "operation_s": raw_s / len(calls),
        "step_s": step_s,
        "back_to_back_s": raw_s,
        "ratio": step_s / raw_s,
        "ratio_of_fastest": min(steps) / min(raws),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(tokens, options.repeats) for tokens in options.tokens]
    for row in rows:
        print(json.dumps(row))
    if options.output:
        about = environment(torch.device("cpu"), "torch").model_dump(mode="json")
        write_atomically(options.output, json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
