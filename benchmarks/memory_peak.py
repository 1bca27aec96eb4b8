"""python -m benchmarks.memory_peak [--ranks 2 4] [--tokens 512] [--hidden 512] [--dtypes fp32 bf16] [-o FILE]

Memory of every rank, predicted and measured, over a prefill and two decode steps of every scheme, gone through twice:
``simulator.memory`` against torch's own peak (``executor.peak_memory``). At most 5 % apart is asked for. Rows are
added to the file's, the same runs replaced; docs/memory.md is made of them (``--page``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from executor.peak_memory import peak_bytes
from executor.session import Generation
from executor.supervisor import Supervisor
from simulator.errors import InfeasibleError
from simulator.formats.files import write_atomically
from simulator.lowering import lower
from simulator.memory import footprint, rank_memory
from simulator.model import Model
from simulator.presets import cluster
from simulator.workload import Sequences, Step
from simulator.workspace import Machine
from tests.executed_cases import NODES, Case, cases
from tests.executor_world import on_nodes

SEQUENCES, DECODED, WITHIN = 4, 2, 0.05
ROWS, PAGE = Path("benchmarks/results/memory_peak.json"), Path("docs/memory.md")
Row = dict[str, str | int | float]
SIZES = ("ranks", "dtype", "tokens", "hidden")


@dataclass(frozen=True, slots=True)
class Size:
    """A run's size: ranks two a node, prompt tokens of each of four sequences, the model's width."""

    ranks: int
    dtype: str
    tokens: int
    hidden: int


def widened(model: Model, size: Size) -> Model:
    """A test's model at a width where values outweigh a kernel's own buffers."""
    wide: dict[str, object] = {
        "hidden_size": size.hidden,
        "head_dim": 64,
        "intermediate_size": 3 * size.hidden,
        "vocab_size": 8192,
        "weight_dtype": size.dtype,
    }
    if model.experts is not None:
        sizes = {"intermediate_size": 3 * size.hidden // 2, "shared_intermediate_size": size.hidden}
        wide["experts"] = model.experts.model_copy(update=sizes)
    return model.model_copy(update=wide)


def generation(case: Case, size: Size, nodes: tuple[int, ...]) -> Generation:
    model, decoder = widened(case.model, size), case.decode or case.prefill
    steps = [Step("prefill", (Sequences(SEQUENCES, 0, size.tokens),))]
    for number in range(DECODED if case.decodes else 0):
        steps.append(Step("decode", (Sequences(SEQUENCES, size.tokens + number, 1, size.tokens),)))
    programs = (
        lower(model, step, decoder if number else case.prefill, nodes=nodes, dtype=size.dtype, cache=decoder)
        for number, step in enumerate(steps)
    )
    return Generation(model, tuple(programs), warm_up=0)


def rows(size: Size, some: Sequence[Case] | None = None, world: Supervisor | None = None) -> Iterator[Row]:
    """One row a rank of every scheme, or of some, on a world of ranks (None: one of its own)."""
    if world is None:
        with Supervisor(size.ranks, timeout_s=600.0, seats=on_nodes(NODES[: size.ranks])) as ranks:
            yield from rows(size, some, ranks)
        return
    gpu, machine = cluster("local-cpu").gpus[0], Machine("cpu", tuple(seat.node for seat in world.seats))
    for number, case in enumerate(cases(size.ranks) if some is None else some):
        try:
            made = generation(case, size, machine.nodes)
        except InfeasibleError:  # too few tokens for so many ranks
            continue
        measured = world.run(peak_bytes, made, limit_s=600.0)
        footprints = [footprint(made.model, one, machine) for one in made.programs]
        for rank, memory in enumerate(rank_memory(made.model, footprints, [gpu] * size.ranks)):
            _, peak = measured[rank]
            yield {
                "scheme": case.scheme,
                "case": number,
                "placement": case.prefill.name,
                **{name: getattr(size, name) for name in SIZES},
                "rank": rank,
                "predicted_bytes": memory.total,
                "measured_bytes": peak,
                "error": memory.total / peak - 1,
            }


def error(row: Row) -> float:
    return abs(float(row["error"]))


def page(found: Sequence[Row]) -> str:
    """The rows as docs/memory.md."""
    lines = [
        "# Memory, predicted and measured",
        "",
        "Peak bytes of every rank over a prefill and two decode steps (four sequences), two ranks a node, predicted",
        "by `simulator/memory.py` and counted by torch (`executor/peak_memory.py`, every allocation of its allocator).",
        "Made by `python -m benchmarks.memory_peak`; rows in `benchmarks/results/memory_peak.json`. Sizes marked *",
        "were first run when the model of memory was finished. No GPU has been measured.",
        "",
        "| scheme | ranks compared | largest error | fp32 | bf16 |",
        "|---|---|---|---|---|",
    ]
    for scheme in dict.fromkeys(str(row["scheme"]) for row in found):
        lines.append(f"| {scheme} | {_cells([row for row in found if row['scheme'] == scheme])}")
    lines += [
        f"| **all** | {_cells(found)}",
        "",
        "| ranks | width | prompt | ranks compared | largest error | fp32 | bf16 |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for size in sorted({tuple(int(row[name]) for name in ("ranks", "hidden", "tokens")) for row in found}):
        mine = [row for row in found if tuple(int(row[name]) for name in ("ranks", "hidden", "tokens")) == size]
        star = "" if size[1:] in SEEN else " *"
        lines.append(f"| {size[0]} | {size[1]} | {size[2]}{star} | {_cells(mine)}")
    return "\n".join(lines) + "\n"


SEEN = ((512, 512), (640, 768), (384, 640), (768, 320), (256, 448))
"""(Width, prompt tokens) that were run while the model of memory was made."""


def _cells(found: Sequence[Row]) -> str:
    worst = [
        f"{max((error(row) for row in found if row['dtype'] == dtype), default=0.0):.1%}" for dtype in ("fp32", "bf16")
    ]
    within = sum(error(row) <= WITHIN for row in found)
    return f"{within} of {len(found)} within 5 % | {max(map(error, found)):.1%} | {' | '.join(worst)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--page", action="store_true", help="only write docs/memory.md from the rows")
    parser.add_argument("-o", "--output", type=Path, default=ROWS)
    arguments = parser.parse_args()
    kept: list[Row] = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    sizes = [Size(n, dtype, arguments.tokens, arguments.hidden) for n in arguments.ranks for dtype in arguments.dtypes]
    for size in () if arguments.page else sizes:
        found = []
        for row in rows(size):
            found.append(row)
            print(
                f"{row['scheme']:<14} {row['placement']:<16} {size} rank {row['rank']}  {row['error']:+.1%}", flush=True
            )
        same = {name: getattr(size, name) for name in SIZES}
        kept = [row for row in kept if any(row[name] != same[name] for name in SIZES)] + found
        print(f"{sum(error(row) <= WITHIN for row in found)} of {len(found)} ranks within 5 %")
        write_atomically(arguments.output, "[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")
    write_atomically(PAGE, page(kept))


if __name__ == "__main__":
    main()
