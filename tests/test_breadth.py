"""Every family of the lattice takes part in the search: bounded below its simulation, and chosen where it is best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from planner.bounds.bound import step_bound
from planner.candidate import Dealing, Scheme, Table
from planner.evaluate import Evaluated, lacking, memory_of, try_evaluate
from planner.make import make_problem
from planner.problem import Problem
from planner.search import race, score_factor
from planner.space import Question, enumerate_space, name_of, placement_of
from planner.verification.verify import verify
from simulator.errors import InfeasibleError
from tests.instances import random_problem
from tests.reliability.scale import of

SEEDS = range(1000, 1000 + of(60, 250))  # in full with the 56 of test_search more than 300 instances
EACH = 1  # candidates of a family in an instance, so that all can be simulated


def families(table: Table) -> dict[str, npt.NDArray[np.bool_]]:
    scheme, even = table["scheme"], table["dealing"] == Dealing.EVEN
    return {
        "static": (scheme == Scheme.STATIC) & even,
        "context": (scheme == Scheme.CONTEXT) & (table["ring"] == 0) & even,
        "ring": (table["ring"] == 1) & even,
        "pool": (scheme == Scheme.POOL) & even,
        "joined": (scheme == Scheme.JOINED) & even,
        "separated": (scheme == Scheme.SEPARATED) & even,
        "two-level": scheme == Scheme.TWO_LEVEL,
        "dealt": ~even,
    }


def instance(seed: int) -> tuple[Problem, Question]:
    """Every second one prefills; the documents' form of two-level is allowed in every third."""
    problem = random_problem(seed)
    question = problem.question("prefill" if seed % 2 else "decode", problem.workload.buckets[0])
    return problem, replace(question, model_changing=seed % 3 == 0)


def some_of_each(seed: int, table: Table) -> npt.NDArray[np.bool_]:
    random, mask = np.random.default_rng(seed), np.zeros(len(table), dtype=np.bool_)
    for chosen in families(table).values():
        rows = np.flatnonzero(chosen)
        mask[random.choice(rows, min(EACH, len(rows)), replace=False)] = True
    mask[0] = True
    return mask


@pytest.mark.parametrize("seed", SEEDS)
def test_choice_equals_brute_force_over_every_family(seed: int) -> None:
    problem, question = instance(seed)
    table = enumerate_space(question)
    mask = some_of_each(seed, table)
    bounds, factor = step_bound(question, table[mask], problem.rates), score_factor(problem, question, table[mask])
    best: list[tuple[float, int, int, str]] = []
    for row, candidate in enumerate(table[mask]):
        result = try_evaluate(problem, question, placement_of(question, candidate), None)
        if isinstance(result, Evaluated):
            assert bounds[row] <= result.step_s * (1 + 1e-9), name_of(candidate)
            if lacking(memory_of(problem, [result.program])) is None:
                best.append((result.step_s * float(factor[row]), result.num_gpus, row, name_of(candidate)))
    if not best:
        with pytest.raises(InfeasibleError):
            race(problem, question, rows=mask)
        return
    found = race(problem, question, rows=mask)
    winner, (score, gpus, _, name) = found.simulated[found.ranking()[0].row], min(best)
    assert found.gap == 0
    assert found.ranking()[0].score == pytest.approx(score, rel=1e-12)
    assert (winner.num_gpus, winner.placement.name) == (gpus, name)


def test_the_instances_hold_every_family_and_mixed_clusters() -> None:
    seen, mixed = dict.fromkeys(families(np.zeros(0, dtype=enumerate_space(instance(1000)[1]).dtype)), 0), 0
    for seed in range(1000, 1120):
        _, question = instance(seed)
        mixed += question.mixed
        for name, chosen in families(enumerate_space(question)).items():
            seen[name] += bool(chosen.any())
    assert mixed >= 25
    assert min(seen.values()) >= 10, seen


@pytest.mark.parametrize("seed", range(of(8, 24)))
def test_the_verifier_accepts_what_is_made_of_any_instance(seed: int) -> None:
    problem = random_problem(seed)
    allocation = make_problem(problem, limit=2)
    inputs = {"model": problem.model, "cluster": problem.cluster, "workload": problem.workload}
    assert verify(allocation, profiles=problem.profiles, **inputs) == ()  # type: ignore[arg-type]
