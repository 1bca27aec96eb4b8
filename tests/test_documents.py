"""What the pages name exists: files, symbols, tests, commands, options, modules, and what their links point to.

Commands are also run (``tests/reliability/test_documented_commands.py``); here every name in backticks is looked up.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from planner.cli import parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PACKAGES = ("simulator", "executor", "calibration", "planner", "app", "benchmarks", "tests", "docs")
PATH = re.compile(rf"(?:{'|'.join(PACKAGES)})/[\w./-]*")
SYMBOL = re.compile(rf"((?:{'|'.join(PACKAGES)})/[\w./-]+\.py):(\w+)")
TEST = re.compile(r"(?:reliability/)?test_\w+")
WORD = re.compile(r"[A-Za-z]\w*(?:_\w+)+|[A-Z][a-z]+\w*|[A-Z]{3,}[A-Z_]*")
ARGPARSE_HAS = ("--help",)


def shown(page: Path) -> list[str]:
    """Everything in backticks outside code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@cache
def sources() -> str:
    """Code and the files it reads: a word of a page is a word of these."""
    files = [ROOT / "Makefile", ROOT / "pyproject.toml"]
    for package in PACKAGES[:-1]:
        files += [
            path for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".yaml") and path != Path(__file__)
        ]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def words() -> set[str]:
    return set(re.findall(r"\w+", sources()))


def defined(path: Path) -> set[str]:
    """Names a module gives at its top level."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, punctuation gone, hyphens for blanks."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_symbols_and_tests_named_on_a_page_exist(page: Path) -> None:
    missing = []
    for name in shown(page):
        if found := SYMBOL.fullmatch(name):
            path = ROOT / found[1]
            exists = path.is_file() and found[2] in defined(path)
        elif TEST.fullmatch(name):
            exists = (ROOT / "tests" / f"{name}.py").is_file() or name in words()
        elif PATH.fullmatch(name):
            exists = (ROOT / name).exists()
        elif WORD.fullmatch(name):
            exists = name in words()
        else:
            continue
        if not exists:
            missing.append(name)
    assert not missing, f"{page.name} names what does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_options_and_modules_named_on_a_page_exist(page: Path) -> None:
    commands = next(iter(parser()._subparsers._group_actions)).choices  # type: ignore[union-attr]
    missing = []
    for name in shown(page):
        if found := re.match(r"plan (\w+)", name):
            missing += [name] if found[1] not in commands else []  # type: ignore[operator]
        elif found := re.match(r"python -m ([\w.]+)", name):
            path = ROOT / found[1].replace(".", "/")
            missing += [name] if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()) else []
        options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", name)) - {*ARGPARSE_HAS}
        missing += [one for one in options if f'"{one}"' not in sources()]
    assert not missing, f"{page.name} names what does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def test_names_that_are_gone_are_found(tmp_path: Path) -> None:
    gone = ["planner/search.py:gone", "planner/gone.py", "test_gone", "GoneClass", "gone_function"]
    page = tmp_path / "page.md"
    page.write_text(", ".join(f"`{name}`" for name in [*gone, "planner/search.py:race", "Placement"]))
    with pytest.raises(AssertionError) as caught:
        test_files_symbols_and_tests_named_on_a_page_exist(page)
    assert f"assert not {gone}" in str(caught.value)
    page.write_text("`plan gone`, `--gone`, `python -m planner.gone` and [a link](gone.md), [another](page.md#gone)")
    with pytest.raises(AssertionError, match=r"assert not \['plan gone', '--gone', 'python -m planner.gone'\]"):
        test_commands_options_and_modules_named_on_a_page_exist(page)
    with pytest.raises(AssertionError, match=r"gone\.md.*page\.md#gone"):
        test_links_of_a_page_lead_somewhere(page)
