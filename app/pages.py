"""Pages: the explorer's pages, in order, each with the address it opens at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import streamlit as st

from app.inputs import note
from simulator.errors import AttnplanError


@dataclass(frozen=True)
class Page:
    """A page: its title, its address (and module) and icon; imported when first shown."""

    title: str
    address: str
    icon: str

    @property
    def entry(self) -> st.Page:
        return st.Page(
            partial(_show, self.address),
            title=self.title,
            url_path=self.address,
            icon=f":material/{self.icon}:",
            default=self.address == "plan",
        )


def _show(address: str) -> None:
    guarded(import_module(f"app.{address}").show)


def guarded(show: Callable[[], None]) -> None:
    """An error meant for users is a notice with its remedy."""
    try:
        show()
    except AttnplanError as error:
        note(str(error))


PAGES = (
    Page("Plan", "plan", "route"),
    Page("What if", "whatif", "grid_on"),
    Page("Compare", "compare", "compare_arrows"),
    Page("Timeline", "timeline", "view_timeline"),
    Page("Topology", "topology", "hub"),
    Page("Validate", "validate", "rule"),
    Page("Documents", "documents", "description"),
)
