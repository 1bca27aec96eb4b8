"""The what-if explorer: ``plan app``. Pages call the same functions as the command line; nothing is computed here only.

plan app --port 8501
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # streamlit puts this file's folder there instead

import streamlit as st

from app import style
from app.pages import PAGES

ICON = Path(__file__).parent / "icon.svg"  # a named icon would be fetched from another host


def main() -> None:
    """Navigation, then the page."""
    st.set_page_config(page_title="attnplan", page_icon=str(ICON), layout="wide")
    style.apply()
    st.navigation([page.entry for page in PAGES], position="top").run()


main()
