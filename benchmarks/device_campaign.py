"""python -m benchmarks.device_campaign --device cuda --limit 560 -o $OUT

One call on a GPU: calibrate it (or take ``--profile``), write the predictions, then check correctness, time the kernels
beside each other (``device_kernels``), and replay the documents' model (hidden 4096, 32 heads of 128, four layers) for
pools of 0–32 and 512–131,072 tokens, its decode, an expert model, and whole one-GPU generations of it, of Llama-3-8B's
and of Mixtral's layers, each predicted before it runs. Results are written after every case, so a call cut short keeps
what it has. ``--device cpu`` runs the same on shrunk models, to prove the script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from benchmarks import device_kernels
from calibration import sweep
from executor.reference import Reference
from executor.replay import replay
from executor.session import Generation, prompts_of
from planner.documents.placements import fa_pool, fa_pool_decode, static
from simulator import presets
from simulator.cluster import Cluster
from simulator.costs.pricing import price
from simulator.errors import AttnplanError
from simulator.formats.files import to_json, write_atomically
from simulator.lowering import lower
from simulator.model import Experts, Layer, Model
from simulator.placement import Placement
from simulator.profile import Profile, load_profile
from simulator.program import Collective, Program, Recv, Send
from simulator.workload import Sequences, Step, prefill_step

CALIBRATION_SHARE = 0.45
LENGTHS = (512, 2048, 8192, 16384, 32768, 65536, 131072)
POOLS = (0, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Case:
    """Programs that follow one another on one model; ``name`` says which."""

    name: str
    model: Model
    programs: tuple[Program, ...]


@dataclass(slots=True)
class Campaign:
    """What is known so far, written after every case."""

    folder: Path
    deadline_s: float
    document: dict[str, object] = field(default_factory=dict)

    def save(self) -> None:
        write_atomically(self.folder / "device_campaign.json", json.dumps(self.document, indent=1) + "\n")

    def late(self) -> bool:
        return time.monotonic() > self.deadline_s


def some_layers(name: str, layers: int) -> Model:
    """A preset with its first few layers only."""
    full = presets.model(name)
    return full.model_copy(update={"name": f"{name}-{layers}-layers", "layers": full.layers[:layers]})


def expert_model(model: Model, experts: int) -> Model:
    """The documents' expert layer with as many experts as fit one device."""
    routed = Experts(num_experts=experts, top_k=2, intermediate_size=model.intermediate_size, capacity_factor=1.0)
    layers = tuple(Layer(routed=True) for _ in model.layers[:2])
    return model.model_copy(update={"name": f"{model.name}-{experts}-experts", "experts": routed, "layers": layers})


def one_device(model: Model) -> Placement:
    return static(model, 1).model_copy(update={"name": "one-device"})


