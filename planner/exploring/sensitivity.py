"""Sensitivity: how one placement's step time moves when one thing changes by ±20 %, everything else held.

Each change is simulated, not extrapolated. Speeds are changed, so +20 % of a speed divides its times by 1.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planner.exploring.whatif import Progress, program_of, scaled
from planner.problem import Problem
from planner.space import Question
from simulator import program as p
from simulator.cluster import Cluster
from simulator.costs.collective_cost import InNode
from simulator.costs.pricing import as_measured, measured_collectives, price
from simulator.placement import Placement
from simulator.simulation.engine import World, run

CHANGE = 0.2
FACTORS = (
    "prompt length", "batch", "matrix multiplication speed", "attention speed", "other kernels' speed",
    "NVLink and in-node collectives", "NIC bandwidth", "network latency",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Step seconds with one factor 20 % lower and 20 % higher; the changes really made (a batch is whole sequences)."""

    factor: str
    low_s: float
    high_s: float
    low_change: float = -CHANGE
    high_change: float = CHANGE

    @property
    def swing_s(self) -> float:
        return max(self.low_s, self.high_s) - min(self.low_s, self.high_s)


def sensitivities(
    problem: Problem, question: Question, placement: Placement, progress: Progress = lambda done, total: None
) -> tuple[float, tuple[Sensitivity, ...]]:
    """(step seconds as it is, every factor's two times, largest swing first). ``progress`` may raise to stop."""
    total = 2 * len(FACTORS) + 1
    found = [_seconds(problem, question, placement, "", 1.0)]
    for factor in FACTORS:
        for scale in (1 - CHANGE, 1 + CHANGE):
            progress(len(found), total)
            found.append(_seconds(problem, question, placement, factor, scale))
    progress(total, total)
    rows = [Sensitivity(name, *found[1 + 2 * index : 3 + 2 * index]) for index, name in enumerate(FACTORS)]
    made = [_changed_batch(question.batch, scale) / question.batch - 1 for scale in (1 - CHANGE, 1 + CHANGE)]
    at = FACTORS.index("batch")
    rows[at] = replace(rows[at], low_change=made[0], high_change=made[1])
    return found[0], tuple(sorted(rows, key=lambda row: -row.swing_s))


def _seconds(problem: Problem, question: Question, placement: Placement, factor: str, scale: float) -> float:
    if factor == "prompt length":
        question = replace(question, tokens=max(round(question.tokens * scale), 1))
    if factor == "batch":
        question = replace(question, batch=_changed_batch(question.batch, scale))
    program = program_of(problem, question, placement)
    prices = price(program, problem.cluster, problem.profiles, predicted=problem.predicted)
    faster = _speeds(factor, scale)
    durations = [
        seconds * np.array([1 / faster(operation) for operation in operations])
        for seconds, operations in zip(prices.durations_s, program.ranks, strict=True)
    ]
    links = _links(as_measured(problem.cluster, problem.profiles), factor, scale)
    collectives = measured_collectives(problem.profiles)
    if factor == "NVLink and in-node collectives":
        collectives = _scaled(collectives, scale)
    hosts = {name: profile.host for name, profile in problem.profiles.items() if profile.host is not None}
    world = World(in_node=collectives, hosts=hosts, moved_bytes=prices.moved_bytes, launch_s=prices.launch_s)
    return run(program, links, durations, world).duration_s


def _changed_batch(batch: int, scale: float) -> int:
    """At least one sequence more or fewer, and never none."""
    return max(min(round(batch * scale), batch - 1) if scale < 1 else max(round(batch * scale), batch + 1), 1)


def _speeds(factor: str, scale: float) -> Callable[[p.Operation], float]:
    """An operation's speed, relative to what its profile says."""

    def speed(operation: p.Operation) -> float:
        match operation:
            case p.Linear() | p.Experts():
                kind = "matrix multiplication speed"
            case p.Attention():
                kind = "attention speed"
            case _:
                kind = "other kernels' speed"
        return scale if kind == factor else 1.0

    return speed


def _links(cluster: Cluster, factor: str, scale: float) -> Cluster:
    match factor:
        case "NIC bandwidth":
            return scaled(cluster, scale)
        case "network latency":
            nodes = tuple(
                node
                if node.nics is None
                else node.model_copy(
                    update={"nics": node.nics.model_copy(update={"latency_s": node.nics.latency_s * scale})}
                )
                for node in cluster.nodes
            )
            fabric = cluster.fabric.model_copy(update={"latency_s": cluster.fabric.latency_s * scale})
            return cluster.model_copy(update={"nodes": nodes, "fabric": fabric})
        case "NVLink and in-node collectives":
            nodes = tuple(
                node.model_copy(
                    update={
                        "link": node.link.model_copy(
                            update={"bandwidth_bytes_per_s": node.link.bandwidth_bytes_per_s * scale}
                        )
                    }
                )
                for node in cluster.nodes
            )
            return cluster.model_copy(update={"nodes": nodes})
        case _:
            return cluster


def _scaled(collectives: InNode, scale: float) -> InNode:
    def seconds(gpu: str, kind: str, num_bytes: float, gpus: int) -> float | None:
        found = collectives(gpu, kind, num_bytes, gpus)
        return None if found is None else found / scale

    return seconds
