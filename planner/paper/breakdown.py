"""Statements E23–E38: the FA Pool experiments' threshold, pool size, rivals, memory, overhead and statistics claims."""

from __future__ import annotations

import numpy as np

from planner.documents.placements import fa_pool, static
from planner.documents.rules import BASE_GPUS, CATEGORY_EDGES, allocate_gpus, amdahl_share, threshold_tokens
from planner.paper.architecture import pooled_program
from planner.paper.keypoints import pooled
from planner.paper.replay import LENGTHS
from planner.paper.speedup import over_baseline, speed_up
from planner.paper.statement import Statement, close, judged, unverifiable, within
from planner.paper.steps import cluster, core_s, kv_bytes_per_sequence, model, parts_s, prefill_s, sent_bytes, timeline
from simulator import program as p
from simulator.metrics import documents_tps
from simulator.serving.statistics import DOCUMENTS_MAX_STD_RATIO
from simulator.simulation.timeline import Timeline, breakdown, rank_times
from simulator.workload import prefill_step

Rows = tuple[Statement, ...]
ONE = "one sequence, causal flash attention, 8 NICs"


def rows() -> Rows:
    return (_threshold(), *_pool_sizes(), *_rivals(), *_shares(), *_communication(), *_memory_and_statistics())


def _threshold() -> Statement:
    t = threshold_tokens()
    low, high = 0.9 * 4096, 1.1 * 4096
    unchanged = all((n >= low) == (n >= high) for n in LENGTHS)
    between = speed_up(4300, 8)
    return judged(
        "E23",
        "±10 % of the threshold 4096 makes minimal difference",
        f"none of their four lengths lies between "
        f"{low:.0f} and {high:.0f}; at 4300 the choice changes the step by {100 * abs(1 - between):.0f} %; t* = "
        f"{t:.0f}",
        holds=abs(1 - between) < 0.05,
        holds_if=unchanged and low <= t <= high,
        criterion="under 5 % inside the band",
        assuming="only their four lengths",
        tag="fitted",
    )


