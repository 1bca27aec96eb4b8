"""python -m benchmarks.validate_local [--profile FILE] [--rounds N] [-o FILE]

Regret and step error on this machine: calibrate, predict every candidate, then run them all in interleaved rounds over
gloo on one world of four processes. Predictions are written before anything runs. Prints, and writes as JSON, per phase
and length: the error of every candidate's step, Kendall's τ of the ranking, and the regret of the one predicted fastest
(its measured median over the best measured median).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from calibration.sweep import calibrate_cpu, cpu_profile
from executor.environment import environment
from executor.runner import execute
from executor.session import Generation
from executor.supervisor import Supervisor
from planner.learning import observe, taught
from simulator import presets
from simulator.formats.files import to_json, write_atomically
from simulator.lowering import lower
from simulator.measurement import MeasuredStep
from simulator.model import Model
from simulator.placement import AttentionGrid, Placement, Stage, even_split
from simulator.profile import Profile, load_profile
from simulator.program import Program
from simulator.simulation.engine import simulate
from simulator.workload import Sequences, Step, prefill_step

NODES = (0,) * 4
LENGTHS = (256, 512, 1024, 2048)
TAUGHT = (256, 1024)  # what recalibration learns from; the other lengths are held out
DECODED = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    name: str
    prefill: Placement
    decode: Placement


@dataclass(slots=True)
class Row:
    """One candidate, phase and length; seconds."""

    model: str
    phase: str
    tokens: int
    candidate: str
    predicted_s: float
    measured_s: list[float]

    @property
    def error(self) -> float:
        return self.predicted_s / median(self.measured_s) - 1


def one_stage(
    model: Model, name: str, grid: AttentionGrid, ranks: int, degree: int, first: int = 0, **options: object
) -> Placement:
    stage = Stage(
        first_layer=0,
        last_layer=model.num_layers,
        attention_ranks=tuple(range(first, first + grid.num_ranks)),
        grid=grid,
        feed_forward_ranks=tuple(range(ranks)),
        tensor_degree=degree,
    )
    return Placement.model_validate({"name": name, "stages": (stage,), **options})


def static(model: Model, tensor: int, **options: object) -> Placement:
    heads = even_split(model.num_attention_heads, tensor)
    return one_stage(model, f"tp{tensor}", AttentionGrid(heads=heads), tensor, tensor, **options)


def pipeline(model: Model) -> Placement:
    half = model.num_layers // 2
    stages = tuple(
        Stage(
            first_layer=low,
            last_layer=high,
            attention_ranks=(rank,),
            grid=AttentionGrid(heads=(model.num_attention_heads,)),
            feed_forward_ranks=(rank,),
            tensor_degree=1,
        )
        for rank, (low, high) in enumerate(((0, half), (half, model.num_layers)))
    )
    return Placement(name="pp2", stages=stages, micro_batches=2)


def candidates(model: Model) -> list[Candidate]:
    """Rivals and pools that fit four ranks."""
    whole = (model.num_attention_heads,)
    alone, pair, four = static(model, 1), static(model, 2), static(model, 4)
    found = [
        Candidate("tp1", alone, alone),
        Candidate("tp2", pair, pair),
        Candidate("tp4", four, four),
        Candidate("pp2", pipeline(model), pipeline(model)),
    ]
    for base, pool in ((1, 1), (2, 1), (1, 2), (2, 2)):
        prefill = one_stage(
            model, f"pool{base}+{pool}", AttentionGrid(heads=whole, query_blocks=pool), base, base, first=base
        )
        decode = one_stage(
            model, f"pool{base}+{pool}", AttentionGrid(heads=whole, kv_blocks=pool), base, base, first=base
        )
        found.append(Candidate(prefill.name, prefill, decode))
    for rule in ("contiguous", "zigzag", "sqrt"):
        parallel = one_stage(model, f"cp2-{rule}", AttentionGrid(heads=whole, query_blocks=2), 2, 1, block_rule=rule)
        found.append(Candidate(parallel.name, parallel, parallel))
    joined = one_stage(model, "joined1+1", AttentionGrid(heads=whole, query_blocks=2), 1, 1)
    found.append(
        Candidate("joined1+1", joined, one_stage(model, "joined1+1", AttentionGrid(heads=whole, kv_blocks=2), 1, 1))
    )
    return found


def programs(model: Model, candidate: Candidate, batch: int, tokens: int) -> tuple[Program, ...]:
    made = [
        lower(model, prefill_step(batch, tokens), candidate.prefill, nodes=NODES, dtype="fp32", cache=candidate.decode)
    ]
    for number in range(DECODED):
        step = Step("decode", (Sequences(batch, tokens + number, 1, tokens),))
        made.append(lower(model, step, candidate.decode, nodes=NODES, dtype="fp32"))
    return tuple(made)


def kendall(first: list[float], second: list[float]) -> float:
    """Share of pairs ordered alike minus share ordered differently."""
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    signs = [(first[i] - first[j]) * (second[i] - second[j]) for i, j in pairs]
    return (sum(s > 0 for s in signs) - sum(s < 0 for s in signs)) / len(pairs)


Work = list[tuple[list[Row], Generation, list[MeasuredStep]]]


def campaign(profile: Profile, models: list[Model], rounds: int, batch: int) -> Work:
    """Predict everything, then run everything in interleaved rounds."""
    cluster = presets.cluster("local-cpu")
    profiles = {cluster.gpus[0].name: profile}
    work: Work = []
    for model in models:
        for tokens in LENGTHS:
            for candidate in candidates(model):
                made = programs(model, candidate, batch, tokens)
                rows = [
                    Row(model.name, phase, tokens, candidate.name, simulate(program, cluster, profiles).duration_s, [])
                    for phase, program in (("prefill", made[0]), ("decode", made[1]))
                ]
                work.append((rows, Generation(model, made, warm_up=1, repeats=2), []))
    with Supervisor(4, timeout_s=120) as world:
        for number in range(rounds):
            for (prefill, decode), generation, kept in work:
                steps = execute(generation, world).measurement.steps
                kept.extend(steps)
                prefill.measured_s.extend(step.duration_s for step in steps if step.phase == "prefill")
                decode.measured_s.extend(step.duration_s for step in steps if step.phase == "decode")
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return work


def recalibrated(profile: Profile, work: Work) -> tuple[Profile, list[Row]]:
    """What the runs at ``TAUGHT`` lengths teach, and the predictions it gives at the other lengths."""
    cluster = presets.cluster("local-cpu")
    observed: dict[str, list[tuple[float, float]]] = {}
    runs = []
    for rows, generation, steps in work:
        if rows[0].tokens not in TAUGHT:
            continue
        for index, row in ((0, rows[0]), (2, rows[1])):
            timeline = simulate(generation.programs[index], cluster, {profile.gpu.name: profile})
            observe(timeline, [step for step in steps if step.index == index], observed)
            runs.append((generation.programs[index], median(row.measured_s)))
    learned = taught(profile, cluster, observed, runs)
    held = []
    for rows, generation, _ in work:
        if rows[0].tokens not in TAUGHT:
            for index, row in ((0, rows[0]), (1, rows[1])):
                predicted_s = simulate(generation.programs[index], cluster, {profile.gpu.name: learned}).duration_s
                held.append(replace(row, predicted_s=predicted_s))
    return learned, held


def report(rows: list[Row]) -> dict[str, object]:
    """Figures by phase; a line a (model, phase, length)."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.phase, row.tokens), []).append(row)
    found: dict[str, list[dict[str, object]]] = {}
    for (model, phase, tokens), members in groups.items():
        measured = [median(row.measured_s) for row in members]
        chosen = min(range(len(members)), key=lambda i: members[i].predicted_s)
        regret = measured[chosen] / min(measured) - 1
        tau = kendall([row.predicted_s for row in members], measured)
        errors = sorted(abs(row.error) for row in members)
        found.setdefault(phase, []).append({"regret": regret, "tau": tau, "errors": errors})
        best = members[measured.index(min(measured))].candidate
        print(
            f"{model:12} {phase:8}{tokens:6}  chosen {members[chosen].candidate:16} best {best:16} "
            f"regret {regret:6.1%}  τ {tau:5.2f}  |error| median {median(errors):6.1%}"
        )
    return {phase: summary(lines) for phase, lines in found.items()}


