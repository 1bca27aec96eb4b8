"""Wire: values between the supervisor and its workers as JSON text. Nothing is ever unpickled.

What travels: plain values, tuples, lists, mappings, tensors, paths, this project's own dataclasses, file records and
enumerations, and the names of its functions. Equal frozen values travel once: programs repeat themselves a lot.
Reading names no class or function outside the project's packages, so a hostile frame can build values but run nothing.

    text   = {"table": [node, …], "value": part}
    node   = [kind, name, part, …]            part = a scalar, or [index of a node before]
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from pydantic import BaseModel

PACKAGES = ("simulator", "executor", "calibration", "planner", "benchmarks", "tests")
SCALARS = (bool, int, float, str, type(None))


class WireError(TypeError):
    """A value that does not travel, or a frame that names what this program does not know."""


def encode(value: object) -> bytes:
    """``value`` as UTF-8 JSON."""
    writer = _Writer()
    part = writer.part(value)
    return json.dumps({"table": writer.table, "value": part}, separators=(",", ":")).encode()


def decode(data: bytes) -> Any:
    """The value ``encode`` was given; WireError (or ValueError: not JSON) if the frame is not one of its."""
    frame = json.loads(data)
    values: list[Any] = []
    try:
        for kind, name, *parts in frame["table"]:
            values.append(_READERS[kind](name, [values[part[0]] if type(part) is list else part for part in parts]))
        part = frame["value"]
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise WireError(f"a frame that this program does not understand: {error!r}") from error
    return values[part[0]] if type(part) is list else part


class _Writer:
    def __init__(self) -> None:
        self.table: list[list[Any]] = []
        self.by_identity: dict[int, list[int]] = {}
        self.by_content: dict[str, list[int]] = {}

    def part(self, value: Any) -> Any:
        """A scalar itself, anything else as [index of its node]."""
        if type(value) in SCALARS:
            return value
        if (known := self.by_identity.get(id(value))) is not None:
            return known
        node, frozen = self.node(value)
        if not frozen:
            return self.append(node)
        content = repr(node)  # tells 1 from True and 1.0
        known = self.by_content.get(content)
        if known is None:
            known = self.by_content[content] = self.append(node)
        self.by_identity[id(value)] = known
        return known

    def append(self, node: list[Any]) -> list[int]:
        self.table.append(node)
        return [len(self.table) - 1]

    def node(self, value: Any) -> tuple[list[Any], bool]:
        """(the node, whether equal values may share it)."""
        match value:
            case tuple():
                return ["tuple", "", *map(self.part, value)], True
            case list():
                return ["list", "", *map(self.part, value)], False
            case dict():
                return ["dict", "", *(self.part(one) for pair in value.items() for one in pair)], False
            case Path():
                return ["path", "", str(value)], True
            case Enum():
                return ["enum", _name_of(type(value)), self.part(value.value)], True
            case BaseModel():
                return ["record", _name_of(type(value)), value.model_dump_json()], True
            case FunctionType():
                return ["function", _name_of(value)], True
        if is_dataclass(value) and not isinstance(value, type):
            kind = type(value)
            params = kind.__dataclass_params__  # type: ignore[attr-defined]
            frozen = params.frozen or params.unsafe_hash  # simulator/value.py
            return ["dataclass", _name_of(kind), *(self.part(getattr(value, one)) for one in _fields_of(kind))], frozen
        return _tensor_node(value), False


def _name_of(kind: type | FunctionType) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__.split(".")[0] not in PACKAGES or not kind.__qualname__.isidentifier():
        raise WireError(f"{name} does not travel between processes; give a top-level name of {', '.join(PACKAGES)}")
    return name


@lru_cache
def _fields_of(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.init)


@lru_cache
def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if module.split(".")[0] not in PACKAGES:
        raise WireError(f"a frame names {name[:80]!r}, outside {', '.join(PACKAGES)}")
    return getattr(import_module(module), attribute)


def _tensor_node(value: Any) -> list[Any]:
    import torch

    if not isinstance(value, torch.Tensor):
        raise WireError(f"a {type(value).__module__}.{type(value).__qualname__} does not travel between processes")
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return ["tensor", str(value.dtype).removeprefix("torch."), base64.b64encode(data).decode(), *value.shape]


def _tensor(name: str, parts: Sequence[Any]) -> Any:
    import torch

    data, *shape = parts
    flat = torch.frombuffer(bytearray(base64.b64decode(data)) or bytearray(8), dtype=getattr(torch, name))
    return flat[: torch.Size(shape).numel()].reshape(shape)


def _dataclass(name: str, parts: Sequence[Any]) -> Any:
    kind = _named(name)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise WireError(f"a frame names {name[:80]!r}, which is no dataclass")
    return kind(**dict(zip(_fields_of(kind), parts, strict=True)))


def _record(name: str, parts: Sequence[Any]) -> Any:
    kind = _named(name)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        raise WireError(f"a frame names {name[:80]!r}, which is no record")
    return kind.model_validate_json(parts[0])


def _enum(name: str, parts: Sequence[Any]) -> Any:
    kind = _named(name)
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise WireError(f"a frame names {name[:80]!r}, which is no enumeration")
    return kind(parts[0])


def _function(name: str, parts: Sequence[Any]) -> Any:
    found = _named(name)
    if not isinstance(found, FunctionType):
        raise WireError(f"a frame names {name[:80]!r}, which is no function")
    return found


_READERS: dict[str, Callable[[str, Sequence[Any]], Any]] = {
    "tuple": lambda _, parts: tuple(parts),
    "list": lambda _, parts: list(parts),
    "dict": lambda _, parts: dict(zip(parts[0::2], parts[1::2], strict=True)),
    "path": lambda _, parts: Path(parts[0]),
    "enum": _enum,
    "record": _record,
    "dataclass": _dataclass,
    "function": _function,
    "tensor": _tensor,
}
