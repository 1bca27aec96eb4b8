"""Tables and progress for people, by rich; results for programs are printed by the handlers themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ERR = Console(stderr=True, highlight=False)


def to_terminal(*items: RenderableType) -> None:
    """Print results on stdout; without a terminal, wide enough that no cell is folded."""
    width = None if sys.stdout.isatty() else 160
    console = Console(highlight=False, width=width, soft_wrap=not sys.stdout.isatty())
    for item in items:
        console.print(item)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    """A table whose numeric columns are right-aligned."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_numeric(row[index]) for row in rows)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def _numeric(cell: str) -> bool:
    return bool(cell) and (cell[0].isdigit() or cell[0] in "+-−–<≈")


def say(message: str) -> None:
    """One line for people, on stderr."""
    ERR.print(message, soft_wrap=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; the yielded function takes (done, total). Without a terminal, one line at the start."""
    if not ERR.is_terminal:
        say(f"{title} …")
        yield lambda done, total: None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=ERR,
    ) as bar:
        task = bar.add_task(title, total=1)
        yield lambda done, total: bar.update(task, completed=done, total=total)
