"""python -m benchmarks.bound_speed

Candidates bounded a CPU second: the whole lattice of the documents' model on 128 A100s, decode at 16K, in one call.
"""

from __future__ import annotations

import time
from dataclasses import replace

from planner.bounds.bound import step_bound
from planner.problem import load_problem
from planner.space import Question, enumerate_space
from simulator import presets


def main() -> None:
    problem = load_problem(presets.scenario("fa-pool"))
    node = problem.cluster.nodes[0].model_copy(update={"count": 16})
    cluster = problem.cluster.model_copy(update={"nodes": (node,)})
    question = Question(problem.model, cluster, "decode", 16384, 64, 128, None, fine=True)
    table = enumerate_space(question)
    for name, rates in (
        ("roofline", replace(problem, cluster=cluster).rates.as_roofline()),
        ("calibrated", replace(problem, cluster=cluster).rates),
    ):
        step_bound(question, table[:100], rates)
        began_s = time.process_time()
        step_bound(question, table, rates)
        spent_s = time.process_time() - began_s
        print(f"{name:10} {len(table):8} candidates {spent_s:6.2f} s {len(table) / spent_s:10.0f} a second")


if __name__ == "__main__":
    main()
