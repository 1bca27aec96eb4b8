"""Every objective: the search's choice is the best of all candidates by hand, and ``plan make`` writes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.cli import OBJECTIVES, main
from planner.evaluate import Evaluated, lacking, memory_of, try_evaluate
from planner.problem import Problem
from planner.search import race
from planner.space import Question, enumerate_space, placement_of
from simulator.formats.files import to_json, to_yaml
from simulator.power import power_w, rank_power_w
from simulator.presets import cluster as load_cluster
from simulator.scenario import Objective
from tests.instances import profiles, random_problem

WATTS = {"A100-SXM4-80GB": 400.0, "A100-B": 90.0}  # so unlike that fewer GPUs are not always less energy
MIXED, MOST = 38, 16


def powered(problem: Problem) -> Problem:
    """With a stated limit of every GPU."""
    gpus = tuple(gpu.model_copy(update={"power_w": WATTS[gpu.name]}) for gpu in problem.cluster.gpus)
    return replace(problem, cluster=problem.cluster.model_copy(update={"gpus": gpus}))


def by_hand(problem: Problem, question: Question, found: Evaluated) -> float:
    """The objective from the step, its tokens, and each GPU held; lower is better."""
    tokens = question.batch * (question.tokens if question.phase == "prefill" else 1)
    nodes = [node.gpu for node in problem.cluster.nodes for _ in range(node.count * node.gpus)]
    watts = sum(WATTS[nodes[rank]] for rank in found.placement.ranks)
    return {
        "ttft": found.step_s,
        "tpot": found.step_s,
        "tps": 1 / (tokens / found.step_s),
        "tps_per_gpu": 1 / (tokens / found.step_s / found.num_gpus),
        "cost": found.num_gpus * found.step_s / 3600 / (tokens / 1e6),  # GPU-hours a million tokens
        "joule": watts * found.step_s / tokens,
    }[problem.objective]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_choice_is_the_best_of_all_candidates_in_every_objective(objective: Objective) -> None:
    for seed in (7, MIXED):
        problem = replace(powered(random_problem(seed)), objective=objective)
        question = replace(problem.question("decode", problem.workload.buckets[0]), cluster=problem.cluster)
        table = enumerate_space(question)
        rows = np.isin(np.arange(len(table)), np.linspace(0, len(table) - 1, MOST, dtype=np.int64))
        scores = []
        for candidate in table[rows]:
            one = try_evaluate(problem, question, placement_of(question, candidate), None)
            if isinstance(one, Evaluated) and lacking(memory_of(problem, [one.program])) is None:
                scores.append(by_hand(problem, question, one))
        found = race(problem, question, rows=rows)
        winner = found.simulated[found.ranking()[0].row]
        assert found.gap == 0
        assert by_hand(problem, question, winner) == pytest.approx(min(scores), rel=1e-12)


def test_the_mixed_instance_has_gpus_of_two_kinds() -> None:
    assert len({node.gpu for node in random_problem(MIXED).cluster.nodes}) == 2


def written(problem: Problem, folder: Path) -> list[str]:
    """The problem's parts as files, and the options that name them."""
    words = []
    for name, record in (("model", problem.model), ("cluster", problem.cluster), ("workload", problem.workload)):
        path = folder / f"{name}.yaml"
        path.write_text(to_yaml(record, comment="test"), encoding="utf-8")
        words += [f"--{name}", str(path)]
    return [*words, "--profile", "a100-sxm4-80gb"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_plan_make_writes_an_allocation_of_every_objective_that_verifies(
    objective: Objective, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = powered(random_problem(7))
    path = tmp_path / "allocation.json"
    words = [*written(problem, tmp_path), "--objective", objective, "--simulations", "4", "-o", str(path)]
    assert main(["make", *words]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["objective"] == objective
    assert f"--objective {objective}" in found["command"]
    for choice in found["policy"]:
        metrics, tokens = choice["metrics"], choice["batch"] * (choice["tokens"] if choice["phase"] == "prefill" else 1)
        step_s, gpus = metrics["step_s"]["value"], choice["num_gpus"]
        assert metrics["tokens_per_s_per_gpu"]["value"] == pytest.approx(tokens / step_s / gpus, rel=1e-9)
        assert metrics["joules_per_token"]["value"] == pytest.approx(400.0 * gpus * step_s / tokens, rel=1e-9)
        assert metrics["joules_per_token"]["tag"] == "assumed"
        fastest = {point["num_gpus"]: point["step_s"] for point in choice["pareto"]}
        assert list(fastest.values()) == sorted(fastest.values(), reverse=True)
        assert min(fastest.values()) <= step_s
    assert main(["verify", str(path)]) == 0
    assert main(["explain", str(path)]) == 0
    assert "front " in capsys.readouterr().out


def test_energy_of_a_gpu_whose_limit_nobody_knows_is_refused_in_one_line_and_never_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = random_problem(7)
    gpu = problem.cluster.gpus[0].model_copy(update={"name": "unheard-of"})
    nodes = tuple(node.model_copy(update={"gpu": gpu.name}) for node in problem.cluster.nodes)
    strange = replace(problem, cluster=problem.cluster.model_copy(update={"gpus": (gpu,), "nodes": nodes}))
    out = tmp_path / "allocation.json"
    assert main(["make", *written(strange, tmp_path), "--objective", "joule", "-o", str(out)]) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1
    assert "gpus: unheard-of: no power_w, which energy needs; add its board's limit in watts" in message[0]
    assert not out.exists()


def test_a_stated_limit_goes_before_the_datasheets_and_files_without_one_read_and_write_as_before() -> None:
    gpu = profiles()["A100-SXM4-80GB"].gpu
    assert power_w(gpu) == 400.0
    assert power_w(gpu.model_copy(update={"power_w": 300.0})) == 300.0
    assert "power_w" not in to_json(gpu)
    assert '"power_w": 300.0' in to_json(gpu.model_copy(update={"power_w": 300.0}))
    assert set(rank_power_w(load_cluster("dgx-h100-16"))) == {700.0}
