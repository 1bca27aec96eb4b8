"""Steps: one simulated step for the Timeline and Topology pages, chosen by widgets bound to the address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import streamlit as st

from app.inputs import choose, slide
from app.nearby import stamp
from app.question import Words, problem_of, step_parts, step_words
from planner.evaluate import Evaluated, memory_of, tag_of
from planner.exploring.whatif import LENGTHS, Where, canonical, default_base, program_of
from planner.rivals import rule_placement
from simulator.allocation import RankBytes
from simulator.errors import InfeasibleError
from simulator.placement import Placement
from simulator.profile import Tag
from simulator.simulation.engine import simulate
from simulator.simulation.timeline import Timeline
from simulator.workload import Phase

RULE = "documents' rule"
BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Chosen:
    """A step as the page asks for it; ``words``: its model, cluster and profile."""

    words: Words
    phase: Phase
    tokens: int
    batch: int
    pool: int
    scheme: str


@dataclass(frozen=True)
class Simulated:
    """A step with everything the pages draw."""

    where: Where
    placement: Placement
    timeline: Timeline
    memory: tuple[RankBytes, ...]
    tag: Tag


def choose_step() -> Chosen:
    """What the widgets say."""
    first = st.columns(3)
    with first[0]:
        words = step_words()
    words = step_parts(words)
    with first[1]:
        phase = cast(Phase, choose("phase", "Phase", ("prefill", "decode"), "prefill"))
    problem = problem_of(words)
    where = Where(problem, phase, default_base(problem))
    second = st.columns(3)
    with second[0]:
        tokens = slide("tokens", "Prompt tokens", LENGTHS, 16384)
    with second[1]:
        batch = slide("batch", "Sequences a step", BATCHES, 1 if phase == "prefill" else 32)
    with second[2]:
        pool = _pool(where)
    names = (*canonical(where, where.question(tokens, batch, pool)), RULE)
    preferred = next((name for name in ("FA Pool", "MA Separation") if name in names), names[0])
    with first[2]:
        scheme = choose("scheme", "Scheme", names, preferred)
    return Chosen(words, phase, tokens, batch, pool, scheme)


def _pool(where: Where) -> int:
    """A slider where there is something to slide."""
    if len(where.pools) > 1:
        return slide("pool", "Pool GPUs", where.pools, where.pools[len(where.pools) // 2])
    st.caption("Pool GPUs: none beside the base")
    return 0


@st.cache_resource(max_entries=12, show_spinner="Simulating this step …")
def simulated(chosen: Chosen, changed: tuple[int, ...]) -> Simulated:
    """Lowered and simulated once, link loads recorded; again when ``changed``, the age of its files, does."""
    problem = problem_of(chosen.words)
    where = Where(problem, chosen.phase, default_base(problem))
    question = where.question(chosen.tokens, chosen.batch, chosen.pool)
    if chosen.scheme == RULE:
        placement = rule_of(where, chosen.tokens, chosen.batch)
    else:
        placement = canonical(where, question)[chosen.scheme]
    program = program_of(problem, question, placement)
    timeline = simulate(program, problem.cluster, problem.profiles, record_load=True)
    found = Evaluated(
        placement, program, timeline, len(placement.ranks), len(placement.pool_ranks), timeline.duration_s
    )
    return Simulated(where, placement, timeline, memory_of(problem, [program]), tag_of(problem, found))


def step_of(chosen: Chosen) -> Simulated:
    return simulated(chosen, stamp(chosen.words))


def rule_of(where: Where, tokens: int, batch: int) -> Placement:
    """The documents' fixed rule on the whole cluster; InfeasibleError where it asks for more."""
    most = where.problem.limits.max_gpus - where.base_gpus
    placement = rule_placement(where.question(tokens, batch, most))
    if isinstance(placement, str):
        raise InfeasibleError(placement)
    return placement


def role_of(placement: Placement, rank: int) -> str:
    """What a GPU does."""
    feeds = any(rank in stage.feed_forward_ranks for stage in placement.stages)
    attends = any(rank in stage.attention_ranks for stage in placement.stages)
    projects = any(stage.projections == "attention" for stage in placement.stages)
    if not feeds and not attends:
        return "unused"
    if projects:
        return "attention" if attends else "experts"
    return "base" if feeds else "pool"
