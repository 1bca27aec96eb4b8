"""Statements M01–M19: MA Separation's formulas, head and expert placement, routing and synchronisation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from planner.documents.placements import ma_separation
from planner.documents.separation import (
    balance,
    broadcast_copies,
    contiguous_ranges,
    dispatch_copies,
    distribute_heads,
    dropped_share,
    expert_dropout,
    expert_ranges,
    fewest_gpus_as_fast,
    hierarchical_all_reduce,
    in_balance,
    predict_times,
    predictor_layers,
    predictor_parameters,
)
from planner.paper.split import balancing_batch, split_times, sweep
from planner.paper.statement import Statement, close, judged, specified
from planner.paper.steps import cluster, model, nodes, seconds_of, timeline
from simulator import program as p
from simulator.kernel import AttentionPrefill, Moe, flops
from simulator.lowering import lower
from simulator.workload import decode_step, prefill_step

Rows = tuple[Statement, ...]
CLUSTER = "a100-4x4"


@lru_cache(maxsize=1)
def separated_program() -> p.Program:
    """12 attention and 4 MoE GPUs as written, 16 sequences of 2048 tokens."""
    wanted = model("ma-separation")
    return lower(wanted, prefill_step(16, 2048), ma_separation(wanted), nodes=nodes(CLUSTER))


def rows() -> Rows:
    return (*_formulas(), *_placement(), *_experts(), *_flow(), *_predictor(), *_synchronisation())


def _formulas() -> Rows:
    one, two = (flops(AttentionPrefill(1, n, n, 32, 32, 128)) for n in (2048, 4096))
    times = [seconds_of((Moe(2048, 4096, 16384, 2, 16, 1, ep, gated=False),)) for ep in (1, 2, 4)]
    prefill, decode = split_times("prefill", 16, 12), split_times("decode", 1024, 12)
    return (
        judged(
            "M01",
            "T_attention = O(n²d)",
            f"FLOPs × {two / one:.3f} when n doubles",
            holds=close(two / one, 4, 0.01),
            criterion="exponent within 1 %",
        ),
        specified(
            "M02",
            "T_moe is a function of expert parallelism",
            "1, 2, 4 GPUs: " + ", ".join(f"{1e3 * t:.1f} ms" for t in times),
            implemented=times[0] > times[1] > times[2],
        ),
        judged(
            "M03",
            "T_attention > T_moe when experts are distributed",
            f"T_attention / T_moe on 12 : 4 is "
            f"{prefill.ratio:.2f} in prefill (16 × 2048) and {decode.ratio:.2f} in decode of 1024 sequences",
            holds=prefill.ratio > 1,
            holds_if=decode.ratio > 1,
            criterion="ratio above 1",
            assuming=f"decode with {balancing_batch('decode')} sequences or more",
            tag="assumed",
        ),
    )


def _placement() -> Rows:
    wanted, sizes = model("ma-separation"), distribute_heads(32, 12)
    ranges = contiguous_ranges(sizes)
    program = separated_program()
    attends = [rank for rank, ops in enumerate(program.ranks) if any(isinstance(o, p.Attention) for o in ops)]
    experts = [rank for rank, ops in enumerate(program.ranks) if any(isinstance(o, p.Experts) for o in ops)]
    held = {o.heads for rank in attends for o in program.ranks[rank] if isinstance(o, p.Attention)}
    return (
        specified(
            "M04",
            "attention on GPUs 0–11, experts on 12–15",
            f"{attends[0]}–{attends[-1]} and {experts[0]}–{experts[-1]}",
            implemented=attends == list(range(12)) and experts == list(range(12, 16)),
        ),
        judged(
            "M05",
            "32 heads, hidden 4096, head size 128",
            f"{wanted.num_attention_heads} × {wanted.head_dim} = {wanted.hidden_size}",
            holds=wanted.num_attention_heads * wanted.head_dim == wanted.hidden_size,
            criterion="exact",
        ),
        judged(
            "M06",
            "heads 3 × 8 + 2 × 4; GPU 0 has 0–2, GPU 11 has 30–31",
            f"{list(sizes)}; balance {100 * balance(sizes):.1f} %, and {fewest_gpus_as_fast(32, 12)} GPUs are as fast",
            holds=sizes == (3,) * 8 + (2,) * 4 and set(ranges) == held and ranges[11] == (30, 32),
            criterion="exact",
        ),
        *_nodes(attends),
    )


def _nodes(attention_ranks: list[int]) -> Rows:
    home = nodes(CLUSTER)
    return (
        judged(
            "M07",
            "32 // 12 = 2.67",
            f"{32 // 12}; 32 / 12 = {32 / 12:.2f}",
            holds=close(32 // 12, 2.67),
            criterion="integer division",
        ),
        _m08(len({home[rank] for rank in attention_ranks})),
        specified(
            "M09",
            "nodes [0–3], [4–7], [8–11], [12–15]",
            f"{[home.index(n) for n in range(4)]} are the first ranks",
            implemented=[home.index(n) for n in range(4)] == [0, 4, 8, 12],
        ),
    )


def _m08(attention_nodes: int) -> Statement:
    values = np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32)
    error = float(np.abs(hierarchical_all_reduce(values, 4) - values.sum(axis=0)).max())
    return judged(
        "M08",
        "hierarchical all-reduce: reduce-scatter in the node, all-reduce across 4 nodes",
        f"equals a plain sum to {error:.0e}; {attention_nodes} nodes hold attention",
        holds=attention_nodes == 4,
        holds_if=error < 1e-4,
        criterion="four nodes take part and the sum is right",
        assuming="over 3 nodes, and after a row-split output projection rather than for scores",
    )


def mean_drops(tokens: int, draws: int, seed: int = 0) -> float:
    """Mean share dropped over seeded draws of uniform routing, 16 experts, top 2, capacity factor 1."""
    rng = np.random.default_rng(seed)
    return float(np.mean([dropped_share(tokens, 16, 2, 1.0, rng) for _ in range(draws)]))


def _experts() -> Rows:
    wanted = model("ma-separation").experts
    assert wanted is not None
    held = sorted({o.experts for rank in separated_program().ranks for o in rank if isinstance(o, p.Experts)})
    rng = np.random.default_rng(0)
    drops = {tokens: 100 * mean_drops(tokens, draws) for tokens, draws in ((64, 500), (2048, 50), (131072, 1))}
    ones = np.ones((16, 4), dtype=np.float32)
    dropped = expert_dropout(ones, 0.1, rng, training=True)
    return (
        judged(
            "M10",
            "16 experts, 4 a GPU, in order",
            f"{held}",
            holds=tuple(held) == expert_ranges(16, 4),
            criterion="exact",
        ),
        specified(
            "M11",
            "expert width 16384, top 2",
            f"{wanted.intermediate_size}, top {wanted.top_k}",
            implemented=(wanted.intermediate_size, wanted.top_k) == (16384, 2),
        ),
        specified(
            "M12",
            "capacity factor 1.0",
            "drops with uniform routing: "
            + ", ".join(f"{share:.1f} % of {tokens} tokens" for tokens, share in drops.items()),
            implemented=wanted.capacity_factor == 1.0,
        ),
        specified(
            "M13",
            "expert dropout 0.1",
            "zeroes whole experts in training, nothing at inference",
            implemented=bool((expert_dropout(ones, 0.1, rng, training=False) == ones).all())
            and bool((np.isclose(dropped, 0) | np.isclose(dropped, 1 / 0.9)).all()),
            assuming="training only",
        ),
    )


def _flow() -> Rows:
    first = separated_program().ranks[0]
    expert = separated_program().ranks[12]
    attention = [type(o).__name__ for o in first if o.layer == 0 and isinstance(o, p.Attention | p.Collective | p.Send)]
    experts = [type(o).__name__ for o in expert if o.layer == 0 and isinstance(o, p.Route | p.Experts | p.Collective)]
    return (
        specified(
            "M14",
            "attention → all-reduce → broadcast → route → experts → all-to-all",
            f"{' → '.join(dict.fromkeys(attention))} → {' → '.join(dict.fromkeys(experts))}; the broadcast makes "
            f"{broadcast_copies(4)} copies of a token where {dispatch_copies(16, 4, 2):.1f} are needed",
            implemented=attention[:2] == ["Attention", "Collective"] and experts[:2] == ["Route", "Experts"],
            assuming="after a broadcast every rank has all tokens, so outputs are all-reduced",
        ),
    )


def _predictor() -> Rows:
    bandwidth = cluster(CLUSTER).gpus[0].memory_bandwidth_bytes_per_s / 1e12
    rng = np.random.default_rng(0)
    return (
        specified(
            "M15",
            "predictor with 5 features and layers 5–64–32–2",
            f"{predictor_parameters():,} parameters, 2 outputs",
            implemented=predict_times(np.ones(5, dtype=np.float32), predictor_layers(rng)).shape == (2,)
            and predictor_parameters() == sum(w.size + b.size for w, b in predictor_layers(rng)),
            assuming="untrained here; attnplan predicts a log residual over a physical model instead",
        ),
        judged(
            "M16",
            "number of active experts = 2 × batch",
            f"{2 * 1024} at batch 1024; there are 16",
            holds=2 * 1024 <= 16,
            criterion="at most the number of experts",
        ),
        judged("M17", "A100 memory bandwidth 2.0 TB/s", f"{bandwidth:.3f} TB/s", holds=close(bandwidth, 2.0)),
    )


def _synchronisation() -> Rows:
    prefill = [t for t in sweep("prefill", 16) if in_balance(t.core_s, t.measured_s)]
    decode = {
        batch: [t.attention_gpus for t in sweep("decode", batch) if in_balance(t.core_s, t.measured_s)]
        for batch in (64, 128, 256, 512, 1024)
    }
    found = {batch: gpus for batch, gpus in decode.items() if gpus}
    one, two = (_step_s(micro_batches) for micro_batches in (1, 2))
    return (
        judged(
            "M18",
            "T_attention and T_moe within 5 %",
            f"prefill: {len(prefill)} of 15 splits; decode: "
            + (", ".join(f"{gpus} : {16 - gpus[0]} at batch {batch}" for batch, gpus in found.items()) or "none of 75"),
            holds=bool(prefill),
            holds_if=bool(found),
            criterion="some split of 16 GPUs is in balance",
            assuming="particular decode batches; integer splits rarely meet 5 %",
            tag="assumed",
        ),
        specified(
            "M19",
            "streams and events, a barrier before the next layer",
            f"layer 1 attends after layer 0's experts; a decode step of 256 takes {1e3 * one:.1f} ms, "
            f"{1e3 * two:.1f} ms in two micro-batches",
            implemented=_layers_follow(),
            assuming="events follow data; a full barrier would forbid overlap between micro-batches",
        ),
    )


def _layers_follow() -> bool:
    """The first attention of layer 1 starts after the last expert of layer 0 ended."""
    found = timeline(ma_separation(model("ma-separation")), decode_step(256, 2048), CLUSTER, "ma-separation")
    spans = [
        (o, found.start_ps[rank][index], found.end_ps[rank][index])
        for rank, operations in enumerate(found.program.ranks)
        for index, o in enumerate(operations)
    ]
    ended = max(end for o, _, end in spans if isinstance(o, p.Experts) and o.layer == 0)
    started = min(start for o, start, _ in spans if isinstance(o, p.Attention) and o.layer == 1)
    return bool(started >= ended)


def _step_s(micro_batches: int) -> float:
    placement = ma_separation(model("ma-separation")).model_copy(update={"micro_batches": micro_batches})
    return timeline(placement, decode_step(256, 2048), CLUSTER, "ma-separation").duration_s
