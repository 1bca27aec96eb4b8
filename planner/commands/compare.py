"""``plan compare``: every scheme side by side on one workload, with the documents' statistics."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from planner.commands.make import check_profile, scenario_of
from planner.commands.output import progress, table, to_terminal
from planner.compare import Compared, Numbers, Options, Row
from planner.compare import compare as compare_problem
from planner.problem import load_problem
from simulator.errors import SpecError
from simulator.metrics import TPOT, TPS, TPS_PER_GPU, TTFT, UTILISATION_BASE, UTILISATION_POOL
from simulator.serving.comparison import Comparison
from simulator.serving.statistics import Summary
from simulator.units import format_seconds


def compare(arguments: argparse.Namespace) -> int:
    scenario = scenario_of(arguments)
    problem = load_problem(scenario, ttft_slo_s=arguments.ttft_slo, tpot_slo_s=arguments.tpot_slo)
    check_profile(arguments, problem)
    if arguments.per_category < 2:
        raise SpecError(f"--per-category {arguments.per_category}: needs at least 2 sequences for a paired test")
    if arguments.seed < 0:
        raise SpecError(f"--seed {arguments.seed}: must not be negative")
    options = Options(seed=arguments.seed, per_category=arguments.per_category, requests_per_s=arguments.requests_per_s)
    with progress(f"comparing schemes for {scenario.model} on {scenario.cluster}") as update:
        found = compare_problem(problem, options, update)
    if arguments.json:
        print(json.dumps(as_json(found), indent=2, ensure_ascii=False))
    else:
        show(found, f"{scenario.model} on {scenario.cluster} for {scenario.workload}")
    return 0


def as_json(found: Compared) -> dict[str, Any]:
    """All numbers in SI units; NaN (an interval of one trial) as null."""
    facts = {key: getattr(found, key) for key in ("baseline", "requests_per_s", "rate_source")}
    counts = {key: getattr(found, key) for key in ("per_category", "num_trials", "seed")}
    return {**facts, **counts, "schemes": [_scheme(row, found.baseline) for row in found.rows]}


def _scheme(row: Row, baseline: str) -> dict[str, Any]:
    if row.system is None or row.numbers is None:
        return {"name": row.name, "infeasible": row.infeasible}
    return {
        "name": row.name,
        "infeasible": None,
        "tag": row.system.tag,
        "search_gap": row.system.gap,
        "num_groups": row.system.num_groups,
        "base_gpus": row.system.base_gpus,
        "pool_gpus": row.system.pool_gpus,
        "gpus_held_over_baseline": row.gpu_ratio,
        "saturated_requests_per_s": row.capacity_per_s,
        "steps": [asdict(step) for step in row.system.steps],
        "metrics": {key: _finite(value) for key, value in asdict(row.numbers).items()},
        f"speed_up_over_{baseline}": {
            metric: [_speed_up(one, row.gpu_ratio) for one in comparisons]
            for metric, comparisons in (("ttft", row.ttft), ("tpot", row.tpot))
        },
    }


def _speed_up(one: Comparison, gpu_ratio: float) -> dict[str, Any]:
    return {
        "category": one.category,
        "seconds": _finite(asdict(one.ours)),
        "ratio": asdict(one.ratio),
        "per_gpu_efficiency": one.ratio.value / gpu_ratio,
        "request_p_value": one.request_p_value,
        "trial_p_value": one.trial_p_value,
        "accepted": one.acceptance.accepted,
    }


def _finite(summary: dict[str, Any] | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    return {key: None if isinstance(value, float) and value != value else value for key, value in summary.items()}


def show(found: Compared, title: str) -> None:
    """Three tables: serving at equal load, speed-ups by category, steps alone."""
    to_terminal(table(f"{title}: at {found.requests_per_s:.3g} requests/s", SERVING, serving_rows(found), _note(found)))
    for name in ("ttft", "tpot"):
        rows = [cells for row in found.rows for cells in speed_up_rows(row, name)]
        to_terminal(table(f"{name.upper()} over {found.baseline}'s, category by category", SPEED_UPS, rows, PROTOCOL))
    to_terminal(table("One step alone, at each category's planned length", STEPS, step_rows(found)))
    for row in found.rows:
        if row.infeasible is not None:
            to_terminal(f"{row.name}: cannot run here: {row.infeasible}")


SERVING = (
    "scheme", "GPUs held", "TTFT", "TPOT", "TPS", "TPS per GPU", "base used", "pool used", "saturates at", "tag",
)  # fmt: skip
SPEED_UPS = (
    "scheme", "category", "mean", "speed-up (95 %)", "GPUs", "efficiency a GPU", "p, requests", "p, trials", "accepted",
)  # fmt: skip
STEPS = ("phase", "category", "scheme", "placement", "GPUs", "step")
PROTOCOL = (
    "speed-up: baseline over ours, paired bootstrap; GPUs: held, over the baseline's; efficiency: speed-up over GPUs; "
    "p: paired t, Holm-adjusted over a scheme's categories (requests share queues, so theirs is optimistic); accepted: "
    "the documents' p < 0.01, deviation < 3 % and trials within 5 %"
)


def _note(found: Compared) -> str:
    metrics = (TTFT, TPOT, TPS, TPS_PER_GPU, UTILISATION_BASE, UTILISATION_POOL)
    lines = [
        f"{found.per_category} sequences a category × {found.num_trials} trials, seed {found.seed}; "
        f"± is half of the 95 % t interval over trials; rate: {found.rate_source}"
    ]
    return "\n".join(lines + [f"{metric.name}: {metric.definition}" for metric in metrics])


def serving_rows(found: Compared) -> list[tuple[str, ...]]:
    return [_serving(row, row.numbers) for row in found.rows if row.numbers is not None]


def _serving(row: Row, numbers: Numbers) -> tuple[str, ...]:
    assert row.system is not None
    pool = numbers.pool_utilisation
    return (
        row.name,
        f"{numbers.gpus_held.mean:.1f} of {row.system.most_gpus}",
        _with_half(numbers.ttft_s),
        _with_half(numbers.tpot_s),
        f"{numbers.tokens_per_s.mean:,.0f} ± {_half(numbers.tokens_per_s):,.0f}",
        f"{numbers.tokens_per_s_per_gpu.mean:,.0f} ± {_half(numbers.tokens_per_s_per_gpu):,.0f}",
        f"{numbers.base_utilisation.mean:.0%} ± {_half(numbers.base_utilisation):.1%}",
        "–" if pool is None else f"{pool.mean:.0%}",
        f"{row.capacity_per_s:.3g} requests/s",
        row.system.tag,
    )


def _half(summary: Summary) -> float:
    return (summary.high - summary.low) / 2


def _with_half(summary: Summary) -> str:
    return f"{format_seconds(summary.mean)} ± {format_seconds(_half(summary))}"


def speed_up_rows(row: Row, metric: str) -> list[tuple[str, ...]]:
    return [
        (
            row.name,
            one.category,
            format_seconds(one.ours.mean),
            f"{one.ratio.value:.2f}× ({one.ratio.low:.2f} – {one.ratio.high:.2f})",
            f"{row.gpu_ratio:.2f}×",
            f"{one.ratio.value / row.gpu_ratio:.2f}",
            f"{one.request_p_value:.2g}",
            f"{one.trial_p_value:.2g}",
            "yes" if one.acceptance.accepted else "no",
        )
        for one in (row.ttft if metric == "ttft" else row.tpot)
    ]


def step_rows(found: Compared) -> list[tuple[str, ...]]:
    rows = [
        (step.phase, step.bucket, row.name, step.placement, str(step.num_gpus), format_seconds(step.seconds))
        for row in found.rows
        if row.system is not None
        for step in row.system.steps
    ]
    order = {name: index for index, name in enumerate(dict.fromkeys(row[1] for row in rows))}
    return sorted(rows, key=lambda cells: (cells[0] != "prefill", order[cells[1]]))
