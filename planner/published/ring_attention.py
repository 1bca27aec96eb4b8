"""Context-parallel causal attention of 65,536 tokens on 8 × H800, as zhuzilin/ring-flash-attention measured it.

Three schedules of that repository (README "Performance Summary" and ``ring_flash_attn/*.py`` at 89962823, MIT), step by
step: the ring passes K and V on while a rank attends, and after every step the new part is added to o in fp32.

    ring      contiguous blocks: rank r attends in r + 1 steps, the first causal, the others in full
    zigzag    chunks r and 15 − r: own block causal; then all queries × half the keys, or half the queries × all keys
    striped   every eighth token: each step causal, by one query and key less where the keys come from a later rank

One number is calibrated, from the one-GPU rows: FLOP/s of flash attention forward, and backward. All else is stated
(datasheets) or follows from the source: the bytes that the unfused element-wise updates read and write, at the
datasheet's bandwidth. Beside them, what this project's own lowering of the same rings takes (parts merged once, at the
end).
What it ignores: kernels that run slower beside NCCL's, launch gaps, and that full blocks run faster than causal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from planner.documents.placements import context_parallel
from planner.published.comparison import Comparison
from simulator import program as p
from simulator.cluster import Cluster, Gpu, Node, NodeLink
from simulator.costs.work import kernels_of
from simulator.kernel import attended_pairs, flops, memory_bytes
from simulator.lowering import lower
from simulator.model import Layer, Model
from simulator.placement import BlockRule
from simulator.simulation.engine import run
from simulator.workload import prefill_step

Scheme = Literal["ring", "zigzag", "striped"]
RANKS, TOKENS, HEADS, KV_HEADS, HEAD_DIM = 8, 8192, 32, 8, 128
MEASURED_PER_S = {  # iterations a second, forward alone and with the backward pass
    False: {"one GPU": 591.5, "ring": 38.5, "zigzag": 63.0, "striped": 55.0},
    True: {"one GPU": 154.7, "ring": 10.4, "zigzag": 17.4, "striped": 16.0},
}
H800 = Gpu(
    name="H800-SXM",
    compute_flop_per_s=989.4e12,  # dense bf16, as H100
    memory_bandwidth_bytes_per_s=3.35e12,
    memory_bytes=85899345920,
    num_sms=132,
    source="H800 SXM datasheet: an H100 with 400 GB/s of NVLink",
)
NODE = Cluster(
    name="h800-8",
    gpus=(H800,),
    nodes=(
        Node(
            gpu=H800.name,
            gpus=RANKS,
            link=NodeLink(kind="switch", bandwidth_bytes_per_s=200e9, latency_s=5e-6, source="400 GB/s both ways"),
        ),
    ),
)
# Bytes an element (ring_flash_attn/utils.py, *_flash_attn.py): fp32 accumulators, bf16 parts, a kernel an operator
UPDATE = 38  # part to fp32 (2+4); out − part (4+4+4); · sigmoid (4+4); out − that (4+4+4)
SLICE = 8  # a slice's result copied back (4+4)
CAST = 6  # bf16 ↔ fp32
ACCUMULATE = 10  # fp32 += bf16
OUTPUTS, KEYS = TOKENS * HEADS * HEAD_DIM, 2 * TOKENS * KV_HEADS * HEAD_DIM  # elements of o or dq, of K and V


@dataclass(frozen=True, slots=True)
class Block:
    """What a rank attends to in one step; ``sliced``: only some of its queries take part."""

    queries: int
    keys: int
    causal: bool
    sliced: bool = False

    def operation(self, reads: tuple[str, ...], name: str) -> p.Attention:
        chunk = p.Chunk(self.queries, 0, self.keys, self.causal)
        return p.Attention(
            reads=reads,
            writes=(name,),
            layer=0,
            micro_batch=0,
            segments=(p.Segment(1, (chunk,), self.keys),),
            num_tokens=self.queries,
            heads=(0, HEADS),
            kv_heads=(0, KV_HEADS),
            group_size=HEADS // KV_HEADS,
            head_dim=HEAD_DIM,
            window=0,
            decode=False,
        )


def block_of(scheme: Scheme, rank: int, step: int) -> Block | None:
    """Of ``rank``'s queries and the keys that started on rank − step."""
    if step == 0:
        return Block(TOKENS, TOKENS, True)
    earlier = step <= rank
    match scheme:
        case "ring":
            return Block(TOKENS, TOKENS, False) if earlier else None
        case "zigzag":
            return Block(TOKENS, TOKENS // 2, False) if earlier else Block(TOKENS // 2, TOKENS, False, sliced=True)
        case "striped":
            return Block(TOKENS, TOKENS, True) if earlier else Block(TOKENS - 1, TOKENS - 1, True, sliced=True)


def kernel_seconds(*, backward: bool) -> float:
    """Of one GPU's causal block of 8,192 tokens: the calibration."""
    forward_s = 1 / MEASURED_PER_S[False]["one GPU"]
    return 1 / MEASURED_PER_S[True]["one GPU"] - forward_s if backward else forward_s


def attention_seconds(operation: p.Attention, *, backward: bool = False) -> float:
    """At the one-GPU row's rate: in proportion to scored pairs."""
    whole = 4 * HEADS * HEAD_DIM * attended_pairs(TOKENS, TOKENS, causal=True)
    return kernel_seconds(backward=backward) * sum(flops(kernel) for kernel in kernels_of(operation, "bf16")) / whole


@dataclass(slots=True)
class _Rank:
    """A rank's operations and their seconds, while they are written down."""

    rank: int
    operations: list[p.Operation] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, operation: p.Operation, seconds: float = 0.0) -> None:
        self.operations.append(operation)
        self.seconds.append(seconds)

    def memory(self, reads: tuple[str, ...], name: str, num_bytes: float) -> None:
        """An element-wise kernel."""
        kernel = p.Add(reads=reads, writes=(name,), layer=0, micro_batch=0, num_tokens=TOKENS, width=HEADS * HEAD_DIM)
        self.add(kernel, num_bytes / H800.memory_bandwidth_bytes_per_s)

    def pass_on(self, value: str, arrives: str, num_bytes: int, tag: int) -> None:
        """Send to the next rank, receive from the one before."""
        to, source = (self.rank + 1) % RANKS, (self.rank - 1) % RANKS
        self.add(p.Send(reads=(value,), writes=(), layer=0, micro_batch=0, to=to, tag=tag, num_bytes=num_bytes))
        arrival = p.Recv(
            reads=(),
            writes=(arrives,),
            layer=0,
            micro_batch=0,
            source=source,
            tag=tag,
            num_bytes=num_bytes,
            shape=(num_bytes,),
            dtype="int8",
        )
        self.add(arrival)


