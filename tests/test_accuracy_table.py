"""README's table of kernel accuracy is docs/accuracy.md's, rounded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEVICES = {"A100": "A100-SXM4-80GB", "H100": "H100-SXM", "H200": "H200-SXM"}
CLASSES = {
    "prefill attention": ("attention_prefill bf16", "unseen", "beyond seq > 4096"),
    "GEMM": ("gemm bf16", "unseen m", "beyond m >= 4096"),
    "decode attention": ("attention_decode bf16", "unseen", "beyond context"),
    "experts": ("moe bf16", "unseen", "beyond tokens"),
}


def held_out() -> dict[tuple[str, str, str], list[str]]:
    """Device, class and split → a line's numbers."""
    text = (ROOT / "docs/accuracy.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {(row[0], row[1], row[2]): row[3:] for row in rows if len(row) == 12}


@pytest.mark.parametrize("name", CLASSES)
def test_readme_repeats_the_held_out_figures(name: str) -> None:
    kernel, *splits = CLASSES[name]
    lines = held_out()

    def figure(device: str, split: str) -> str:
        row = lines.get((device, kernel, split))
        return "–" if row is None else f"{float(row[2].strip('*')):.1f}"

    expected = [" / ".join(figure(device, split) for split in ("random", *splits)) for device in DEVICES.values()]
    roof = f"{float(lines[DEVICES['A100'], kernel, 'random'][6]):.0f}"
    row = re.search(rf"^\| {name} \|(.*)\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None
    assert [cell.strip() for cell in row[1].split("|")] == [*expected, roof]
