"""Files: how every JSON or YAML document is read, checked and written.

Nothing else in the project opens a spec file. Reading refuses duplicate keys, NaN and infinities,
unknown keys and absurd sizes with one line (file, place, value, remedy); writing is atomic.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails
from pydantic_core import to_json as encode_json

from simulator.errors import SpecError
from simulator.formats.parsing import parse_json, parse_yaml

__all__ = [
    "MAX_FILE_BYTES",
    "Name",
    "Record",
    "load",
    "parse",
    "parse_json",
    "parse_yaml",
    "read_text",
    "to_json",
    "to_yaml",
    "validate",
    "write_atomically",
]

MAX_FILE_BYTES = 16 * 2**20
TEMPORARY = ".attnplan-tmp"
ABANDONED_S = 600.0
SEQUENCE_SCHEMAS = ("list", "tuple", "set", "frozenset")

Name = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}$")]
"""A name that may become part of a file name: one line, no slashes, no leading dot."""


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a core schema, the schema itself included."""
    pending = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending.extend(part.values())
        elif isinstance(part, list | tuple):
            pending.extend(part)


class Record(BaseModel):
    """Base of everything that is (part of) a file: frozen, strict about keys and numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Stop at a sequence's first bad item: a hostile file must not buy a million error reports."""
        schema = handler(source)
        for part in _parts(schema):
            if part.get("type") in SEQUENCE_SCHEMAS:
                part["fail_fast"] = True
        return schema


T = TypeVar("T", bound=BaseModel)


def load(path: Path, model: type[T]) -> T:
    """Read ``path`` (``.json``, ``.yaml`` or ``.yml``) as ``model``; SpecError says what is wrong where."""
    return validate(parse(path), model, source=str(path))


def parse(path: Path) -> Any:
    """The plain value in a JSON or YAML file, or SpecError with the place."""
    text = read_text(path)
    return parse_json(text, str(path)) if path.suffix == ".json" else parse_yaml(text, str(path))


def read_text(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """A regular file's UTF-8 text, at most ``max_bytes`` of it (a pipe or device could be endless)."""
    try:
        if path.exists() and not path.is_file():
            raise SpecError(f"{path}: not a regular file; name a file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL character in the name
        raise SpecError(f"{str(path)!r}: not a file name: {error}") from error
    if len(data) > max_bytes:
        raise SpecError(f"{path}: larger than {max_bytes} bytes; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start}); convert it") from error


def validate(value: Any, model: type[T], *, source: str) -> T:
    """``value`` as ``model``; the first problem in one line with its place.

    Through JSON and strict: ``"8"``, ``true`` and ``8.0`` are not integers, a list is a tuple.
    """
    if value is None:
        raise SpecError(f"{source}: empty; it needs {', '.join(model.model_fields)}")
    try:
        return model.model_validate_json(encode_json(value, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        versions = [e for e in errors if e["loc"] == ("schema_version",)]  # another version explains all the rest
        typos = [e for e in errors if e["type"] == "extra_forbidden"]  # a typo is also "missing"
        first = (*versions, *typos, *errors)[0]
        more = f" (+{error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise SpecError(f"{source}: {_place(first)}: {_problem(first, model, value)}{more}") from error
    except ValueError as error:
        raise SpecError(f"{source}: nested too deeply, or text with half a surrogate pair; simplify it") from error


def _place(error: ErrorDetails) -> str:
    """``nodes[1].link.bandwidth_bytes_per_s``."""
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"]).lstrip(".")
    return (place if len(place) <= 120 else place[:117] + "...").replace("\n", "\\n") or "top level"


def _problem(error: ErrorDetails, model: type[BaseModel], value: Any) -> str:
    """What is wrong and what would be right."""
    found = _found(value, error["loc"])
    match error["type"]:
        case "extra_forbidden":
            known = f"known: {', '.join(model.model_fields)}" if len(error["loc"]) == 1 else "remove it"
            return f"unknown key; {known}"
        case "missing":
            return "missing; add it"
        case "json_invalid":
            return "nested deeper than any attnplan file; flatten it"
        case "literal_error" if error["loc"] == ("schema_version",):
            known = model.model_fields["schema_version"].default
            return f"this attnplan reads version {known}{found}; make the file anew with it, or update attnplan"
        case "string_pattern_mismatch":
            return f"not a name (one line, no slash, no leading dot){found}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{message}{found}"


def _found(value: Any, place: tuple[int | str, ...]) -> str:
    """``, got 'x'`` for the word or number at a place; nothing for containers and inside unions."""
    for step in place:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return ""
    if isinstance(value, dict | list | tuple):
        return ""
    shown = repr(value[:80] if isinstance(value, str) else value)
    return f", got {shown}" if len(shown) <= 60 else f", got {shown[:57]}..."


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds either the old or the whole new content, never half.

    A writer that is killed leaves a hidden ``.NAME.….attnplan-tmp``; a later write of the same file takes it away.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=TEMPORARY)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_for(path))
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SpecError(f"{path}: cannot be written: {error.strerror}") from error
        raise


def _sweep(path: Path) -> None:
    """Remove what killed writers of ``path`` left: unfinished files too old to be another's in the making."""
    for entry in os.scandir(path.parent):
        if entry.name.startswith(f".{path.name[:100]}.") and entry.name.endswith(TEMPORARY):
            with suppress(OSError):  # another process was quicker
                if time.time() - entry.stat().st_mtime > ABANDONED_S:
                    os.unlink(entry.path)


def _mode_for(path: Path) -> int:
    """The old file's permissions, or what ``open`` would give a new one (``mkstemp`` gives 0600)."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def to_json(record: BaseModel) -> str:
    """Canonical JSON of a record: stable key order, two-space indent, final newline."""
    return json.dumps(record.model_dump(mode="json"), indent=2, sort_keys=False, allow_nan=False) + "\n"


def to_yaml(record: BaseModel, *, comment: str) -> str:
    """The same keys in the same order as YAML, for files that people go on to edit; ``comment`` is its first line."""
    text = yaml.safe_dump(json.loads(to_json(record)), sort_keys=False, allow_unicode=True)
    return f"# {comment}\n{text}"
