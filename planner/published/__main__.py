"""``python -m planner.published [FILE]`` writes docs/published.md."""

from __future__ import annotations

import sys
from pathlib import Path

from planner.published.page import text

DEFAULT_FILE = Path(__file__).resolve().parents[2] / "docs" / "published.md"

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE
    target.write_text(text(), encoding="utf-8")
    print(target)
