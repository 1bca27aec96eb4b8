"""Stopping: long work that the user stopped stays stopped until the user says to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st


def may_go_on(stopped: str, *, words: str, button: str, key: str) -> bool:
    """Whether the work of session key ``stopped`` may run; else a notice and a button that lets it."""
    if st.session_state.get(stopped):
        st.info(words, icon=":material/stop_circle:")
        if not st.button(button, icon=":material/play_arrow:", key=key):
            return False
        st.session_state[stopped] = False
    return True


@contextmanager
def stoppable(stopped: str, words: str) -> Iterator[st.delta_generator.DeltaGenerator]:
    """A progress bar, and a button that stops the work of session key ``stopped``; both go once it is done."""
    place = st.empty()
    with place.container():
        bar = st.progress(0.0, words)
        st.button("Stop", key=f"button.{stopped}", icon=":material/stop:", on_click=_stop, args=(stopped,))
        yield bar
    place.empty()


def _stop(stopped: str) -> None:
    st.session_state[stopped] = True
