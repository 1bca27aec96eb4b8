"""Parsing: JSON and YAML text to plain values, strictly, in bounded time and memory.

What it accepts is the same for both: mappings with string keys, lists, strings, true/false/null, integers of
64 bits and finite floats. YAML follows its 1.2 core schema (``312e12`` is a number, ``no`` and ``12:4`` are
strings).
What it refuses, with the place: duplicate keys, NaN and infinities (``1e999``), integers beyond 64 bits, YAML
aliases and tags (bombs, objects), nesting, and more values than any honest file holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from simulator.errors import SpecError

MAX_VALUES = 300_000
MAX_CONTAINERS = 100_000
MAX_KEYS_PER_MAPPING = 10_000
MAX_DEPTH = 100
MAX_INTEGER = 2**63 - 1

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its event stream is used
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def parse_json(text: str, source: str) -> Any:
    """Strict JSON; SpecError with line and column, or with the offending key or number."""
    _refuse_too_many(text.count(","), text.count("{") + text.count("["), source)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise SpecError(f"{source}: key {_first_duplicate(items)!r} appears twice in one object; keep one")
        _refuse_wide(len(result), source)
        return result

    def refuse_constant(name: str) -> NoReturn:
        raise SpecError(f"{source}: {name} is not a number attnplan accepts; write a finite one")

    try:
        return json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=refuse_constant,
            parse_int=lambda digits: _integer(digits, source),
            parse_float=lambda digits: _real(digits, source),
        )
    except json.JSONDecodeError as error:
        raise SpecError(f"{source}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise SpecError(f"{source}: nested deeper than any attnplan file; flatten it") from error


def parse_yaml(text: str, source: str) -> Any:
    """Strict YAML, one document; SpecError with line and column."""
    _refuse_too_many(text.count("\n") + text.count(","), 0, source)
    try:
        return _Builder(source).build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise SpecError(f"{source}{place}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError(f"{source}: not YAML: {str(error).splitlines()[0]}") from error


def _refuse_too_many(num_values: int, num_containers: int, source: str) -> None:
    if num_values > MAX_VALUES or num_containers > MAX_CONTAINERS:
        raise SpecError(f"{source}: more than {MAX_VALUES} values or {MAX_CONTAINERS} lists; split it")


def _refuse_wide(num_keys: int, source: str) -> None:
    if num_keys > MAX_KEYS_PER_MAPPING:
        raise SpecError(f"{source}: {num_keys} keys in one mapping; at most {MAX_KEYS_PER_MAPPING} are accepted")


def _first_duplicate(items: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    return next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _integer(digits: str, source: str) -> int:
    """An integer of at most 64 bits; longer ones would only overflow later."""
    if len(digits) > 20 or abs(value := int(digits)) > MAX_INTEGER:
        raise SpecError(f"{source}: {_shortened(digits)} is an integer beyond 64 bits; write a smaller one")
    return value


def _real(digits: str, source: str) -> float:
    """A finite float: ``1e999`` is refused where it stands, not where it is used."""
    value = float(digits)
    if not math.isfinite(value):
        raise SpecError(f"{source}: {_shortened(digits)} is not a finite number; write a smaller one")
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:12]}… ({len(text)} characters)"


@dataclass(slots=True)
class _Open:
    """A container whose end has not been read; ``key`` waits for its value in a mapping."""

    value: list[Any] | dict[str, Any]
    key: str | None = None


class _Builder:
    """Plain values from YAML events, with its own stack: depth costs no recursion, aliases never expand."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.stack: list[_Open] = []
        self.documents: list[Any] = []

    def build(self, events: Iterable[Any]) -> Any:
        for event in events:
            match event:
                case yaml.AliasEvent():
                    self._refuse(event, "aliases are not accepted; write the value out")
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self._open(event)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._put(event, self.stack.pop().value)
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.DocumentStartEvent() if self.documents:
                    self._refuse(event, "a second document; keep one")
        return self.documents[0] if self.documents else None

    def _open(self, event: Any) -> None:
        if event.tag is not None:
            self._refuse(event, f"tag {event.tag!r} is not accepted")
        if len(self.stack) >= MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH}; flatten it")
        if self.stack and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None:
            self._refuse(event, "a key must be a plain word")
        self.stack.append(_Open({} if isinstance(event, yaml.MappingStartEvent) else []))

    def _scalar(self, event: Any) -> None:
        if event.tag is not None:
            self._refuse(event, f"tag {event.tag!r} is not accepted")
        top = self.stack[-1] if self.stack else None
        if top is None or isinstance(top.value, list) or top.key is not None:
            self._put(event, self._plain(event) if event.implicit[0] else event.value)
        elif event.value in top.value:
            self._refuse(event, f"key {event.value!r} appears twice in one mapping; keep one")
        else:
            _refuse_wide(len(top.value) + 1, self.source)
            top.key = event.value

    def _put(self, event: Any, value: Any) -> None:
        if not self.stack:
            self.documents.append(value)
            return
        top = self.stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        else:
            assert top.key is not None, event
            top.value[top.key] = value
            top.key = None

    def _plain(self, event: Any) -> Any:
        """An unquoted scalar by the 1.2 core schema."""
        text, place = event.value, f"{self.source}:{event.start_mark.line + 1}"
        if text in _WORDS:
            return _WORDS[text]
        if _NON_FINITE.fullmatch(text):
            self._refuse(event, f"{text} is not a number attnplan accepts; write a finite one")
        if _INTEGER.fullmatch(text):
            return _integer(text, place)
        return _real(text, place) if _FLOAT.fullmatch(text) else text

    def _refuse(self, event: Any, why: str) -> NoReturn:
        mark = event.start_mark
        raise SpecError(f"{self.source}:{mark.line + 1}:{mark.column + 1}: {why}")
