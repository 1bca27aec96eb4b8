"""Inputs: widgets bound to the address, so that every view is a link; a value in the address that cannot be used is
named on the page instead of silently becoming the default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import streamlit as st

T = TypeVar("T")
SHOWN = 60


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


def switch(key: str, label: str, **more: Any) -> bool:
    """An on/off switch bound to the address."""
    from_address(key, ("true", "false"), "false")
    found: bool = st.toggle(label, key=key, bind="query-params", on_change=accept, args=(key,), **more)
    return found


def choose_many(key: str, label: str, options: Sequence[T], default: Sequence[T], version: str) -> list[T]:
    """Several of ``options``, bound to the address. A new ``version`` (other options) starts from its default; values
    of the address that are not among the options are named."""
    given = st.query_params.get_all(key)
    known = {str(option) for option in options}
    wrong = [value for value in given if value not in known]
    seen = st.session_state.get(f"version.{key}")
    if seen is not None and seen != version:
        st.session_state[key] = list(default)
    elif wrong and key not in st.session_state:
        shown = ", ".join(quoted(value) for value in wrong[:3])
        note(f"{key}={shown} in the address is not known; known: {options[0]} to {options[-1]}", "link_off")
        st.session_state[key] = [option for option in options if str(option) in given] or list(default)
    elif key not in st.session_state and not given:
        st.session_state[key] = list(default)
    st.session_state[f"version.{key}"] = version
    found: list[T] = st.multiselect(label, options, key=key, bind="query-params")
    return found
