"""Operations per second of the engine, for growing programs. Run: python -m benchmarks.engine_speed [--json]
[--figure benchmarks/results/engine_speed.svg] [--output benchmarks/results/engine_speed.json]

An *operation* is one entry of a rank's list in a program: a kernel, a Send, a Recv, a rank's part in a collective. So
a message is two of them and an all-reduce of 8 GPUs eight. *Whole*: every rank is played. *Folded*: one block of like
ranks is played for all (``simulator/fold.py``); ``operations`` are then the whole program's, ``played`` the block's.

Contended: the documents' FA Pool step on 8 + 32 GPUs, 256 messages at once on 8 NICs, keys sent to each pool GPU
(direct), or handed on (tree, chain); with their 4 layers and with 32, as what has been worked out for one layer is
looked up for the next; and with heads in 8 groups, whole and folded. Uncontended: tensor parallel 8 (NVLink) ×
pipeline 8 (one NIC a GPU) × replicas, 8 micro-batches through 80 layers, 12 operations a layer, of which 2 all-reduces;
1,024 GPUs are 16 replicas and 0.98 M operations, all played. *One NIC a node*: the 8 ranks of a stage share it.
Durations are given, so this times dependencies, clock, link sharing and the timeline, not the cost model. Seconds are
CPU seconds, the least of three (of 20 for small programs).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Literal

from simulator import presets
from simulator.cluster import Cluster, Gpu, Nics, Node, NodeLink
from simulator.fold import folds
from simulator.formats.files import write_atomically
from simulator.lowering import lower
from simulator.placement import AttentionGrid, Placement, Stage, even_split
from simulator.program import Add, Collective, Operation, Program, Recv, Send
from simulator.simulation.engine import run
from simulator.workload import prefill_step

TENSOR, STAGES, LAYERS, MICRO_BATCHES = 8, 8, 80, 8
COMPUTE_S = 100e-6
SMALL = 20_000  # operations: played often, as one time in a busy millisecond says little
ALL_REDUCE_BYTES, HIDDEN_BYTES = 16 * 2**20, 2 * 2**20


def cluster(num_gpus: int, nics_a_node: int = 8) -> Cluster:
    """Nodes of 8 with NVSwitch and NICs, by default one a GPU."""
    gpu = Gpu(
        name="gpu",
        compute_flop_per_s=312e12,
        memory_bandwidth_bytes_per_s=2e12,
        memory_bytes=80 * 2**30,
        num_sms=108,
        source="assumed",
    )
    link = NodeLink(kind="switch", bandwidth_bytes_per_s=300e9, latency_s=5e-6)
    nics = Nics(count=nics_a_node, bandwidth_bytes_per_s=25e9, latency_s=5e-6)
    node = Node(count=num_gpus // TENSOR, gpu="gpu", gpus=TENSOR, link=link, nics=nics)
    return Cluster(name="speed", gpus=(gpu,), nodes=(node,))


def program(replicas: int, *, layers: int = LAYERS) -> Program:
    """``replicas`` pipelines, each 8 stages of 8 ranks."""
    ranks = [_rank(rank, layers // STAGES) for rank in range(replicas * STAGES * TENSOR)]
    nothing: tuple[()] = ()
    return Program(prefill_step(1, 1), "bf16", tuple(ranks), (nothing,) * len(ranks), ("",) * len(ranks))


def _rank(rank: int, layers: int) -> tuple[Operation, ...]:
    stage = rank // TENSOR % STAGES
    operations: list[Operation] = []
    for micro_batch in range(MICRO_BATCHES):
        value = f"x{micro_batch}"
        if stage:
            operations.append(_recv(rank, micro_batch, value))
        for layer in range(stage * layers, (stage + 1) * layers):
            value = _layer(operations, rank, layer, micro_batch, value)
        if stage < STAGES - 1:
            operations.append(_send(rank, micro_batch, value))
    return tuple(operations)


def _recv(rank: int, micro_batch: int, value: str) -> Recv:
    return Recv(
        reads=(),
        writes=(value,),
        layer=0,
        micro_batch=micro_batch,
        source=rank - TENSOR,
        tag=micro_batch,
        num_bytes=HIDDEN_BYTES,
        shape=(1,),
        dtype="bf16",
    )


def _send(rank: int, micro_batch: int, value: str) -> Send:
    return Send(
        reads=(value,),
        writes=(),
        layer=0,
        micro_batch=micro_batch,
        to=rank + TENSOR,
        tag=micro_batch,
        num_bytes=HIDDEN_BYTES,
    )


def _layer(operations: list[Operation], rank: int, layer: int, micro_batch: int, value: str) -> str:
    """5 kernels, all-reduce, 5 kernels, all-reduce; returns the name of the layer's output."""
    group = tuple(range(rank // TENSOR * TENSOR, rank // TENSOR * TENSOR + TENSOR))
    for part in range(2):
        for step in range(5):
            name = f"m{micro_batch}.l{layer}.{part}.{step}"
            operations.append(
                Add(reads=(value,), writes=(name,), layer=layer, micro_batch=micro_batch, num_tokens=1, width=1)
            )
            value = name
        name = f"m{micro_batch}.l{layer}.{part}.sum"
        operations.append(
            Collective(
                reads=(value,),
                writes=(name,),
                layer=layer,
                micro_batch=micro_batch,
                kind="all_reduce",
                algorithm="ring",
                ranks=group,
                tag=(layer * 2 + part) * MICRO_BATCHES + micro_batch,
                num_bytes=ALL_REDUCE_BYTES,
                shape=(1,),
                dtype="bf16",
            )
        )
        value = name
    return value


Multicast = Literal["direct", "tree", "chain"]


def documents_step(multicast: Multicast = "direct", *, times: int = 1) -> tuple[Program, Cluster]:
    """The documents' model on 8 + 32 GPUs: a 16K-token FA Pool prefill, ``times`` their 4 layers."""
    model = presets.model("fa-pool")
    model = model.model_copy(update={"layers": model.layers * times})
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=tuple(range(8, 40)),
        grid=AttentionGrid(heads=(model.num_attention_heads,), query_blocks=32),
        feed_forward_ranks=tuple(range(8)),
        tensor_degree=8,
    )
    machine = presets.cluster("dgx-a100-5")
    nodes = [node for node, _, _ in machine.rank_nodes()]
    return lower(
        model, prefill_step(1, 16384), Placement(name="pool", stages=(stage,), kv_multicast=multicast), nodes=nodes
    ), machine


def grouped_step(multicast: Multicast, *, folded: bool) -> tuple[Program, Cluster]:
    """The same with the heads in 8 groups, each on one GPU of every pool node."""
    model, pool = presets.model("fa-pool"), range(8, 40)
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=tuple(rank for group in range(8) for rank in pool[group::8]),
        grid=AttentionGrid(heads=even_split(model.num_attention_heads, 8), query_blocks=4),
        feed_forward_ranks=tuple(range(8)),
        tensor_degree=8,
    )
    machine, placement = presets.cluster("dgx-a100-5"), Placement(name="pool", stages=(stage,), kv_multicast=multicast)
    nodes = [node for node, _, _ in machine.rank_nodes()]
    fold = next(folds(model, [placement])) if folded else None
    return lower(model, prefill_step(1, 16384), placement, nodes=nodes, fold=fold), machine


