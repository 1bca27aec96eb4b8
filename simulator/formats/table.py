"""Tables: CSV and log text, line by line, with places for refusals and bounds on everything."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import SpecError

MAX_LINE_CHARACTERS = 2**20
MAX_ROWS = 500_000
MAX_COLUMNS = 500
LEAST_POSITIVE, MOST_POSITIVE = 1e-15, 1e15  # in milliseconds: a quintillionth of a second, 30,000 years


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a CSV file: its cells by column, its place for messages."""

    place: str
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """A cell's text, without blanks around it; SpecError if the column is missing or the cell empty."""
        value = (self.cells.get(column) or "").strip()
        if not value:
            raise SpecError(f"{self.place}: {column}: missing; add it")
        return value

    def whole(self, column: str, *, least: int = 0) -> int:
        """A whole number of at least ``least``."""
        value = self.text(column)
        if not re.fullmatch(r"[0-9]{1,18}", value) or int(value) < least:
            raise SpecError(f"{self.place}: {column}: not a whole number from {least}, got {value[:40]!r}")
        return int(value)

    def positive(self, column: str) -> float:
        """A number above zero: a time of 0 would make an operation free, one of 1e-300 overflows what it divides."""
        value = self.text(column)
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not LEAST_POSITIVE <= number <= MOST_POSITIVE:
            limits = f"from {LEAST_POSITIVE:g} to {MOST_POSITIVE:g}"
            raise SpecError(f"{self.place}: {column}: not a number above 0 ({limits}), got {value[:40]!r}")
        return number


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file without their ends; lines of bounded length."""
    number = 0
    try:
        if path.exists() and not path.is_file():
            raise SpecError(f"{path}: not a regular file; name a file")
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(MAX_LINE_CHARACTERS + 1):
                number += 1
                if len(line) > MAX_LINE_CHARACTERS:
                    raise SpecError(f"{path}:{number}: a line of more than {MAX_LINE_CHARACTERS} characters")
                yield number, line.rstrip("\r\n")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:  # a ValueError too
        raise SpecError(f"{path}: not UTF-8 text near line {number + 1}; convert it") from error
    except ValueError as error:  # a NUL character in the name
        raise SpecError(f"{str(path)!r}: not a file name: {error}") from error


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header; SpecError names the line that does not fit it."""
    lines = ((number, line) for number, line in read_lines(path) if line.strip())
    number, first = next(lines, (0, ""))
    header = [name.strip() for name in _cells(first, f"{path}:{number}")]
    if not header or len(set(header)) != len(header) or len(header) > MAX_COLUMNS:
        raise SpecError(f"{path}:1: not a CSV header of at most {MAX_COLUMNS} different names: {first[:60]!r}")
    for count, (number, line) in enumerate(lines, 1):
        place = f"{path}:{number}"
        cells = _cells(line, place)
        if len(cells) != len(header):
            raise SpecError(f"{place}: {len(cells)} cells under a header of {len(header)}")
        if count > MAX_ROWS:
            raise SpecError(f"{place}: more than {MAX_ROWS} rows; cut the table")
        yield Row(place, dict(zip(header, cells, strict=True)))


def _cells(line: str, place: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise SpecError(f"{place}: not CSV: {error}") from error
