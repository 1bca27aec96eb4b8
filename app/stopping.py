"""Stopping: long work that the user stopped stays stopped until the user says to go on."""

from __future__ import annotations

import streamlit as st


def may_go_on(stopped: str, *, words: str, button: str, key: str) -> bool:
    """Whether the work of session key ``stopped`` may run; else a notice and a button that lets it."""
    if st.session_state.get(stopped):
        st.info(words, icon=":material/stop_circle:")
        if not st.button(button, icon=":material/play_arrow:", key=key):
            return False
        st.session_state[stopped] = False
    return True
