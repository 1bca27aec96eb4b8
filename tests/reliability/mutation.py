"""Mutations of real files that keep most of their structure, so that they get past the first check."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import yaml

NUMBERS = (
    *("0", "-1", "1e999", "-1e308", "1e308", "NaN", "Infinity", ".inf", ".nan", "9" * 5000, "0x10", "1_000"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "1e-320", "-0.0", "٣", "1,5", ""),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, 0.5, -0.0, 1e308, 5e-324),
    *("", "x", "../../etc/passwd", "a\nb", "\0", "é" * 300, "x" * 5000, "NaN", "1", [], {}, [[]], {"": None}),
    *([None] * 50, {"a": {"b": {"c": []}}}, float("nan"), float("inf")),
)
TOKENS = (
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\r",
        b"\x1b[31m",
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!python/object:x ",
    ),
    *(b"---\n", b"...\n", b"%YAML 3.0\n", b"[" * 2000, b'{"a":' * 500, b"\t", b" " * 5000, b'"', b"'", b",", b":"),
    *(b"\xed\xa0\x80", b"\xc3", b"\\ud800", b"x" * 100_000, b"\xe2\x80\xa8", b"?", b"|\n", b">\n", b"#"),
)
NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")


def mutated(seed: bytes, name: str, chance: random.Random) -> bytes:
    """One to four changes of a file: inside its structure where it has one, in its text otherwise."""
    data = seed
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if name.endswith((".json", ".yaml")) and chance.random() < 0.6:
            data = _restructured(data, name, chance)
        else:
            data = _TEXT[chance.randrange(len(_TEXT))](data, chance)
    return data


def _restructured(data: bytes, name: str, chance: random.Random) -> bytes:
    """A value replaced, removed, copied elsewhere or renamed in the parsed document."""
    try:
        document = json.loads(data) if name.endswith(".json") else yaml.load(data, Loader=yaml.CSafeLoader)
        places = list(_places(document))
    except (ValueError, RecursionError, yaml.YAMLError):
        return data
    if not places:
        return data
    holder, key = chance.choice(places)
    match chance.randrange(5):
        case 0:
            del holder[key]
        case 1 | 2:
            holder[key] = chance.choice(VALUES)
        case 3:
            other, theirs = chance.choice(places)
            holder[key] = json.loads(json.dumps(other[theirs]))
        case _ if isinstance(holder, dict):
            holder[chance.choice(("", "x", f"{key} ", str(key).upper()))] = holder.pop(key)
        case _:
            holder.insert(key, holder[key])
    if name.endswith(".json"):
        return json.dumps(document, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return str(yaml.dump(document, Dumper=yaml.CSafeDumper, allow_unicode=True)).encode("utf-8", "surrogatepass")


def _places(document: Any) -> Sequence[tuple[Any, Any]]:
    """(container, key) of every value; at most a few thousand."""
    found: list[tuple[Any, Any]] = []
    pending = [document]
    while pending and len(found) < 5000:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, key) for key in keys]
        pending += [holder[key] for key in keys]
    return found


def _span(data: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + int(chance.expovariate(1 / 30)) + 1)


def _flip(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return b"\0"
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def _remove(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + data[end:]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:end] + data[start:end] * chance.choice((1, 3, 50)) + data[end:]


def _insert(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) + 1)
    return data[:place] + chance.choice(TOKENS) + data[place:]


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _number(data: bytes, chance: random.Random) -> bytes:
    found = list(NUMBER.finditer(data[:200_000]))
    if not found:
        return data
    one = chance.choice(found)
    return data[: one.start()] + chance.choice(NUMBERS).encode() + data[one.end() :]


def _lines(data: bytes, chance: random.Random) -> bytes:
    """Two lines change places, one is doubled, or every end becomes CRLF."""
    lines = data.split(b"\n")
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    match chance.randrange(3):
        case 0:
            lines[one], lines[other] = lines[other], lines[one]
        case 1:
            lines.insert(one, lines[other])
        case _:
            return b"\r\n".join(lines)
    return b"\n".join(lines)


def _cells(data: bytes, chance: random.Random) -> bytes:
    """Within a line of a table: a cell emptied, doubled or swapped with another."""
    lines = data.split(b"\n")
    row = chance.randrange(len(lines))
    separator = b"," if b"," in lines[row] else b"\t" if b"\t" in lines[row] else b" "
    cells = lines[row].split(separator)
    one, other = chance.randrange(len(cells)), chance.randrange(len(cells))
    match chance.randrange(3):
        case 0:
            cells[one] = b""
        case 1:
            cells.insert(one, cells[other])
        case _:
            cells[one], cells[other] = cells[other], cells[one]
    lines[row] = separator.join(cells)
    return b"\n".join(lines)


_TEXT = (_flip, _remove, _repeat, _insert, _cut, _number, _number, _lines, _cells, _cells)
