"""Inputs: widgets bound to the address, so that every view is a link; a value in the address that cannot be used is
named on the page instead of silently becoming the default."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, TypeVar

import streamlit as st

from planner.cli import parser
from planner.commands.make import command_of, scenario_of
from planner.problem import Problem, load_problem
from simulator import presets, profile
from simulator.errors import AttnplanError, SpecError

T = TypeVar("T")
SHOWN = 60
AS_SCENARIO = "as in the scenario"
OBJECTIVES = {
    "ttft": "shortest time to first token",
    "tpot": "shortest time an output token",
    "tps": "most tokens/s",
    "tps_per_gpu": "most tokens/s a GPU",
    "cost": "fewest GPU-seconds a token",
}
OPTIONS = ("model", "cluster", "workload", "profile", "objective", "max_gpus", "base_gpus", "ttft_slo", "tpot_slo")


def note(text: str, icon: str = "error") -> None:
    """A notice in plain text: nothing in it is read as markup."""
    for sign in "\\`*_[]<>$:~#|{}":
        text = text.replace(sign, "\\" + sign)
    st.warning(text, icon=f":material/{icon}:")


def quoted(value: str) -> str:
    """A value from outside, short and on one line."""
    return repr(value if len(value) <= SHOWN else value[: SHOWN - 1] + "…")


def from_address(key: str, options: Sequence[object], default: object) -> None:
    """Remember, before the widget replaces it, a value in the address that is not among ``options``."""
    raw = st.query_params.get_all(key)
    if raw and (len(raw) > 1 or raw[0] not in {str(option) for option in options}):
        shown = ", ".join(quoted(value) for value in raw[:3])
        known = ", ".join(str(option) for option in options[:12])
        st.session_state[f"refused.{key}"] = (
            f"{key}={shown} in the address is not known; showing {default}. Known: {known}"
        )
    refused = st.session_state.get(f"refused.{key}")
    if refused:
        note(refused, "link_off")


def accept(key: str) -> None:
    """The user has chosen: the address is right again."""
    st.session_state.pop(f"refused.{key}", None)


def choose(key: str, label: str, options: Sequence[T], default: T, **more: Any) -> T:
    """A select box bound to the address. No format_func: it would be the formatted word that the address holds."""
    from_address(key, options, default)
    index = list(options).index(default)
    found: T = st.selectbox(
        label, options, index=index, key=key, bind="query-params", on_change=accept, args=(key,), **more
    )
    return found


def slide(key: str, label: str, options: Sequence[T], default: T, **more: Any) -> T:
    """A slider over given values, bound to the address."""
    from_address(key, options, default)
    found: T = st.select_slider(
        label, options, value=default, key=key, bind="query-params", on_change=accept, args=(key,), **more
    )
    return found


def write(key: str, label: str, **more: Any) -> str:
    """A text box bound to the address: what cannot be parsed stays in the box, with a notice."""
    value: str = st.text_input(label, key=key, bind="query-params", max_chars=400, **more)
    return value.strip()


def question_words() -> list[str]:
    """The inputs of a planning question as ``plan make`` options: the scenario, and what differs from it."""
    scenario = choose("scenario", "Scenario", presets.names("scenarios"), "fa-pool")
    words = [scenario]
    with st.expander("Change model, cluster, workload, objective, limits", icon=":material/tune:"):
        columns = st.columns(2)
        kinds = {
            "model": presets.names("models"),
            "cluster": presets.names("clusters"),
            "workload": presets.names("workloads"),
            "profile": profile.preset_names(),
        }
        for index, (name, known) in enumerate(kinds.items()):
            with columns[index % 2]:
                words += _override(name, choose(name, name.capitalize(), (AS_SCENARIO, *known), AS_SCENARIO))
        with columns[0]:
            meanings = "; ".join(f"{name}: {meaning}" for name, meaning in OBJECTIVES.items())
            objective = choose("objective", "Objective", (AS_SCENARIO, *OBJECTIVES), AS_SCENARIO, help=meanings)
            words += _override("objective", objective)
        words += _limits(columns)
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
def canonical_command(words: tuple[str, ...]) -> str:
    """The ``plan make`` line with every part spelled out; SpecError where options contradict each other."""
    arguments = parser().parse_args(["make", *words])
    try:
        return command_of(scenario_of(arguments), arguments)
    except ValueError as error:
        if isinstance(error, AttnplanError):
            raise
        raise SpecError(" ".join(str(error).split()[:40])) from error


@st.cache_resource(max_entries=16, show_spinner=False)
def problem_of(words: tuple[str, ...]) -> Problem:
    """The question, loaded."""
    arguments = parser().parse_args(["make", *words])
    return load_problem(scenario_of(arguments), ttft_slo_s=arguments.ttft_slo, tpot_slo_s=arguments.tpot_slo)


def preset_words(text: str) -> tuple[str, ...]:
    """``fa-pool --objective tpot`` as ``plan make`` options, presets only; SpecError names the first wrong word."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SpecError(f"{quoted(text)}: {error}") from error
    words = words[2:] if words[:2] == ["plan", "make"] else words
    known: dict[str, Sequence[str]] = {
        "model": presets.names("models"),
        "cluster": presets.names("clusters"),
        "workload": presets.names("workloads"),
        "profile": profile.preset_names(),
        "objective": tuple(OBJECTIVES),
    }
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
