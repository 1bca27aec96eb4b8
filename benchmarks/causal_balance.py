"""python -m benchmarks.causal_balance

How evenly the blocks of a causal prefill share its attention: the core time of each block's kernels, replayed one after
another on one core, by rule; max/mean of the executed blocks' time and of their counted work. At most 1.03 at four
blocks is asked for of the balanced rules' work (issue 5, point 4). Best of some repeats: noise only adds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from executor.clock import HostClock
from executor.replay import Replay
from executor.session import Generation
from simulator.costs.work import kernels_of
from simulator.formats.files import write_atomically
from simulator.kernel import flops
from simulator.lowering import lower
from simulator.model import Layer, Model
from simulator.placement import AttentionGrid, Placement, Stage
from simulator.program import Attention
from simulator.workload import prefill_step

RULES = ("contiguous", "zigzag", "sqrt")


class CoreClock(HostClock):
    """The thread's own time on its core: what other processes do in between does not count."""

    def start(self) -> None:
        self.origin = time.thread_time()

    def mark(self) -> float:
        return time.thread_time()


def placement(model: Model, blocks: int, rule: str) -> Placement:
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=tuple(range(1, blocks + 1)),
        grid=AttentionGrid(heads=(model.num_attention_heads,), query_blocks=blocks),
        feed_forward_ranks=(0,),
        tensor_degree=1,
    )
    return Placement.model_validate({"name": rule, "stages": (stage,), "block_rule": rule})


def balance(rule: str, *, blocks: int, tokens: int, repeats: int) -> dict[str, object]:
    """max/mean over blocks of the best attention time of each, and of its FLOPs."""
    model = Model(
        name="balance",
        hidden_size=256,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=256,
        layers=(Layer(),),
        vocab_size=64,
    )
    nodes = (0,) * (blocks + 1)
    program = lower(model, prefill_step(1, tokens), placement(model, blocks, rule), nodes=nodes, dtype="fp32")
    replayed = Replay(Generation(model, (program,), repeats=repeats))
    for session in replayed.sessions:
        session.clock = session.interpreter.clock = CoreClock()
    measured = replayed.run().measurement
    seconds, work = [], []
    for rank in range(1, blocks + 1):
        mine = [i for i, operation in enumerate(program.ranks[rank]) if isinstance(operation, Attention)]
        spans = [[step.ranks[rank].spans[i] for i in mine] for step in measured.steps]
        seconds.append(min(sum(end - start for start, end in row) for row in spans))
        work.append(sum(flops(kernel) for i in mine for kernel in kernels_of(program.ranks[rank][i], "fp32")))  # type: ignore[arg-type]
    return {
        "rule": rule,
        "tokens": tokens,
        "seconds": seconds,
        "time_max_over_mean": max(seconds) / (sum(seconds) / blocks),
        "work_max_over_mean": max(work) / (sum(work) / blocks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/causal_balance.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        balance(rule, blocks=arguments.blocks, tokens=arguments.tokens, repeats=arguments.repeats) for rule in RULES
    ]
    for row in rows:
        print(f"{row['rule']:<10}  time {row['time_max_over_mean']:.3f}  work {row['work_max_over_mean']:.3f}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
