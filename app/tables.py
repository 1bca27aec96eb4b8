"""Tables: an allocation's parts as rows of text, with units and tags."""

from __future__ import annotations

from planner.explain import shown
from simulator import metrics
from simulator.allocation import Allocation, Alternative, Choice, Interval
from simulator.units import format_bytes, format_seconds

Row = dict[str, object]


def lengths(choice: Choice) -> str:
    """``2,048 to 8,191``."""
    return (
        f"{choice.min_tokens:,} and more"
        if choice.max_tokens is None
        else f"{choice.min_tokens:,} to {choice.max_tokens - 1:,}"
    )


def title(choice: Choice) -> str:
    return f"{choice.phase} · {choice.bucket} ({lengths(choice)} tokens)"


def policy_rows(allocation: Allocation) -> list[Row]:
    """A row a phase and length bucket."""
    return [
        {
            "phase": choice.phase,
            "prompt tokens": lengths(choice),
            "placement": choice.placement.name,
            "GPUs": choice.num_gpus,
            "pool": choice.pool_gpus,
            "step": format_seconds(choice.metrics.step_s.value),
            "90 % interval": span(choice.metrics.step_s),
            "runner-up": beside(choice.runner_up, choice),
            "documents' rule": beside(choice.rule, choice),
            "tag": choice.metrics.step_s.tag,
        }
        for choice in allocation.policy
    ]


def span(interval: Interval) -> str:
    return f"{format_seconds(interval.p05)} to {format_seconds(interval.p95)}"


def beside(rival: Alternative | None, choice: Choice) -> str:
    """A rival's name and how much slower it is."""
    if rival is None:
        return "none"
    if rival.step_s is None:
        return f"{rival.name}: " + ("cannot run" if rival.infeasible else "not simulated")
    return f"{rival.name} {rival.step_s.value / choice.metrics.step_s.value - 1:+.0%}".replace("-0%", "+0%")


def metric_rows(choice: Choice) -> list[Row]:
    """Every predicted number of one entry."""
    found = choice.metrics
    shown_as = [("step time", shown(found.step_s))]
    if found.ttft_s is not None:
        shown_as.append(("TTFT (of the batch)", shown(found.ttft_s)))
    if found.tpot_s is not None:
        shown_as.append(("TPOT", shown(found.tpot_s)))
    for name, interval, unit in (
        ("tokens/s", found.tokens_per_s, ""),
        ("tokens/s a GPU", found.tokens_per_s_per_gpu, ""),
        ("GPU-µs a token", found.gpu_seconds_per_token, "µ"),
    ):
        scale = 1e6 if unit else 1.0
        low, high = interval.p05 * scale, interval.p95 * scale
        shown_as.append((name, f"{plain(interval.value * scale)} ({plain(low)} to {plain(high)}) [{interval.tag}]"))
    return [{"metric": name, "value (90 % interval) [tag]": value} for name, value in shown_as]


def plain(value: float) -> str:
    """At least three digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory_rows(choice: Choice) -> list[Row]:
    """Bytes of every rank; headroom with its sign."""
    return [
        {
            "rank": row.rank,
            "weights": format_bytes(row.weights_bytes),
            "KV cache": format_bytes(row.kv_cache_bytes),
            "activations": format_bytes(row.activations_bytes),
            "buffers": format_bytes(row.buffers_bytes),
            "capacity": format_bytes(row.capacity_bytes),
            "headroom": ("+" if row.headroom_bytes >= 0 else "−") + format_bytes(abs(row.headroom_bytes)),
        }
        for row in choice.memory
    ]


def rivals(choice: Choice) -> list[tuple[str, Alternative]]:
    """(what it is, the rival) of everything the choice was compared with."""
    found = [("runner-up", choice.runner_up), ("best pool", choice.best_pool), ("documents' rule", choice.rule)]
    found += [("baseline", baseline) for baseline in choice.baselines]
    return [(what, rival) for what, rival in found if rival is not None]


def definition_rows() -> list[Row]:
    """Every metric, its unit and the one sentence that defines it."""
    return [{"metric": one.name, "unit": one.unit, "definition": one.definition} for one in metrics.ALL]
