"""Question: the inputs of a planning question as ``plan make`` options, from presets and files nearby."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app.inputs import choose, quoted, write
from app.nearby import nearby, stamp
from planner.cli import OBJECTIVES, parser
from planner.commands.make import command_of, scenario_of
from planner.problem import Problem, load_problem
from simulator import presets, profile
from simulator.errors import AttnplanError, SpecError
from simulator.scenario import Scenario

AS_SCENARIO = "as in the scenario"
OPTIONS = ("model", "cluster", "workload", "profile", "objective", "max_gpus", "base_gpus", "ttft_slo", "tpot_slo")
PARTS = ("model", "cluster", "workload", "profile")
STEP_PARTS = ("model", "cluster", "profile")
"""What matters where a page looks at one step: its length and batch are inputs of their own."""
Words = tuple[str, ...]


def known_parts(name: str) -> tuple[str, ...]:
    """Presets of a part, then files nearby."""
    match name:
        case "model":
            return presets.names("models") + tuple(nearby("model"))
        case "cluster":
            return presets.names("clusters") + tuple(nearby("cluster"))
        case "workload":
            return presets.names("workloads") + tuple(nearby("workload"))
        case _:
            return profile.preset_names() + tuple(nearby("profile"))


def question_words() -> Words:
    """Scenario, parts, objective and limits: everything that ``plan make`` takes."""
    scenario = choose("scenario", "Scenario", presets.names("scenarios"), "fa-pool")
    words = [scenario]
    with _changes("Change model, cluster, workload, objective, limits", OPTIONS):
        columns = st.columns(2)
        words += _parts(PARTS, columns)
        with columns[0]:
            meanings = "; ".join(f"{name}: {meaning}" for name, meaning in OBJECTIVES.items())
            objective = choose("objective", "Objective", (AS_SCENARIO, *OBJECTIVES), AS_SCENARIO, help=meanings)
            words += _override("objective", objective)
        words += _limits(columns)
    return fitting(tuple(words))


def step_words() -> Words:
    """The scenario, for a page about one step; ``step_parts`` lays the rest over it."""
    return (choose("scenario", "Scenario", presets.names("scenarios"), "fa-pool"),)


def step_parts(scenario: Words) -> Words:
    """With the model, cluster and profile that a page about one step takes beside its scenario."""
    with _changes("Change model, cluster, profile", STEP_PARTS):
        return fitting((*scenario, *_parts(STEP_PARTS, st.columns(3))))


def fitting(words: Words) -> Words:
    """Where a cluster was chosen that has fewer GPUs than the scenario's limits: those that it has."""
    chosen = dict(zip(words[1::2], words[2::2], strict=True))
    if "--cluster" not in chosen:
        return words
    ranks, scenario = presets.cluster(chosen["--cluster"]).num_ranks, presets.scenario(words[0])
    for option, limit in (("--max-gpus", scenario.max_gpus), ("--base-gpus", scenario.base_gpus)):
        if option not in chosen and (limit or 0) > ranks:
            words += (option, str(ranks))
    return words


def _changes(label: str, keys: Sequence[str]) -> Any:
    """Folded, unless the address changes something in it."""
    return st.expander(label, icon=":material/tune:", expanded=any(key in st.query_params for key in keys))


def _parts(names: Sequence[str], columns: Sequence[Any]) -> list[str]:
    words = []
    for index, name in enumerate(names):
        with columns[index % len(columns)]:
            words += _override(name, choose(name, name.capitalize(), (AS_SCENARIO, *known_parts(name)), AS_SCENARIO))
    return words


def _override(name: str, value: str) -> list[str]:
    return [] if value == AS_SCENARIO else [f"--{name}", value]


def _limits(columns: Sequence[Any]) -> list[str]:
    """Numbers as text: an empty box is no limit."""
    boxes = (
        ("max_gpus", "At most this many GPUs", "all", 1),
        ("base_gpus", "Base GPUs of FA Pool", "planner chooses", 0),
        ("ttft_slo", "Time to first token at most (s)", "no limit", 1),
        ("tpot_slo", "Time an output token at most (s)", "no limit", 0),
    )
    words = []
    for key, label, empty, column in boxes:
        with columns[column]:
            value = write(key, label, placeholder=f"{AS_SCENARIO}, else {empty}")
        if value:
            words += [f"--{key.replace('_', '-')}", number(key, value)]
    return words


def number(key: str, value: str) -> str:
    """A positive finite number as written, or SpecError: the box keeps what was typed."""
    whole = key.endswith("gpus")
    try:
        parsed = int(value) if whole else float(value)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise SpecError(f"{key}={quoted(value)} is not {kind}; change it or empty the box") from None
    if not 0 < parsed < 1e9:
        raise SpecError(f"{key}={quoted(value)} must be above 0 and below 1e9; change it or empty the box")
    return str(parsed)


@st.cache_resource(max_entries=64, show_spinner=False)
def canonical_command(words: Words) -> str:
    """The ``plan make`` line with every part spelled out; SpecError where options contradict each other."""
    arguments = parser().parse_args(["make", *words])
    try:
        return command_of(_scenario(arguments), arguments)
    except ValueError as error:
        if isinstance(error, AttnplanError):
            raise
        raise SpecError(" ".join(str(error).split()[:40])) from error


def problem_of(words: Words) -> Problem:
    """The question, loaded; again when one of its files has changed."""
    return _problem(words, stamp(words))


@st.cache_resource(max_entries=16, show_spinner=False)
def _problem(words: Words, changed: tuple[int, ...]) -> Problem:
    """``changed`` is part of what it is kept by."""
    arguments = parser().parse_args(["make", *words])
    return load_problem(_scenario(arguments), ttft_slo_s=arguments.ttft_slo, tpot_slo_s=arguments.tpot_slo)


def _scenario(arguments: argparse.Namespace) -> Scenario:
    """SpecError with the way to a profile where the scenario's is made on the user's machine."""
    scenario = scenario_of(arguments)
    if scenario.profile not in known_parts("profile"):
        raise SpecError(
            f"scenario {scenario.name} needs a profile of this machine, {scenario.profile}: run plan calibrate "
            "--device cpu -o out/local-profile.json where plan app was started, then choose that profile"
        )
    return scenario


def preset_words(text: str) -> Words:
    """``fa-pool --objective tpot`` as ``plan make`` options: presets and files nearby, no other path; SpecError names
    the first wrong word."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SpecError(f"{quoted(text)}: {error}") from error
    words = words[2:] if words[:2] == ["plan", "make"] else words
    known = {name: known_parts(name) for name in PARTS} | {"objective": tuple(OBJECTIVES)}
    found = []
    if words and not words[0].startswith("-"):
        found.append(_among("scenario", words[0], presets.names("scenarios")))
        words = words[1:]
    if len(words) % 2:
        raise SpecError(f"{quoted(words[-1])}: an option and its value go together; options: {_options()}")
    for option, value in zip(words[::2], words[1::2], strict=True):
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in OPTIONS:
            raise SpecError(f"{quoted(option)} is not an option; options: {_options()}")
        found += [option, _among(name, value, known[name]) if name in known else number(name, value)]
    return tuple(found)


def _among(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise SpecError(f"{name} {quoted(value)} is not known; known: {', '.join(known)}")
    return value


def _options() -> str:
    return ", ".join("--" + name.replace("_", "-") for name in OPTIONS)
