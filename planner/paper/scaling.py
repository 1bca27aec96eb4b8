"""Statements F39–F45: the FA Pool methodology's complexity, utilisation and scaling claims."""

from __future__ import annotations

from functools import lru_cache

from planner.documents.placements import fa_pool, fa_pool_as_written, static
from planner.paper.speedup import ceiling, overlapped_speed_up, speed_up
from planner.paper.statement import Statement, close, judged, within
from planner.paper.steps import model, nodes, sent_bytes, timeline
from simulator import program as p
from simulator.costs.work import kernels_of
from simulator.kernel import flops
from simulator.lowering import lower
from simulator.simulation.timeline import utilisation
from simulator.workload import prefill_step

Rows = tuple[Statement, ...]
POOLS = (8, 16, 24, 32)


def rows() -> Rows:
    return (*_complexity(), *_scaling())


@lru_cache(maxsize=8)
def _flops(length: int) -> tuple[int, int]:
    """(attention, matmul) FLOPs of rank 0's step on TP 8, counted over the lowered program."""
    step = lower(model(), prefill_step(1, length), static(model()), nodes=nodes())
    kinds = {True: 0, False: 0}
    for operation in step.ranks[0]:
        kinds[isinstance(operation, p.Attention)] += sum(flops(kernel) for kernel in kernels_of(operation, "bf16"))
    return kinds[True], kinds[False]


def _received(length: int, pool: int) -> float:
    """Bytes into the pool from the base, a pool GPU, all layers, as the documents send them."""
    step = lower(
        model(), prefill_step(1, length), fa_pool_as_written(model(), pool), nodes=nodes(), cache=static(model())
    )
    return sent_bytes(step, range(8), to=lambda rank: rank >= 8) / pool


def _complexity() -> Rows:
    (a1, f1), (a2, f2) = _flops(8192), _flops(16384)
    by_length = _received(16384, 16) / _received(8192, 16)
    by_pool = _received(16384, 32) / _received(16384, 16)
    found = timeline(fa_pool(model(), 24), prefill_step(1, 16384))
    base, pool = 100 * utilisation(found, range(8)), 100 * utilisation(found, range(8, 32))
    return (
        judged(
            "F39",
            "baseline: O(n²) attention + O(n) feed-forward",
            f"doubling n: attention × {a2 / a1:.2f}, matmuls × {f2 / f1:.2f}",
            holds=close(a2 / a1, 4, 0.01) and close(f2 / f1, 2, 0.01),
            criterion="exponents within 1 %",
        ),
        judged(
            "F40",
            "FA Pool: O(n²/p) + O(n) + O(log p) communication",
            f"bytes into a pool GPU: × {by_length:.2f} when n doubles, × {by_pool:.2f} when p doubles",
            holds=by_length < 1.1,
            criterion="bytes do not grow with n",
        ),
        judged(
            "F41",
            "base GPUs are 85–90 % utilised",
            f"{base:.0f} % at 16K with 24 pool GPUs; the experiments say 75–80 %",
            holds=within(base, 85, 90),
            criterion="in the range ± 5 %",
            assuming="one micro-batch, 8 NICs",
            tag="fitted",
        ),
        judged(
            "F42",
            "pool GPUs are 85–92 % utilised",
            f"{pool:.0f} % at 16K with 24 pool GPUs",
            holds=within(pool, 85, 92),
            criterion="in the range ± 5 %",
            assuming="one micro-batch, 8 NICs",
            tag="fitted",
        ),
    )


def plateau(length: int, *, overlapped: bool = False) -> dict[int, float]:
    """Speed-up over TP 8 by pool size: one sequence, or two sequences in two micro-batches."""
    return {pool: (overlapped_speed_up if overlapped else speed_up)(length, pool) for pool in POOLS}


def enough(found: dict[int, float]) -> int:
    """The smallest pool within 5 % of 32 GPUs' speed; 0 where no pool helps."""
    return 0 if max(found.values()) <= 1 else next(pool for pool in POOLS if found[pool] >= 0.95 * found[32])


def _flattens_at_24(found: dict[int, float]) -> bool:
    return found[24] / found[16] >= 1.05 > found[32] / found[24]


def _scaling() -> Rows:
    short = plateau(16384)
    best = {length: enough(plateau(length)) for length in (8192, 16384, 32768, 65536, 131072)}
    sizes = ", ".join(f"{gpus} at {length // 1024}K" for length, gpus in best.items())
    two = {length: plateau(length, overlapped=True) for length in (16384, 65536, 131072)}
    overlapped = ", ".join(f"{enough(found)} at {length // 1024}K" for length, found in two.items())
    one = "one sequence, causal flash, 8 NICs"
    return (
        judged(
            "F43",
            "linear scaling to 16K with 24 GPUs",
            f"{short[24]:.2f}× at 16K with 24; at most {ceiling(16384):.2f}× with an infinite pool and free transfers",
            holds=ceiling(16384) >= 24 / 8 * 0.9,
            criterion="the ceiling reaches 90 % of 24/8",
            assuming=one,
            tag="fitted",
        ),
        judged(
            "F44",
            "gains diminish beyond 24 pool GPUs",
            ", ".join(f"{s:.2f}× at p = {q}" for q, s in short.items()) + " (16K)",
            holds=_flattens_at_24(short),
            holds_if=any(_flattens_at_24(found) for found in two.values()),
            criterion="16 → 24 gains 5 % or more, 24 → 32 less",
            assuming="two micro-batches, 64K or 128K tokens",
            tag="fitted",
        ),
        judged(
            "F45",
            "16–24 pool GPUs are best for most sequences",
            f"smallest pool within 5 % of 32 GPUs: {sizes}; with two micro-batches {overlapped}",
            holds=sum(16 <= gpus <= 24 for gpus in best.values()) > len(best) / 2,
            holds_if=any(16 <= enough(found) <= 24 for found in two.values()),
            criterion="most of five lengths",
            assuming="two micro-batches, and only the lengths shown",
            tag="fitted",
        ),
    )
