"""Statements K01–K10: the FA Pool key points, judged by simulation. Most repeat a figure of the experiments."""

from __future__ import annotations

from functools import lru_cache

from planner.documents.placements import fa_pool, static
from planner.documents.rules import BASE_GPUS
from planner.paper.scaling import plateau
from planner.paper.speedup import baseline_s, ceiling, over_baseline
from planner.paper.statement import Statement, close, judged, specified
from planner.paper.steps import model, prefill_s, timeline
from simulator.kernel import AttentionPrefill, flops
from simulator.serving.pool_policy import DOCUMENTS_RULE, PoolRules
from simulator.serving.resource_manager import Activated, BatchEnded, BatchFormed, Released, decide, idle_pool
from simulator.simulation.timeline import Timeline, breakdown, utilisation
from simulator.workload import prefill_step

Rows = tuple[Statement, ...]
LENGTH = 16384


@lru_cache(maxsize=1)
def baseline() -> Timeline:
    """TP 8 × PP 2, one sequence of 16K, not filled: the documents' baseline."""
    return timeline(static(model(), 8, 2), prefill_step(1, LENGTH))


@lru_cache(maxsize=1)
def pooled() -> Timeline:
    """8 base and 24 pool GPUs, one sequence of 16K."""
    return timeline(fa_pool(model(), 24), prefill_step(1, LENGTH))


def communication_share(found: Timeline) -> float:
    """Exposed communication over compute, averaged over the base ranks."""
    parts = breakdown(found, range(BASE_GPUS))
    return parts.exposed_communication_s / parts.compute_s


def rows() -> Rows:
    return (*_problem(), *_results(), *_costs())


def _problem() -> Rows:
    one, two = (flops(AttentionPrefill(1, n, n, 32, 32, 128)) for n in (LENGTH, 2 * LENGTH))
    share = 100 * utilisation(baseline(), range(16))
    filled = 100 * utilisation(timeline(static(model(), 8, 2, micro_batches=16), prefill_step(16, LENGTH)), range(16))
    ranks = static(model(), 8, 2).ranks
    return (
        judged(
            "K01",
            "attention is O(n²)",
            f"FLOPs × {two / one:.3f} when n doubles",
            holds=close(two / one, 4, 0.01),
            criterion="exponent within 1 %",
        ),
        judged(
            "K02",
            "static TP and PP leave GPUs under-used",
            f"TP 8 × PP 2 computes {share:.0f} % of the time unfilled, {filled:.0f} % with 16 micro-batches",
            holds=filled < 60,
            holds_if=share < 60,
            criterion="under 60 % of the time, their upper figure",
            assuming="the pipeline is not filled",
            tag="fitted",
        ),
        specified(
            "K03",
            "a resource manager allocates and releases the pool",
            "24 GPUs for a 16K batch, none for a 512-token one after it",
            implemented=_manages(),
        ),
        judged(
            "K04", "baseline is TP 8, PP 2 on 16 GPUs", f"{len(ranks)} ranks", holds=len(ranks) == 16, criterion="exact"
        ),
    )


def _manages() -> bool:
    """A long batch activates 24 pool GPUs; a short one after it gives them back."""
    rules = PoolRules(pool_gpus=32, prefill=DOCUMENTS_RULE)
    state, decisions = decide(idle_pool(rules), BatchFormed(0, 0, "prefill", LENGTH), rules)
    activated = any(isinstance(d, Activated) and d.after_gpus == 24 for d in decisions)
    state, _ = decide(state, BatchEnded(1, 0), rules)
    state, decisions = decide(state, BatchFormed(2, 0, "prefill", 512), rules)
    return activated and any(isinstance(d, Released) and d.after_gpus == 0 for d in decisions)


def _results() -> Rows:
    against_baseline = over_baseline(LENGTH, 24)
    best = ceiling(LENGTH) * baseline_s(LENGTH) / prefill_s(static(model()), 1, LENGTH)
    unfused = ceiling(LENGTH, unfused=True)
    text = (
        f"{against_baseline:.2f}× simulated against TP 8 × PP 2; at most {best:.2f}× with free transfers, "
        f"{unfused:.2f}× over a baseline without flash"
    )
    return (
        judged(
            "K05",
            "3.2× TPOT at 16K and beyond",
            text,
            holds=against_baseline >= 3.2 * 0.95,
            holds_if=unfused >= 3.2 * 0.95,
            criterion="reaches 3.2 within 5 %",
            assuming="a baseline without flash and free transfers",
            tag="fitted",
        ),
        judged(
            "K06",
            "2.8× TPS at 16K and beyond",
            text + "; the same batch must give the TPOT ratio, 3.2",
            holds=against_baseline >= 2.8 * 0.95 and close(2.8, 3.2),
            criterion="reaches 2.8 and equals the TPOT ratio",
            tag="fitted",
        ),
        judged(
            "K07",
            "near-linear scaling to 16K",
            f"{plateau(LENGTH)[24] / plateau(LENGTH)[8]:.2f}× from 8 to 24 pool GPUs "
            f"(linear is 3); 3.2× exceeds the {24 / BASE_GPUS:.1f}× of attention alone",
            holds=plateau(LENGTH)[24] / plateau(LENGTH)[8] >= 0.8 * 3,
            criterion="at least 80 % of linear",
            tag="fitted",
        ),
    )


def _costs() -> Rows:
    pool, base = 100 * utilisation(pooled(), range(8, 32)), 100 * utilisation(baseline(), range(16))
    identity = (BASE_GPUS + 24) / 16 * ((85 + 92) / 2) / ((45 + 60) / 2)
    share = 100 * communication_share(pooled())
    return (
        judged(
            "K08",
            "85–92 % utilisation in the pool against 45–60 % in the baseline",
            f"{pool:.0f} % and {base:.0f} % "
            f"simulated; their midpoints times 32/16 GPUs give {identity:.2f}×, their 3.2× table",
            holds=pool >= 80,
            holds_if=close(identity, 3.2, 0.1),
            criterion="pool at 80 % or more",
            assuming="utilisation was computed from the speed-up, not measured",
            tag="fitted",
        ),
        judged(
            "K09",
            "communication is under 15 % of compute",
            f"{share:.0f} % at 16K, exposed, one micro-batch; their own 8 ms of 45 ms is {100 * 8 / 45:.0f} %",
            holds=share < 15,
            holds_if=100 * 8 / 45 < 15,
            criterion="below 15 %",
            tag="fitted",
        ),
        judged(
            "K10",
            "65 GB a base GPU and 45 GB a pool GPU",
            f"their parts sum to {1.6 + 32 + 20:.1f} and {25 + 15 + 5} GB",
            holds=close(1.6 + 32 + 20, 65) and close(25 + 15 + 5, 45),
            criterion="sums within 5 %",
        ),
    )
