"""Every scheme on five to eight real processes, one warm world for all: equal to one device, moving what is planned.

Worlds of one to four are in ``test_executor_world``, ``test_two_level`` and ``test_ring``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import pytest
import torch

from executor.operations import moe
from executor.reference import Reference
from executor.session import Generation, prompts_of
from executor.supervisor import Supervisor
from simulator import program as p
from simulator.model import Experts, Model
from simulator.placement import AttentionGrid, Placement
from simulator.workload import Sequences
from tests.executor_world import TOLERANCE, assert_transfers_as_planned, generation_of, replayed, run_on
from tests.routing import routing_of
from tests.schemes import context_parallel, joined, pooled, separated, static, tiny_model, two_level

DENSE = tiny_model()
EXPERTS = Experts(num_experts=8, top_k=2, intermediate_size=24, shared_intermediate_size=16, capacity_factor=1.0)
MOE = tiny_model(experts=EXPERTS)
EVERY_EXPERT = tiny_model(experts=EXPERTS.model_copy(update={"top_k": 8}))
"""For bf16, whose rounding would flip a choice between nearly equal experts."""
DROPLESS = tiny_model(experts=EXPERTS.model_copy(update={"capacity_factor": None}))
BATCH = (Sequences(3, 0, 11), Sequences(2, 0, 26), Sequences(4, 0, 7))


@dataclass(frozen=True)
class Case:
    """Prefill by one placement and decode by it or another."""

    model: Model
    prefill: Placement
    decode: Placement | None = None
    num_decoded: int = 2
    options: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        decode = "" if self.decode is None else f" then {self.decode.name}"
        return f"{len(self.prefill.ranks)} ranks {self.prefill.name}{decode}"


def grid(*heads: int, q: int = 1, kv: int = 1) -> AttentionGrid:
    return AttentionGrid(heads=heads, query_blocks=q, kv_blocks=kv)


CASES = [
    Case(DENSE, static(DENSE, 5), num_decoded=63),
    Case(DENSE, static(DENSE, 7)),
    Case(DENSE, static(DENSE, 8, micro_batches=2)),
    Case(DENSE, static(DENSE, 3, 2, micro_batches=3)),
    Case(DENSE, static(DENSE, 4, 2, micro_batches=2)),
    Case(DENSE, context_parallel(DENSE, 1, 5, block_rule="zigzag")),
    Case(DENSE, context_parallel(DENSE, 2, 3, kv_streams=2)),
    Case(DENSE, context_parallel(DENSE, 2, 4, block_rule="zigzag"), num_decoded=63),
    Case(DENSE, context_parallel(DENSE, 1, 7, kv_ring=True, block_rule="zigzag")),
    Case(DENSE, context_parallel(DENSE, 2, 4, kv_ring=True, block_rule="zigzag", micro_batches=2)),
    Case(DENSE, pooled(DENSE, 2, grid(8, q=6), block_rule="zigzag", kv_multicast="tree")),
    Case(DENSE, pooled(DENSE, 1, grid(8, q=7), kv_multicast="chain", transfer_chunks=2, kv_streams=2)),
    Case(DENSE, pooled(DENSE, 4, grid(8, q=4), micro_batches=2), pooled(DENSE, 4, grid(8, kv=4)), num_decoded=63),
    Case(DENSE, pooled(DENSE, 2, grid(8, kv=5))),
    Case(DENSE, pooled(DENSE, 2, grid(3, 5, q=3), micro_batches=2)),
    Case(DENSE, pooled(DENSE, 2, grid(8, q=2, kv=3))),
    Case(DENSE, pooled(DENSE, 2, grid(4, 4, kv=3))),
    Case(DENSE, joined(DENSE, 3, grid(8, q=8), block_rule="sqrt"), joined(DENSE, 3, grid(8, kv=6))),
    Case(DENSE, static(DENSE, 2), pooled(DENSE, 2, grid(8, kv=6))),
    Case(DENSE, two_level(DENSE, 2, 4, dim_mode="all_to_all")),
    Case(DENSE, two_level(DENSE, 1, 8, dim_mode="score_sum")),
    Case(DENSE, two_level(DENSE, 4, 2, dim_mode="gather_qk"), num_decoded=0),
    Case(MOE, static(MOE, 8)),
    Case(DROPLESS, static(DROPLESS, 5)),
    Case(MOE, separated(MOE, 4, 4), num_decoded=63),
    Case(MOE, separated(MOE, 6, 2, micro_batches=2)),
    Case(MOE, separated(MOE, 3, 4, micro_batches=2)),
    Case(MOE, separated(MOE, 5, 3, exit="all_reduce_broadcast", all_reduce="hierarchical")),
    Case(DROPLESS, separated(DROPLESS, 3, 3, exit="all_reduce_broadcast", micro_batches=2)),
    Case(EVERY_EXPERT, separated(EVERY_EXPERT, 4, 4)),
]
BF16 = [7, 9, 12, 15, 19, 29]
ROUTED = [22, 24, 25, 26, 27]


@pytest.fixture(scope="module")
def world() -> Iterator[Supervisor]:
    with Supervisor(8, timeout_s=60.0) as supervisor:
        yield supervisor


def generation(case: Case, dtype: str = "fp32", num_decoded: int | None = None) -> Generation:
    decoded = case.num_decoded if num_decoded is None else num_decoded
    return generation_of(
        case.model, case.prefill, decoder=case.decode, batch=BATCH, dtype=dtype, num_decoded=decoded, world=8
    )


@lru_cache(maxsize=64)
def expected(index: int) -> tuple[torch.Tensor, list[list[int]]]:
    """The reference's prefill logits and its tokens, dropping what the ranks of this case drop."""
    made = generation(CASES[index])
    routing = [routing_of(program) for program in made.programs]
    if CASES[index].model is DENSE and index:
        logits, tokens = expected_dense()
        return logits, [row[: len(made.programs)] for row in tokens]
    logits = Reference(made.model).logits(prompts_of(made), routing[0])
    return logits.float(), Reference(made.model).generate(prompts_of(made), len(made.programs), routing=routing)