def _pool_sizes() -> Rows:
    found = []
    for number, pool, claimed in ((24, 16, 2.1), (25, 24, 2.9), (26, 32, 3.0)):
        share, ours = amdahl_share(claimed, pool // BASE_GPUS), speed_up(8192, pool)
        found.append(
            judged(
                f"E{number}",
                f"{pool} pool GPUs: {claimed}×" + (" at 8K" if number == 24 else ""),
                f"{ours:.2f}× simulated at 8K; {claimed}× needs {100 * share:.1f} % of the time in attention",
                holds=close(ours, claimed, 0.1),
                holds_if=share <= 1,
                criterion="within 10 %",
                assuming=f"{100 * share:.1f} % of the time in attention" if share <= 1 else "impossible: above 100 %",
                tag="fitted",
            )
        )
    return tuple(found)


def _rivals() -> Rows:
    ratio = prefill_s(static(model(), 16, 2), 1, 8192) / prefill_s(static(model(), 8, 2), 1, 8192)
    ours = over_baseline(8192, 24)
    internal = documents_tps(8192, 0.267)
    return (
        judged(
            "E27",
            "TP 16 × PP 2 on 32 GPUs: 245 ms and 33.4, as TP 8 × PP 2 on 16",
            f"TP 16 takes {ratio:.2f} of TP 8's time",
            holds=close(ratio, 1.0),
            criterion="equal within 5 %",
            assuming=ONE,
            tag="fitted",
        ),
        judged(
            "E28",
            "FA Pool 8 + 24 at 8K: 117 ms and 83.5",
            f"their rule gives {allocate_gpus(8192)[1]} pool GPUs at 8K; "
            f"with 24 we simulate {ours:.2f}× over TP 8 × PP 2, they print {245 / 117:.1f}× here and 2.9× in 5.3",
            holds=allocate_gpus(8192)[1] == 24 and close(ours, 245 / 117, 0.1),
            criterion="the rule's pool, within 10 %",
            tag="fitted",
        ),
        judged(
            "E29",
            "TP 8 × PP 4: 267 ms and 30.8",
            f"8192 / 267 ms = {internal:.1f} thousand a second",
            holds=close(internal, 30.8),
            criterion="internally consistent within 5 %",
        ),
    )


def attention_shares(length: int) -> tuple[float, float]:
    """(core, core and projections) of TP 8's compute and collectives."""
    parts = parts_s(timeline(static(model()), prefill_step(1, length)))
    total = sum(parts.values())
    return parts["core"] / total, (parts["core"] + parts["projections"]) / total


def length_of_share(share: float) -> float:
    """The length at which causal attention takes ``share``: core ∝ n², the rest ∝ n, both from 64K."""
    core, whole = model().num_layers * core_s(65536), prefill_s(static(model()), 1, 65536)
    return 65536 * share / (1 - share) * (whole - core) / core


def _shares() -> Rows:
    core, block = attention_shares(16384)
    return (
        judged(
            "E30",
            "attention is 75–80 % of the time (85–90 % in the baseline)",
            f"{100 * core:.0f} % at 16K, "
            f"{100 * block:.0f} % with projections; 85 % needs {length_of_share(0.85):,.0f} tokens",
            holds=within(100 * block, 85, 90),
            criterion="baseline in its range ± 5 %",
            assuming="causal flash, TP 8",
            tag="fitted",
        ),
        _e31(),
        unverifiable(
            "E32",
            "synchronisation is 5–8 %",
            "event waits are part of exposed communication here",
            why="no definition separates it from communication",
        ),
        unverifiable(
            "E33",
            "resource management is 2–3 %",
            f"with the other three it sums to {75 + 10 + 5 + 2}–"
            f"{80 + 15 + 8 + 3} %, which leaves no room for feed-forward",
            why="no definition, no cost is stated",
        ),
    )


def _e31() -> Statement:
    parts = breakdown(pooled(), range(BASE_GPUS))
    share = 100 * parts.exposed_communication_s / parts.total_s
    return judged(
        "E31",
        "communication is 10–15 % of the time",
        f"{share:.0f} % exposed on the base at 16K, p = 24",
        holds=within(share, 10, 15),
        criterion="in the range ± 5 %",
        assuming=ONE,
        tag="fitted",
    )


def hidden_share(found: Timeline) -> float:
    """Communication that runs behind compute, of all communication, on the base."""
    times = [rank_times(found, rank) for rank in range(BASE_GPUS)]
    hidden = sum(time.hidden_s for time in times)
    return hidden / (hidden + sum(time.exposed_s for time in times))


def _communication() -> Rows:
    program = pooled_program()
    before = sent_bytes(program, range(BASE_GPUS), to=lambda rank: rank >= BASE_GPUS)
    local = all(
        set(o.reads) <= {name for other in operations for name in other.writes}
        for operations in program.ranks
        for o in operations
        if isinstance(o, p.Attention)
    )
    one = hidden_share(timeline(fa_pool(model(), 8), prefill_step(1, 16384)))
    two = hidden_share(timeline(fa_pool(model(), 8, micro_batches=2), prefill_step(2, 16384)))
    return (
        judged(
            "E34",
            "KV sharing eliminates communication during attention",
            f"no message inside attention, but {before / 1e6:,.0f} MB to the pool before it (8 GPUs, 4096 tokens)",
            holds=local and before == 0,
            holds_if=local,
            criterion="no bytes at all",
            assuming="moved before attention, not removed",
        ),
        judged(
            "E35",
            "85 % of communication overlaps computation",
            f"{100 * one:.0f} % with one micro-batch, {100 * two:.0f} % with two (16K, 8 pool GPUs)",
            holds=close(one, 0.85, 0.1),
            holds_if=close(two, 0.85, 0.1),
            criterion="within 10 %",
            assuming="two micro-batches",
            tag="fitted",
        ),
    )


def category_deviation(seed: int = 0) -> float:
    """Std over mean of TP 8 prefill times for 1000 uniform lengths of the short category."""
    low, high = CATEGORY_EDGES[0][1], CATEGORY_EDGES[1][1]
    known = np.linspace(low, high, 4).astype(int)
    times = [prefill_s(static(model()), 1, int(n)) for n in known]
    drawn = np.interp(np.random.default_rng(seed).uniform(low, high, 1000), known, times)
    return float(drawn.std(ddof=1) / drawn.mean())


def _memory_and_statistics() -> Rows:
    full = int(cluster().gpus[0].memory_bytes // (1024 * kv_bytes_per_sequence(1)))
    linear = kv_bytes_per_sequence(8192) == 2 * kv_bytes_per_sequence(4096)
    deviation = category_deviation()
    return (
        judged(
            "E36",
            "memory grows linearly with n, no bottleneck",
            f"64 KiB a token; replicated KV at batch 1024 fills a GPU at {full:,} tokens",
            holds=linear and full >= 16384,
            holds_if=linear and full * 1024 / 16 >= 16384,
            criterion="16384 tokens fit",
            assuming="batch 16",
        ),
        judged(
            "E37",
            "standard deviation under 3 % within a category of 1000 sequences",
            f"{100 * deviation:.0f} % of the mean "
            "for uniform lengths of 512–2048; 95 % confidence and p < 0.01 are mixed",
            holds=deviation < DOCUMENTS_MAX_STD_RATIO,
            holds_if=True,
            criterion="below 3 %",
            assuming="one length a category",
            tag="fitted",
        ),
        unverifiable(
            "E38",
            "mathematical models match the measurements",
            "their model and residuals are not given",
            why="their models are not stated with constants",
        ),
    )
