"""Statements F01–F24: the FA Pool methodology's architecture, rules and algorithm, each checked by running it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from planner.documents.placements import fa_pool_as_written, static
from planner.documents.rules import (
    BASE_GPUS,
    MAX_POOL_GPUS,
    THRESHOLD_TOKENS,
    activates_pool,
    allocate_gpus,
    attend,
    attend_by_blocks,
    block_size,
    causal_imbalance,
    check_pool_size,
    query_blocks,
)
from planner.paper.speedup import split
from planner.paper.statement import Statement, close, judged, specified
from planner.paper.steps import cluster, kv_bytes_per_sequence, model, nodes, prefill_s, sent_bytes
from simulator import program as p
from simulator.fabric.collectives import tree_depth
from simulator.lowering import lower
from simulator.serving.pool_policy import DOCUMENTS_RULE
from simulator.units import format_bytes
from simulator.value_bytes import is_view
from simulator.workload import prefill_step

Rows = tuple[Statement, ...]
POOL_KINDS = (p.Attention, p.Slice, p.Concat, p.Store, p.Send, p.Recv)
CHECK_POOL = 8


@lru_cache(maxsize=1)
def pooled_program() -> p.Program:
    """FA Pool as written: 8 base GPUs, 8 in the pool, one sequence at the threshold."""
    placement = fa_pool_as_written(model(), CHECK_POOL)
    return lower(model(), prefill_step(1, THRESHOLD_TOKENS), placement, nodes=nodes(), cache=static(model()))


def base_holds_the_rest() -> bool:
    """Pool ranks only move and attend; base ranks embed, project, normalise, feed forward and add."""
    program = pooled_program()
    pool = all(isinstance(o, POOL_KINDS) for rank in program.ranks[BASE_GPUS : BASE_GPUS + CHECK_POOL] for o in rank)
    base = {type(o) for rank in program.ranks[:BASE_GPUS] for o in rank}
    return pool and {p.Embed, p.Norm, p.Rope, p.Linear, p.Activation, p.Add} <= base and p.Attention not in base


def rows() -> Rows:
    return (*_gpus(), *_sizes(), *_rules(), *_algorithm(), *_asynchrony())


def _gpus() -> Rows:
    causal_kv = 1024 * kv_bytes_per_sequence(THRESHOLD_TOKENS)
    return (
        specified(
            "F01",
            "8 base GPUs",
            f"{BASE_GPUS} base ranks in the lowered program",
            implemented=sum(any(isinstance(o, p.Linear) for o in rank) for rank in pooled_program().ranks) == 8,
        ),
        specified(
            "F02",
            "the base holds everything but attention",
            "pool ranks hold no weights and only attend",
            implemented=base_holds_the_rest(),
            assuming="Q, K, V and output projections are on the base",
        ),
        specified("F03", "attention pool of at most 32 GPUs", "33 are refused", implemented=_refuses(33)),
        specified(
            "F04",
            "activation from 4096 tokens",
            "4095: no, 4096: yes",
            implemented=not activates_pool([4095]) and activates_pool([4096]),
        ),
        _f05(),
        judged(
            "F06",
            "KV cache replicated on every pool GPU",
            f"{format_bytes(causal_kv)} at batch 1024 and 4096 tokens; a GPU has "
            f"{format_bytes(cluster().gpus[0].memory_bytes)}",
            holds=causal_kv <= cluster().gpus[0].memory_bytes,
            holds_if=kv_bytes_per_sequence(THRESHOLD_TOKENS) * 16 <= cluster().gpus[0].memory_bytes,
            criterion="the KV cache fits in one GPU",
            assuming="prefill of small batches (16 fit)",
        ),
    )


def _sizes() -> Rows:
    wanted = model()
    causal_kv = 1024 * kv_bytes_per_sequence(THRESHOLD_TOKENS)
    one_forward_s = 1024 * prefill_s(static(wanted), 1, THRESHOLD_TOKENS)
    return (
        specified("F07", "4 layers", f"{wanted.num_layers}", implemented=wanted.num_layers == 4),
        specified("F08", "hidden size 4096", f"{wanted.hidden_size}", implemented=wanted.hidden_size == 4096),
        judged(
            "F09",
            "32 heads of 128",
            f"{wanted.num_attention_heads} · {wanted.head_dim} = {wanted.num_attention_heads * wanted.head_dim}",
            holds=wanted.num_attention_heads * wanted.head_dim == wanted.hidden_size,
            criterion="equals the hidden size",
        ),
        judged(
            "F10",
            "feed-forward 16384 = 4 × hidden",
            f"{wanted.intermediate_size / wanted.hidden_size:g} ×",
            holds=wanted.intermediate_size == 4 * wanted.hidden_size,
            criterion="exact",
        ),
        specified(
            "F11",
            "GELU",
            wanted.hidden_act,
            implemented=all(
                o.kind == "gelu" for rank in pooled_program().ranks for o in rank if isinstance(o, p.Activation)
            ),
        ),
        specified("F12", "pre-norm RMSNorm", "a Norm feeds every q, k, v and every up matrix", implemented=_pre_norm()),
        _f13(causal_kv, one_forward_s),
        _f14(),
    )


def _refuses(pool_gpus: int) -> bool:
    try:
        check_pool_size(pool_gpus)
    except ValueError:
        return check_pool_size(MAX_POOL_GPUS) == MAX_POOL_GPUS
    return False


def _pre_norm() -> bool:
    for operations in pooled_program().ranks[:BASE_GPUS]:
        normed = {o.writes[0] for o in operations if isinstance(o, p.Norm)}
        entries = [o for o in operations if isinstance(o, p.Linear) and o.weights[0].name.endswith((".q", ".up"))]
        if not entries or any(o.reads[0] not in normed for o in entries):
            return False
    return True


def _f05() -> Statement:
    exact = all(block_size(n, q) * q >= n > (block_size(n, q) - 1) * q for n in range(1, 200) for q in range(1, 33))
    return judged(
        "F05",
        "b = ceil(n / p)",
        f"covers n for every n < 200, p ≤ 32; n = 5, p = 4 leaves {4 - len(query_blocks(5, 4))} GPU without a block",
        holds=exact,
        criterion="exhaustive",
    )


def _f13(kv_bytes: int, one_forward_s: float) -> Statement:
    claimed_s = 45e-3
    return judged(
        "F13",
        "batch 1024 at the printed latencies (45 ms for attention at 4096 tokens)",
        f"a forward pass takes {one_forward_s:.1f} s on TP 8, KV is {format_bytes(kv_bytes)}",
        holds=one_forward_s <= 2 * claimed_s,
        criterion="at most twice the printed attention time",
        assuming="bf16 A100 kernels, 1024 times one sequence",
        tag="fitted",
    )


def _f14() -> Statement:
    wanted = model()
    dense = wanted.layer_parameters()
    gated = 4 * (wanted.attention_parameters() + 16 * 3 * wanted.hidden_size * wanted.intermediate_size)
    return judged(
        "F14",
        "about 13 B parameters",
        f"{dense / 1e9:.3f} B in 4 layers; 16 gated experts a layer would give {gated / 1e9:.2f} B, but it is dense",
        holds=close(dense, 13e9),
    )


def _rules() -> Rows:
    table = {n: allocate_gpus(n)[1] for n in (4095, 4096, 8191, 8192, 16383, 16384, 32767, 32768)}
    return (
        specified(
            "F15",
            "the longest sequence of a batch decides",
            "max([100, 5000]) ≥ 4096 activates",
            implemented=activates_pool([100, 5000]) and not activates_pool([100, 4000]),
        ),
        specified(
            "F16",
            "threshold check activates the pool",
            "activates_pool(lengths)",
            implemented=activates_pool([THRESHOLD_TOKENS]),
        ),
        specified(
            "F17",
            "0, 8, 16, 24 or 32 pool GPUs by length",
            f"{sorted(set(table.values()))}; 8192 gets {table[8192]}",
            implemented=tuple(table.values()) == (0, 8, 8, 16, 16, 24, 24, 32)
            and all(DOCUMENTS_RULE.pool_gpus(n) == pool for n, pool in table.items()),
            assuming="contradicts experiment 5.4, which uses 24 at 8K",
        ),
    )


def _algorithm() -> Rows:
    ratios = {pool: causal_imbalance(16384, pool) for pool in (8, 16, 24, 32)}
    program = pooled_program()
    gathered = all(any(isinstance(o, p.Recv) and ".o.in" in o.writes[0] for o in rank) for rank in program.ranks[:8])
    return (
        _f18(),
        judged(
            "F19",
            "every pool GPU does 1/p of the attention (implied)",
            "causal, largest over mean: " + ", ".join(f"{r:.2f} at p = {q}" for q, r in ratios.items()),
            holds=max(ratios.values()) <= 1.05,
            holds_if=False,
            criterion="largest over mean at most 1.05",
            assuming="it would hold without a causal mask",
        ),
        specified("F20", "outputs are gathered", "every base rank receives o of its heads", implemented=gathered),
        specified(
            "F21",
            "sync: KV ready, attention done, result sent",
            "Attention waits for received q and kv; base waits for o",
            implemented=_synchronised(),
        ),
    )


def _f18() -> Statement:
    q, k, v = np.random.default_rng(0).standard_normal((3, 101, 16))
    errors = [
        float(np.abs(attend_by_blocks(q, k, v, pool, causal=causal) - attend(q, k, v, causal=causal)).max())
        for pool in (1, 4, 8, 32)
        for causal in (True, False)
    ]
    return judged(
        "F18",
        "query blocks against full K, V give the same output",
        f"largest difference {max(errors):.0e} over pools of 1 to 32 GPUs and 101 ragged tokens, causal and not",
        holds=max(errors) < 1e-12,
        criterion="difference below 1e-12",
        assuming="a causal mask offset by the block's first row, which the pseudo-code omits",
    )


def _synchronised() -> bool:
    for operations in pooled_program().ranks[8:16]:
        received = {o.writes[0] for o in operations if isinstance(o, p.Recv)}
        made = received | {o.writes[0] for o in operations if isinstance(o, p.Concat)}
        if any(not set(o.reads) <= made for o in operations if isinstance(o, p.Attention)):
            return False
    return True


def _asynchrony() -> Rows:
    one, two = split(16384, 8, 1), split(16384, 8, 2)
    program = pooled_program()
    back = sent_bytes(program, range(8, 16))
    whole = model().num_layers * THRESHOLD_TOKENS * model().hidden_size * 2
    return (
        judged(
            "F22",
            "feed-forward on the base overlaps attention in the pool",
            f"gain from overlap at 16K, p = 8: {one.overlap:.2f}× with one micro-batch, {two.overlap:.2f}× with two",
            holds=one.overlap > 1.01,
            holds_if=two.overlap > 1.01,
            criterion="overlap shortens the simulated step by over 1 %",
            assuming="two or more micro-batches: a layer's feed-forward needs that layer's attention",
            tag="fitted",
        ),
        judged(
            "F23",
            "tree gather takes log p steps instead of p − 1",
            f"{tree_depth(8)} rounds instead of 7 at p = 8; the "
            f"base still takes in {format_bytes(back)} of {format_bytes(whole)} outputs",
            holds=back < whole / 2,
            holds_if=tree_depth(8) == 3,
            criterion="bytes into the base fall with it",
            assuming="counting rounds, not bytes",
        ),
        specified(
            "F24",
            "contiguous memory blocks",
            "a slice of whole rows is a view and costs no bytes",
            implemented=_views_are_free(),
        ),
    )


def _views_are_free() -> bool:
    slices = [o for rank in pooled_program().ranks[:8] for o in rank if isinstance(o, p.Slice)]
    return bool(slices) and all(is_view(o) for o in slices)