@lru_cache(maxsize=1)
def expected_dense() -> tuple[torch.Tensor, list[list[int]]]:
    """One answer for every dense case: no placement may change it."""
    made = generation(CASES[0])
    reference = Reference(DENSE)
    return reference.logits(prompts_of(made)).float(), reference.generate(prompts_of(made), 64)


def worst_row(logits: list[list[torch.Tensor]], want: torch.Tensor) -> float:
    """Largest distance of an executed row of logits from the nearest of the reference, over its largest value."""
    rows = [row for rank in logits for sample in rank for row in sample]
    assert len(rows) >= len(want)
    return max(float((want - row).abs().amax(dim=1).min()) for row in rows) / float(want.abs().max())


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: CASES[index].name)
def test_every_scheme_equals_one_device_and_moves_what_is_planned(world: Supervisor, index: int) -> None:
    made = generation(CASES[index])
    done = run_on(world, made)
    logits, tokens = expected(index)
    assert worst_row(done.logits[0], logits) <= TOLERANCE["fp32"]
    assert [list(row) for row in done.measurement.generated] == tokens
    assert_transfers_as_planned(made, done)


@pytest.mark.parametrize("index", BF16, ids=lambda index: CASES[index].name)
def test_bf16_stays_within_two_percent(world: Supervisor, index: int) -> None:
    made = generation(CASES[index], "bf16", num_decoded=0)
    want = Reference(made.model, dtype="bf16").logits(prompts_of(made), routing_of(made.programs[0])).float()
    done = run_on(world, made)
    assert worst_row(done.logits[0], want) <= TOLERANCE["bf16"]
    assert_transfers_as_planned(made, done)


@pytest.mark.parametrize("index", ROUTED, ids=lambda index: CASES[index].name)
def test_the_dropped_pairs_of_token_and_expert_are_the_references(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = generation(CASES[index], num_decoded=0)
    routes: list[tuple[p.Route, moe.Assignment]] = []
    original = moe.route

    def recorded(operation: p.Route, x: torch.Tensor, gate: torch.Tensor, router: moe.Router) -> moe.Assignment:
        routes.append((operation, original(operation, x, gate, router)))
        return routes[-1][1]

    monkeypatch.setattr(moe, "route", recorded)
    replayed(made)
    program = made.programs[0]
    reference = Reference(made.model)
    reference.logits(prompts_of(made), routing_of(program))
    assert len(reference.dropped) > 0
    assert dropped_by(program, routes) == set(reference.dropped)


def dropped_by(program: p.Program, routes: list[tuple[p.Route, moe.Assignment]]) -> set[tuple[int, int, int]]:
    """Every (layer, row of the step, expert) that some rank dropped."""
    found: set[tuple[int, int, int]] = set()
    for operations in program.ranks:
        groups = routing_of(p.Program(program.step, program.dtype, (operations,), (), ())) or ()
        mine = [(op.layer, assignment) for mine in operations for op, assignment in routes if op is mine]
        for layer in {layer for layer, _ in mine}:
            of_layer = [assignment for number, assignment in mine if number == layer]
            for group, assignment in zip(groups, of_layer, strict=True):
                tokens, choices = (assignment.slots < 0).nonzero(as_tuple=True)
                experts = assignment.experts[tokens, choices].tolist()
                rows = [group.tokens[token] for token in tokens.tolist()]
                found |= {(layer, row, expert) for row, expert in zip(rows, experts, strict=True)}
    return found