def summary(lines: list[dict[str, object]]) -> dict[str, float]:
    errors = sorted(error for line in lines for error in line["errors"])  # type: ignore[attr-defined]
    regrets = [float(line["regret"]) for line in lines]  # type: ignore[arg-type]
    return {
        "error_median": median(errors),
        "error_p90": errors[int(0.9 * (len(errors) - 1))],
        "error_worst": errors[-1],
        "regret_median": median(regrets),
        "regret_worst": max(regrets),
        "tau_median": median(float(line["tau"]) for line in lines),  # type: ignore[arg-type]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["tiny-dense"])
    parser.add_argument("-o", "--output", type=Path, default=Path("out/validate_local.json"))
    arguments = parser.parse_args()
    if arguments.profile is None:
        profile = cpu_profile(calibrate_cpu(50.0))
        write_atomically(arguments.output.with_suffix(".profile.json"), to_json(profile))
    else:
        profile = load_profile(arguments.profile)
    work = campaign(profile, [presets.model(name) for name in arguments.models], arguments.rounds, arguments.batch)
    rows = [row for found, _, _ in work for row in found]
    print("== as calibrated")
    figures = {"as_calibrated": report(rows), "held_as_calibrated": report([r for r in rows if r.tokens not in TAUGHT])}
    print(f"== after one round of recalibration from lengths {TAUGHT}; other lengths only")
    learned, held = recalibrated(profile, work)
    figures["held_recalibrated"] = report(held)
    write_atomically(arguments.output.with_suffix(".learned.json"), to_json(learned))
    print(json.dumps(figures, indent=2))
    import torch

    where = environment(torch.device("cpu"), "cpu").model_dump()
    document = {"environment": where, "figures": figures, "rows": [asdict(row) for row in (*rows, *held)]}
    write_atomically(arguments.output, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
