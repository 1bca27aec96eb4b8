"""The journal of a calibration: every timed point is on disk before the next begins.

One JSON object a line: first what was measured on (device, driver, torch, dtype, seed), then a kernel and its seconds
each. A crash loses the point being timed and no other: a last line cut short is dropped. A journal is continued only
on the same device with the same driver and torch; what changed is named.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType

from simulator.errors import ProfileError, SpecError
from simulator.formats.files import read_text
from simulator.formats.parsing import parse_json
from simulator.kernel import AttentionDecode, AttentionPrefill, ComputeKernel, Gemm, Memory, Moe

KINDS: Mapping[str, type[ComputeKernel]] = {
    kind.__name__: kind for kind in (Gemm, AttentionPrefill, AttentionDecode, Moe, Memory)
}


class Journal:
    """``seconds`` are the points timed so far, in order; ``add`` writes one more. A context manager."""

    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        self.path = path
        self.seconds: dict[ComputeKernel, float] = {}
        kept = self._read(facts) if path.exists() else 0
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(kept)
        self._file.seek(kept)
        if not kept:
            self._write({"facts": dict(facts)})

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, kernel: ComputeKernel, seconds: float) -> None:
        """On disk when this returns."""
        self._write({"kernel": type(kernel).__name__, **asdict(kernel), "seconds": seconds})
        self.seconds[kernel] = seconds

    def _write(self, entry: Mapping[str, object]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, facts: Mapping[str, str]) -> int:
        """Bytes of whole lines; fills ``seconds``."""
        whole = read_text(self.path).encode()
        whole = whole[: whole.rfind(b"\n") + 1]
        lines = whole.decode().splitlines()
        if not lines:
            return 0
        self._check(_object(lines[0], self.path, 1).get("facts"), facts)
        for number, line in enumerate(lines[1:], start=2):
            kernel, seconds = _point(_object(line, self.path, number), f"{self.path}: line {number}")
            self.seconds[kernel] = seconds
        return len(whole)

    def _check(self, written: object, facts: Mapping[str, str]) -> None:
        if not isinstance(written, dict):
            raise ProfileError(f"{self.path}: line 1 does not say what was measured on; remove the file to begin again")
        changed = [
            f"{name} was {written.get(name)!r}, is {facts.get(name)!r}"
            for name in sorted({*written, *facts})
            if written.get(name) != facts.get(name)
        ]
        if changed:
            raise ProfileError(f"{self.path}: begun elsewhere: {'; '.join(changed)}; remove the file to begin again")


def _object(line: str, path: Path, number: int) -> dict[str, object]:
    try:
        value = parse_json(line, f"{path}: line {number}")
    except SpecError as error:
        raise ProfileError(f"{error}; remove the file to begin again") from error
    if not isinstance(value, dict):
        raise ProfileError(f"{path}: line {number}: not an object; remove the file to begin again")
    return value


def _point(entry: dict[str, object], place: str) -> tuple[ComputeKernel, float]:
    values = dict(entry)
    kind, seconds = values.pop("kernel", None), values.pop("seconds", None)
    known = KINDS.get(str(kind))
    if known is None or not isinstance(seconds, float) or not 0 < seconds < math.inf:
        raise ProfileError(f"{place}: not a timed kernel; remove the file to begin again")
    types = {field.name: field.type for field in fields(known)}
    for name, value in values.items():
        if type(value).__name__ != types.get(name):
            raise ProfileError(
                f"{place}: {kind}: {name[:40]!r} cannot be {str(value)[:40]!r}; remove the file to begin again"
            )
    try:
        return known(**values), seconds  # type: ignore[arg-type]
    except TypeError as error:  # a field is missing
        raise ProfileError(f"{place}: {kind}: {error}; remove the file to begin again") from error