def measure(name: str, built: Program, machine: Cluster) -> dict[str, float | str]:
    """One program: CPU seconds of ``run`` and operations per second."""
    operations = built.num_operations * (1 if built.fold is None else built.fold.blocks)
    durations = [[COMPUTE_S] * len(operations) for operations in built.ranks]
    seconds = math.inf
    for _ in range(3 if operations > SMALL else 20):
        before = time.process_time()
        timeline = run(built, machine, durations)
        seconds = min(seconds, time.process_time() - before)
    return {
        "program": name,
        "gpus": len(timeline.ranks),
        "operations": operations,
        "played": built.num_operations,
        "simulate_s": round(seconds, 3),
        "operations_per_s": round(operations / seconds),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "step_s": timeline.duration_s,
    }


def figure(rows: list[dict[str, float | str]]) -> str:
    """CPU seconds over operations as SVG: a point a program, the line of equal cost an operation through the last."""
    points = [(float(row["operations"]), float(row["simulate_s"])) for row in rows]
    width, height, most, longest = 560, 320, max(x for x, _ in points), max(y for _, y in points)
    places = [(60 + x / most * (width - 90), height - 40 - y / longest * (height - 70)) for x, y in points]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in places)
    x, y = places[-1]
    text = f'<text x="60" y="20">Engine: CPU seconds over operations; up to {most:,.0f} in {longest:.1f} s</text>'
    axes = f'<path d="M60 30V{height - 40}H{width - 20}" fill="none" stroke="black"/>'
    line = f'<path d="M60 {height - 40}L{x:.1f} {y:.1f}" stroke="gray" stroke-dasharray="4"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    return f"{head}{text}{axes}{line}{dots}</svg>\n"


def _contended() -> list[dict[str, float | str]]:
    ways: tuple[Multicast, ...] = ("direct", "tree", "chain")
    rows = [
        measure(f"documents' FA Pool step, {way}, {4 * times} layers, whole", *documents_step(way, times=times))
        for times in (1, 8)
        for way in ways
    ]
    for way in ways:
        for folded in (False, True):
            name = f"FA Pool step, 8 head groups, {way}, 4 layers, {'folded' if folded else 'whole'}"
            rows.append(measure(name, *grouped_step(way, folded=folded)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--figure", type=Path, help="write an SVG there")
    parser.add_argument("--output", type=Path, help="write JSON there")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="64 GPUs each")
    options = parser.parse_args()
    rows = _contended()
    for replicas in options.replicas:
        built = program(replicas)
        for nics, name in ((8, ""), (1, ", one NIC a node")):
            rows.append(
                measure(f"TP 8 x PP 8 x {replicas}, 80 layers, whole{name}", built, cluster(len(built.ranks), nics))
            )
            print(rows[-1], file=sys.stderr)
    if options.figure:
        options.figure.write_text(figure(rows[-2 * len(options.replicas) :: 2]))
    about = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine()}
    result = {"environment": about, "tag": "measured", "rows": rows}
    if options.output:
        write_atomically(options.output, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2) if options.json else "\n".join(str(row) for row in rows))


if __name__ == "__main__":
    main()
