"""Every scheme on one to eight real processes, one warm world for all: equal to one device in fp32 and bf16, step by
step, dropping the same tokens, generating the same ones, and moving exactly what is planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from executor.error_report import attend_by, per_slice
from executor.reference import Attend
from executor.session import Generation
from executor.supervisor import Supervisor
from tests.executed_cases import NODES, RAGGED, Case, cases
from tests.executor_world import (
    TOLERANCE,
    Comparison,
    assert_transfers_as_planned,
    compared,
    generation_of,
    on_nodes,
    run_on,
)

CASES = [(world, case) for world in range(1, 9) for case in cases(world)]
LONG = {case.scheme: case for case in cases(4) if case.decodes}
"""One case of every scheme that decodes, for 64 steps."""


@pytest.fixture(scope="module")
def world() -> Iterator[Supervisor]:
    with Supervisor(len(NODES), timeout_s=60.0, seats=on_nodes(NODES)) as supervisor:
        yield supervisor


def name(place: tuple[int, Case]) -> str:
    world, case = place
    decode = "" if case.decode is None else f"-then-{case.decode.name}"
    return f"{world}-{case.scheme}-{case.prefill.name}{decode}".replace(" ", "-")


@pytest.fixture(scope="module")
def gloo_world() -> Iterator[Supervisor]:
    """torch.distributed's calls, which NCCL gets too, over gloo; two nodes, so that a hierarchical sum has levels."""
    with Supervisor(4, timeout_s=60.0, seats=on_nodes(NODES[:4]), transport="gloo") as supervisor:
        yield supervisor


def generation(case: Case, dtype: str, num_decoded: int, nodes: Sequence[int] = NODES) -> Generation:
    return generation_of(
        case.model,
        case.prefill,
        decoder=case.decode,
        batch=RAGGED,
        dtype=dtype,
        num_decoded=num_decoded if case.decodes else 0,
        nodes=nodes,
        world=len(nodes),
    )


def attend_of(case: Case) -> Attend | None:
    """The documents' form is another model: its slices attend alone."""
    slices = case.prefill.stages[0].grid.dim_slices
    return attend_by(per_slice(case.model, slices)) if case.scheme == "per_slice" else None


def run(world: Supervisor, case: Case, dtype: str, num_decoded: int) -> tuple[Comparison, list[list[int]]]:
    made = generation(case, dtype, num_decoded, NODES[: world.size])
    done = run_on(world, made)
    assert_transfers_as_planned(made, done)
    return compared(made, done, attend=attend_of(case)), [list(row) for row in done.measurement.generated]


def assert_identical_but_for_rounding(found: Comparison, tokens: list[list[int]]) -> None:
    """fp32: the reference's experts, drops and tokens, and its logits to 1e-5."""
    assert found.error <= TOLERANCE["fp32"]
    assert found.regrets == []
    assert found.same_drops
    assert tokens == found.tokens


@pytest.mark.parametrize("place", [place for place in CASES if place[0] == 4], ids=name)
def test_every_scheme_equals_one_device_over_gloo_as_over_the_mesh(
    gloo_world: Supervisor, place: tuple[int, Case]
) -> None:
    assert_identical_but_for_rounding(*run(gloo_world, place[1], "fp32", 1))


@pytest.mark.parametrize("place", CASES, ids=name)
def test_every_scheme_equals_one_device_and_moves_what_is_planned(world: Supervisor, place: tuple[int, Case]) -> None:
    assert_identical_but_for_rounding(*run(world, place[1], "fp32", 1))


@pytest.mark.parametrize("place", CASES, ids=name)
def test_in_bf16_every_scheme_stays_within_two_percent(world: Supervisor, place: tuple[int, Case]) -> None:
    """The reference chooses the experts the run chose; where those are not its own, they are nearly as likely."""
    found, _ = run(world, place[1], "bf16", 1)
    assert found.error <= TOLERANCE["bf16"]
    assert found.same_drops
    assert all(regret <= TOLERANCE["bf16"] for regret in found.regrets)


@pytest.mark.parametrize("scheme", LONG)
def test_sixty_four_generated_tokens_are_the_references(world: Supervisor, scheme: str) -> None:
    assert_identical_but_for_rounding(*run(world, LONG[scheme], "fp32", 63))
