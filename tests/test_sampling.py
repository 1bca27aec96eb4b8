"""Seeded sampling: the right distribution, the same tokens wherever the program runs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from executor.operations import next_places
from executor.reference import Reference
from executor.sampling import Sampling, drawn, draws, sample
from executor.session import prompts_of
from simulator import program as p
from simulator.errors import SpecError
from simulator.model import Experts
from simulator.placement import AttentionGrid, Placement
from tests.executor_world import generation_of, replayed
from tests.schemes import context_parallel, pooled, separated, static, tiny_model

CPU = torch.device("cpu")
HOT = Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=3)
MODEL = tiny_model()
PLACEMENTS = [
    static(MODEL, 3),  # 97 words over 3 shards: padded columns
    static(MODEL, 2, 2, micro_batches=2),
    context_parallel(MODEL, 2, 2),
    pooled(MODEL, 2, AttentionGrid(heads=(8,), query_blocks=3), micro_batches=2),
    pooled(MODEL, 1, AttentionGrid(heads=(8,), kv_blocks=3)),
]


def choose(sampling: Sampling):  # type: ignore[no-untyped-def]
    def chosen(logits: torch.Tensor, positions: list[int]) -> torch.Tensor:
        return sample(logits, sampling, draws(sampling, enumerate(positions), CPU))

    return chosen


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda placement: placement.name)
def test_drawn_tokens_are_the_references_under_every_placement(placement: Placement) -> None:
    generation = replace(generation_of(MODEL, placement, num_decoded=15, world=8), sampling=HOT)
    want = Reference(MODEL).generate(prompts_of(generation), 16, choose=choose(HOT))
    assert [list(row) for row in replayed(generation).measurement.generated] == want
    assert want != Reference(MODEL).generate(prompts_of(generation), 16)


def test_separated_experts_draw_the_same_tokens() -> None:
    model = tiny_model(experts=Experts(num_experts=4, top_k=2, intermediate_size=24, capacity_factor=4.0))
    one, many = (
        replace(generation_of(model, placement, num_decoded=7), sampling=HOT)
        for placement in (static(model, 1), separated(model, 2, 2))
    )
    assert replayed(one).measurement.generated == replayed(many).measurement.generated


def test_another_seed_draws_other_tokens_and_the_same_seed_the_same() -> None:
    generation = replace(generation_of(MODEL, static(MODEL, 2), num_decoded=7), sampling=HOT)
    again = replayed(generation).measurement.generated
    assert replayed(generation).measurement.generated == again
    assert replayed(replace(generation, sampling=replace(HOT, seed=4))).measurement.generated != again


def test_tokens_come_as_often_as_their_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    sampling = Sampling(temperature=0.5, seed=1)
    tokens = sample(logits.expand(20_000, 4), sampling, draws(sampling, ((0, i) for i in range(20_000)), CPU))
    shares = torch.bincount(tokens, minlength=4) / 20_000
    # e^(2x) over their sum; 20,000 draws: σ ≤ sqrt(0.25/20,000) = 0.0035, four of them
    assert torch.allclose(shares.double(), torch.softmax(2 * logits[0].double(), 0), atol=0.014)


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]]))
    numbers = torch.arange(0, 1, 0.01, dtype=torch.float64).unsqueeze(1)
    rows = logits.expand(len(numbers), 4)

    def drawn_set(**options: float) -> set[int]:
        return set(sample(rows, Sampling(temperature=1.0, **options), numbers).tolist())  # type: ignore[arg-type]

    assert drawn_set() == {0, 1, 2, 3}
    assert drawn_set(top_k=2) == {1, 2}
    assert drawn_set(top_p=0.65) == {1, 2}  # 0.4 does not reach 0.65, with 0.3 it does
    assert drawn_set(top_p=0.75) == {1, 2, 3}
    assert drawn_set(top_k=1, top_p=0.99) == {1}
    assert drawn_set(top_p=1e-9) == {1}  # the likeliest always stays


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_drawn_number_is_in_the_unit_interval(seed: int, sequence: int, position: int) -> None:
    assert 0 <= drawn(seed, sequence, position) < 1


def test_every_row_knows_its_sequence_and_position() -> None:
    program = generation_of(MODEL, static(MODEL, 1, micro_batches=2), num_decoded=1).programs[1]
    samples = [op for op in program.ranks[0] if isinstance(op, p.Sample)]
    # prompts of 9, 9, 17 and 6 tokens; the first decode step computes position n and chooses token n + 1
    assert [place for op in samples for place in next_places(op)] == [(0, 10), (1, 10), (2, 18), (3, 7)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is not in"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": -1}, "top_k -1 is negative"),
        ({"top_p": 0.0}, "top_p 0.0 is not in"),
        ({"top_p": 1.5}, "top_p 1.5 is not in"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Sampling(**options)  # type: ignore[arg-type]