def cases(model: Model, lengths: tuple[int, ...], pools: tuple[int, ...], dtype: str) -> Iterator[Case]:
    """Prefill by pool and length, decode by pool and context, experts, whole generations."""
    nodes = tuple(rank // 8 for rank in range(8 + max(pools)))
    base = static(model)
    for tokens in lengths:
        for pool in pools:
            placement = fa_pool(model, pool) if pool else base
            program = lower(model, prefill_step(1, tokens), placement, nodes=nodes, dtype=dtype, cache=base)
            yield Case(f"prefill {tokens} pool {pool}", model, (program,))
    for context in lengths[1::2]:
        for pool in pools:
            placement = fa_pool_decode(model, pool) if pool else base
            yield Case(
                f"decode {context} pool {pool}", model, generation_of(model, placement, context, 1, dtype, nodes)
            )
    routed = expert_model(model, 8)
    for tokens in lengths[:3]:
        yield Case(f"experts {tokens}", routed, generation_of(routed, one_device(routed), tokens, 0, dtype, (0,)))
    others = ("llama-3.1-8b", 4), ("mixtral-8x7b", 2)
    for whole in (model, *(some_layers(*other) if dtype == "bf16" else presets.model("tiny-moe") for other in others)):
        for tokens in lengths[1:4]:
            made = generation_of(whole, one_device(whole), tokens, 8, dtype, (0,))
            yield Case(f"generation {whole.name} {tokens}", whole, made)


def generation_of(
    model: Model, placement: Placement, tokens: int, decoded: int, dtype: str, nodes: tuple[int, ...]
) -> tuple[Program, ...]:
    """A prefill and ``decoded`` decode steps of one sequence."""
    made = [lower(model, prefill_step(1, tokens), placement, nodes=nodes, dtype=dtype, cache=placement)]
    for number in range(decoded):
        step = Step("decode", (Sequences(1, tokens + number, 1, tokens),))
        made.append(lower(model, step, placement, nodes=nodes, dtype=dtype))
    return tuple(made)


def cluster_of(profile: Profile) -> Cluster:
    """The documents' five nodes, of the device that was calibrated."""
    documents = presets.cluster("dgx-a100-5")
    nodes = tuple(node.model_copy(update={"gpu": profile.gpu.name}) for node in documents.nodes)
    return documents.model_copy(update={"gpus": (profile.gpu,), "nodes": nodes})


def predict(case: Case, cluster: Cluster, profile: Profile) -> list[dict[str, object]]:
    """Per step: the slowest rank's compute seconds with its interval, and each operation class's."""
    found: list[dict[str, object]] = []
    for program in case.programs:
        prices = {q: price(program, cluster, {profile.gpu.name: profile}, q) for q in ("median", "p05", "p95")}
        ours = {q: max(float(row.sum()) for row in p.durations_s if len(row)) for q, p in prices.items()}
        kinds: dict[str, float] = {}
        for rank, operations in enumerate(program.ranks):
            for number, operation in enumerate(operations):
                if not isinstance(operation, Send | Recv | Collective):
                    name = type(operation).__name__
                    kinds[name] = kinds.get(name, 0.0) + float(prices["median"].durations_s[rank][number])
        found.append({"step_s": ours["median"], "p05_s": ours["p05"], "p95_s": ours["p95"], "operations_s": kinds})
    return found


def measure(case: Case, device: torch.device, repeats: int) -> list[dict[str, object]]:
    """The same figures, replayed on the device."""
    generation = Generation(case.model, case.programs, warm_up=1, repeats=repeats)
    measured = replay(generation, device).measurement
    found: list[dict[str, object]] = []
    for index, program in enumerate(case.programs):
        steps = [step for step in measured.steps if step.index == index]
        totals = [max(sum(b - a for a, b in rank.spans) for rank in step.ranks) for step in steps]
        kinds: dict[str, float] = {}
        for rank, operations in enumerate(program.ranks):
            for number, operation in enumerate(operations):
                if not isinstance(operation, Send | Recv | Collective):
                    spans = [step.ranks[rank].spans[number] for step in steps]
                    name = type(operation).__name__
                    kinds[name] = kinds.get(name, 0.0) + median(b - a for a, b in spans)
        found.append({"step_s": median(totals), "operations_s": kinds})
    return found


def correctness(device: torch.device) -> dict[str, object]:
    """Generated tokens of a small model, pooled prefill and KV-split decode, against the fp64 reference."""
    model = presets.model("tiny-dense")
    nodes = tuple(rank // 8 for rank in range(16))
    prefill, decode = fa_pool(model, 8), fa_pool_decode(model, 8)
    made = [lower(model, prefill_step(2, 300), prefill, nodes=nodes, dtype="fp32", cache=decode)]
    made += [
        lower(model, Step("decode", (Sequences(2, 300 + k, 1, 300),)), decode, nodes=nodes, dtype="fp32")
        for k in range(16)
    ]
    generation = Generation(model, tuple(made))
    ours = replay(generation, device).measurement.generated
    theirs = Reference(model).generate(prompts_of(generation), len(made))
    equal = sum(a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
    return {"tokens": sum(len(tokens) for tokens in theirs), "equal": equal}


def kernels(device: torch.device, dtype: str, model: Model) -> dict[str, object]:
    """Backends, routing, grouped GEMM and graphs; a failure is a row."""
    alone = one_device(model)
    parts: dict[str, Callable[[], object]] = {
        "attention": lambda: device_kernels.backends(device, dtype),
        "routing": lambda: device_kernels.routing(device),
        "grouped_gemm": lambda: device_kernels.grouped(device, dtype),
        "graphs": lambda: device_kernels.graphs(
            Generation(model, generation_of(model, alone, 2048 if dtype == "bf16" else 64, 8, dtype, (0,))), device
        ),
    }
    found: dict[str, object] = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except (AttnplanError, RuntimeError) as error:
            found[name] = f"failed: {str(error)[:200]}"
        print(f"{name}: {found[name]}", flush=True)
    return found


def calibrate(device: str, budget_s: float) -> Profile:
    if device == "cuda":
        return sweep.cuda_profile(sweep.calibrate_cuda(budget_s))
    return sweep.cpu_profile(sweep.calibrate_cpu(budget_s))


def run(campaign: Campaign, device: str, limit_s: float, repeats: int, known: str | None = None) -> None:
    """Calibrate, predict everything, then measure case after case."""
    on_gpu = device == "cuda"
    model = presets.model("fa-pool" if on_gpu else "tiny-dense")
    lengths, pools = (LENGTHS, POOLS) if on_gpu else ((64, 128, 256, 512), (0, 8))
    profile = load_profile(known) if known else calibrate(device, CALIBRATION_SHARE * limit_s)
    write_atomically(campaign.folder / "profile.json", to_json(profile))
    cluster, dtype = cluster_of(profile), "bf16" if on_gpu else "fp32"
    found = list(cases(model, lengths, pools, dtype))
    rows = [{"case": case.name, "predicted": predict(case, cluster, profile), "measured": None} for case in found]
    campaign.document |= {"device": profile.gpu.name, "torch": torch.__version__, "cases": rows}
    campaign.save()
    campaign.document["correctness"] = correctness(torch.device(device))
    campaign.document["kernels"] = kernels(torch.device(device), dtype, model)
    campaign.save()
    for case, row in zip(found, rows, strict=True):
        if campaign.late():
            break
        try:
            row["measured"] = measure(case, torch.device(device), repeats)
        except (AttnplanError, RuntimeError) as error:
            row["measured"] = f"failed: {str(error)[:200]}"
        campaign.save()
        show(row)


def show(row: Mapping[str, object]) -> None:
    """One line a step: predicted, measured, error."""
    predicted, measured = row["predicted"], row["measured"]
    if not isinstance(measured, list) or not isinstance(predicted, list):
        print(f"{row['case']}: {measured}", flush=True)
        return
    for number, (ours, theirs) in enumerate(zip(predicted, measured, strict=True)):
        error = ours["step_s"] / theirs["step_s"] - 1
        print(
            f"{row['case']} step {number}: {ours['step_s']:.3e} s vs {theirs['step_s']:.3e} s {error:+.1%}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=float, default=560.0, help="seconds in all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", help="an earlier calibration of this device, instead of a new one")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/device"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(arguments.output, time.monotonic() + arguments.limit)
    run(campaign, arguments.device, arguments.limit, arguments.repeats, arguments.profile)
    campaign.save()


if __name__ == "__main__":
    main()