def _forward(scheme: Scheme, row: _Rank) -> None:
    for step in range(RANKS):
        if step + 1 < RANKS:
            row.pass_on(f"kv{step}", f"kv{step + 1}", 2 * KEYS, step)
        block = block_of(scheme, row.rank, step)
        if block is None:
            continue
        operation = block.operation((f"kv{step}",), f"part{step}")
        row.add(operation, attention_seconds(operation))
        elements = OUTPUTS * block.queries // TOKENS
        each = CAST if step == 0 else UPDATE + (SLICE if block.sliced else 0)
        row.memory((f"part{step}",), "o", elements * each)
    row.memory(("o",), "out", OUTPUTS * CAST)


def _backward(scheme: Scheme, row: _Rank) -> None:
    """dq stays; dk and dv go round behind their keys, in fp32, each step's share added where it is made."""
    for step in range(RANKS):
        if step + 1 < RANKS:
            row.pass_on(f"b.kv{step}" if step else "kv0", f"b.kv{step + 1}", 2 * KEYS, RANKS + step)
        block = block_of(scheme, row.rank, step)
        arrived = (f"d.in{step - 1}",) if step else ()
        if block is None:
            row.memory(arrived, f"d{step}", 0)
        else:
            reads = ("out", f"b.kv{step}" if step else "kv0")
            operation = block.operation(reads, f"d.part{step}")
            row.add(operation, attention_seconds(operation, backward=True))
            each, share = CAST if step == 0 else ACCUMULATE, block.queries / TOKENS
            row.memory((f"d.part{step}",), "dq", OUTPUTS * share * each)
            row.memory((f"d.part{step}", *arrived), f"d{step}", KEYS * block.keys / TOKENS * each)
        row.pass_on(f"d{step}", f"d.in{step}", 4 * KEYS, 2 * RANKS + step)
    row.memory(("dq", f"d.in{RANKS - 1}"), "gradients", (OUTPUTS + KEYS) * CAST)


def published_seconds(scheme: Scheme, *, backward: bool) -> float:
    """One iteration of the repository's schedule, simulated."""
    rows = [_Rank(rank) for rank in range(RANKS)]
    for row in rows:
        _forward(scheme, row)
        if backward:
            _backward(scheme, row)
    return _play(tuple(tuple(row.operations) for row in rows), [row.seconds for row in rows])


def _play(ranks: tuple[tuple[p.Operation, ...], ...], seconds: Sequence[Sequence[float]]) -> float:
    program = p.Program(prefill_step(1, RANKS * TOKENS), "bf16", ranks, ((),) * RANKS, ("",) * RANKS)
    return run(program, NODE, seconds).duration_s


def lowered_seconds(rule: BlockRule) -> float:
    """This project's ring of the same attention: attention and merges priced alike, everything else left out."""
    model = Model(
        name="llama-3-8b-attention",
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=14336,
        layers=(Layer(),),
        vocab_size=128256,
    )
    placement = context_parallel(model, 1, RANKS, block_rule=rule)
    program = lower(model, prefill_step(1, RANKS * TOKENS), placement, nodes=(0,) * RANKS)
    return _play(program.ranks, [[_own_seconds(operation) for operation in ops] for ops in program.ranks])


def _own_seconds(operation: p.Operation) -> float:
    match operation:
        case p.Attention():
            return attention_seconds(operation)
        case p.MergeAttention():
            moved = sum(memory_bytes(kernel) for kernel in kernels_of(operation, "bf16"))
            return moved / H800.memory_bandwidth_bytes_per_s
        case _:
            return 0.0


def comparisons() -> tuple[Comparison, ...]:
    """Six rows of the repository's schedules, two of this project's."""
    schemes: tuple[Scheme, ...] = ("ring", "zigzag", "striped")
    found = [
        Comparison(
            f"{scheme}, forward{' and backward' if backward else ''}",
            "ms",
            1e3 / MEASURED_PER_S[backward][scheme],
            1e3 * published_seconds(scheme, backward=backward),
        )
        for backward in (False, True)
        for scheme in schemes
    ]
    rules: tuple[tuple[Scheme, BlockRule], ...] = (("ring", "contiguous"), ("zigzag", "zigzag"))
    for scheme, rule in rules:
        what = f"{scheme}, forward, as this project lowers it"
        found.append(Comparison(what, "ms", 1e3 / MEASURED_PER_S[False][scheme], 1e3 * lowered_seconds(rule)))
    return tuple(found)
