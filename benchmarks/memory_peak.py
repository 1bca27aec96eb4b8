"""python -m benchmarks.memory_peak [--ranks 2 4] [--tokens 512] [-o FILE]

Memory of every rank, predicted and measured, over a prefill and two decode steps of every scheme in fp32, gone through
twice: ``simulator.memory`` against torch's own peak (``executor.peak_memory``). At most 5 % apart is asked for (issue
6, point 4). Rows: benchmarks/results/memory_peak.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from executor.peak_memory import peak_bytes
from executor.session import Generation
from executor.supervisor import Supervisor
from simulator.formats.files import write_atomically
from simulator.lowering import lower
from simulator.memory import footprint, rank_memory
from simulator.model import Model
from simulator.presets import cluster
from simulator.workload import Sequences, Step
from tests.executed_cases import Case, cases

SEQUENCES, DECODED = 4, 2


def widened(model: Model) -> Model:
    """A test's model at a width where values outweigh a kernel's own buffers."""
    wide = {"hidden_size": 512, "head_dim": 64, "intermediate_size": 1536, "vocab_size": 8192, "weight_dtype": "fp32"}
    if model.experts is not None:
        sizes = {"intermediate_size": 768, "shared_intermediate_size": 512}
        wide["experts"] = model.experts.model_copy(update=sizes)
    return model.model_copy(update=wide)


def generation(case: Case, world: int, tokens: int) -> Generation:
    model, decoder, nodes = widened(case.model), case.decode or case.prefill, (0,) * world
    prompts = (Sequences(SEQUENCES, 0, tokens),)
    made = [lower(model, Step("prefill", prompts), case.prefill, nodes=nodes, dtype="fp32", cache=decoder)]
    for number in range(DECODED if case.decodes else 0):
        grown = (Sequences(SEQUENCES, tokens + number, 1, tokens),)
        made.append(lower(model, Step("decode", grown), decoder, nodes=nodes, dtype="fp32"))
    return Generation(model, tuple(made), warm_up=0)


def rows(world: int, tokens: int) -> Iterator[dict[str, object]]:
    gpu = cluster("local-cpu").gpus[0]
    with Supervisor(world) as ranks:
        for case in cases(world):
            made = generation(case, world, tokens)
            measured = ranks.run(peak_bytes, made, limit_s=600.0)
            predicted = rank_memory(made.model, [footprint(made.model, one) for one in made.programs], [gpu] * world)
            for rank, ((_, peak), memory) in enumerate(zip(measured, predicted, strict=True)):
                yield {
                    "scheme": case.scheme,
                    "placement": case.prefill.name,
                    "ranks": world,
                    "rank": rank,
                    "predicted_bytes": memory.total,
                    "measured_bytes": peak,
                    "error": memory.total / peak - 1,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/memory_peak.json"))
    arguments = parser.parse_args()
    found = []
    for world in arguments.ranks:
        for row in rows(world, arguments.tokens):
            found.append(row)
            print(f"{row['scheme']:<14} {row['placement']:<16} rank {row['rank']} of {world}  {row['error']:+.1%}")
    within = sum(abs(float(str(row["error"]))) <= 0.05 for row in found)
    print(f"{within} of {len(found)} ranks within 5 %")
    write_atomically(arguments.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
