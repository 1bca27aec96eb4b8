"""Large spaces: closed boxes, thin bounds and efforts change how much is done, never what is found."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner import boxes, frontier, search
from planner.bounds.bound import chunked_bound
from planner.bounds.ring import slowest_borders
from planner.boxes import boxes_of
from planner.effort import effort
from planner.evaluate import try_evaluate
from planner.search import race
from planner.space import Question, Scheme, enumerate_space, name_of, placement_of
from planner.weights_fit import fitting
from simulator.workload import Phase
from tests.instances import random_problem

SEEDS = range(200, 212)
PHASES: tuple[Phase, ...] = ("prefill", "decode")


def names(question: Question, table: np.ndarray) -> list[str]:
    return sorted(name_of(row) for row in fitting(question, table))


@pytest.mark.parametrize("seed", SEEDS)
def test_closed_boxes_and_the_rest_are_the_whole_space_and_no_pool_is_below_its_floor(seed: int) -> None:
    problem = random_problem(seed)
    for phase in PHASES:
        question = problem.question(phase, problem.workload.buckets[0])
        found = boxes_of(question, problem.rates, parts=None, few=0)
        if not found:
            pools = np.isin(enumerate_space(question)["scheme"], (Scheme.POOL, Scheme.JOINED))
            assert question.mixed or not pools.any()
            continue
        opened = [box.open(question) for box in found]
        assert [len(table) for table in opened] == [box.count for box in found]
        rest = enumerate_space(question, pools=False)
        assert names(question, np.concatenate((rest, *opened))) == names(question, enumerate_space(question))
        for box, table in zip(found, opened, strict=True):
            bounds = chunked_bound(question, table, problem.rates)
            assert box.floor_s <= bounds.min() * (1 + 1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_looser_bounds_are_no_higher_than_the_next_tighter(seed: int) -> None:
    problem = random_problem(seed)
    rates = problem.rates
    for phase in PHASES:
        question = problem.question(phase, problem.workload.buckets[0])
        table = enumerate_space(question)
        table = table[table["ring"] == 0]
        steps = [rates.as_roofline().as_thin(), rates.as_thin(), rates.as_solo(), rates]
        found = [chunked_bound(question, table, one) for one in steps]
        for loose, tight in pairwise(found):
            above = np.flatnonzero(loose > tight * (1 + 1e-9))
            assert not len(above), [name_of(row) for row in table[above[:3]]]


@pytest.mark.parametrize("seed", [*SEEDS, 31])
def test_no_bound_of_a_ring_is_above_its_simulation_however_loose(seed: int) -> None:
    """A thin one knows the first replica and the last, the tight one all of the last: neither is always the higher."""
    problem = random_problem(seed)
    question = problem.question("prefill", problem.workload.buckets[0])
    table = enumerate_space(question)
    rings = table[table["ring"] == 1][::5]
    for step in (problem.rates.as_roofline().as_thin(), problem.rates.as_thin(), problem.rates.as_solo()):
        for candidate, bound in zip(rings, chunked_bound(question, rings, step), strict=True):
            found = try_evaluate(problem, question, placement_of(question, candidate), None)
            assert isinstance(found, str) or bound <= found.step_s * (1 + 1e-9), name_of(candidate)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_slowest_border_of_a_ring_is_that_of_all_its_replicas_looked_at_one_by_one(seed: int) -> None:
    problem = random_problem(seed)
    question, topology = problem.question("prefill", problem.workload.buckets[0]), problem.rates.topology
    nodes = question.nodes
    for order, ranks in enumerate(question.orders):
        for tensor in (1, 2, 4):
            most = len(ranks) // tensor
            found = slowest_borders(question, problem.rates, order, tensor, most) if most else []
            for replicas in range(1, most + 1):
                groups = [ranks[place * tensor : (place + 1) * tensor] for place in range(replicas)]
                away = [
                    {topology.nic_of(rank).into for rank in mine}
                    for before, mine in zip((groups[-1], *groups), groups, strict=False)
                    if all(nodes[a] != nodes[b] for a, b in zip(mine, before, strict=True))
                ]
                rates = [sum(topology.resources[link].bandwidth_bytes_per_s for link in links) for links in away]
                assert found[replicas] == min(rates, default=np.inf)


@pytest.mark.parametrize("seed", range(200, 206))
def test_lazy_bounds_and_boxes_find_what_all_bounds_at_once_find(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(seed)
    question = problem.question("decode", problem.workload.buckets[0])
    plain = race(problem, question)
    monkeypatch.setattr(search, "boxes_of", lambda *args, **options: boxes.boxes_of(*args, **options, few=0))
    monkeypatch.setattr(frontier, "PRICED_CELLS", 0)
    lazy = race(problem, question)
    (one, other), gaps = ((found.simulated[found.ranking()[0].row] for found in (plain, lazy)), (plain.gap, lazy.gap))
    assert gaps == (0, 0)
    assert one.step_s == other.step_s
    assert one.num_gpus == other.num_gpus
    assert len(lazy.frontier) == len(plain.frontier)


def test_more_replicas_that_prefill_are_more_effort_and_a_small_step_is_one_simulation() -> None:
    problem = random_problem(1)
    question = replace(problem.question("prefill", problem.workload.buckets[0]), max_gpus=256)
    table = np.repeat(enumerate_space(question)[:1], 3)
    table["scheme"], table["tensor"], table["heads"] = Scheme.CONTEXT, 1, 1
    table["replicas"] = table["queries"] = [2, 64, 256]
    efforts = effort(question, table)
    assert efforts[0] == 1
    assert efforts[0] < efforts[1] < efforts[2]


def test_where_one_simulation_is_beyond_the_limit_the_cheapest_is_tried_and_the_gap_stated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = random_problem(3)
    question = problem.question("decode", problem.workload.buckets[0])
    exact = race(problem, question)
    monkeypatch.setattr(frontier, "effort", lambda question, table: np.full(len(table), 7.0))
    hasty = race(problem, question, limit=2)
    assert hasty.num_simulated == 1
    best = [found.ranking()[0].score for found in (exact, hasty)]
    assert best[1] * (1 - hasty.gap) <= best[0] * (1 + 1e-9)
