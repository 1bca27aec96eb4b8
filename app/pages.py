"""Pages: the explorer's pages, in order, each with the address it opens at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import streamlit as st

from app import compare, documents, plan, timeline, topology, validate, whatif
from app.inputs import note
from simulator.errors import AttnplanError


@dataclass(frozen=True)
class Page:
    """A page: its title, address, icon and function."""

    title: str
    address: str
    icon: str
    show: Callable[[], None]

    @property
    def entry(self) -> st.Page:
        return st.Page(
            partial(guarded, self.show),
            title=self.title,
            url_path=self.address,
            icon=f":material/{self.icon}:",
            default=self.address == "plan",
        )


def guarded(show: Callable[[], None]) -> None:
    """An error meant for users is a notice with its remedy."""
    try:
        show()
    except AttnplanError as error:
        note(str(error))


PAGES = (
    Page("Plan", "plan", "route", plan.show),
    Page("What if", "whatif", "grid_on", whatif.show),
    Page("Compare", "compare", "compare_arrows", compare.show),
    Page("Timeline", "timeline", "view_timeline", timeline.show),
    Page("Topology", "topology", "hub", topology.show),
    Page("Validate", "validate", "rule", validate.show),
    Page("Documents", "documents", "description", documents.show),
)
