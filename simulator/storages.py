"""Storages: which values of a rank lie in the same memory, from when to when, and what is live at every operation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from simulator import program as p
from simulator.units import DTYPE_BYTES
from simulator.value_bytes import is_view, output_bytes, part_elements
from simulator.workspace import GPUS, Machine, only_splits, received_bytes, workspace_bytes

BEFORE, AFTER = 0, 1  # an operation computes


def live_bytes(program: p.Program, rank: int, machine: Machine = GPUS) -> list[int]:
    """Live values at every operation's own peak, with what it holds besides: what it waits for has just arrived."""
    operations, found = program.ranks[rank], list[int]()
    storages = Storages(operations)
    expiring = storages.expiring()
    live: dict[str, int] = {}
    now = 0
    for index, operation in enumerate(operations):
        peak = now + storages.arriving(index, program.dtype, machine)
        for name in expiring.get((index, BEFORE), ()):
            now -= live.pop(name, 0)
        for name, num_bytes in storages.written(operation, program.dtype).items():
            live[name] = live.get(name, 0) + num_bytes
            now += num_bytes
        copied = operation.num_bytes if isinstance(operation, p.Send) and operation.reads[0] in storages.views else 0
        found.append(max(peak, now + copied + workspace_bytes(operation, program.dtype, machine)))
        for name in expiring.get((index, AFTER), ()):
            now -= live.pop(name, 0)
    return found


class Storages:
    """Which of a rank's values share memory, and until when. ``views``: values that are parts of each row of another;
    where rows of one have to follow one another, they are copied."""

    def __init__(self, operations: Sequence[p.Operation]) -> None:
        self.operations = operations
        self.owner: dict[str, str] = {}
        self.views: set[str] = set()
        self.collectives: dict[str, p.Collective] = {}
        self.last: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.unread: dict[int, list[p.Collective]] = {}
        for index, operation in enumerate(operations):
            for name in (*operation.reads, *operation.writes):
                self.last[name] = index
            for name in operation.reads:
                self.first.setdefault(name, index)
        for index, operation in enumerate(operations):
            self._share(index, operation)
        self._end_unread()

    def _end_unread(self) -> None:
        """A collective that nobody reads ends where its rank next waits for something."""
        waited = {name for one in self.operations if isinstance(one, p.Recv | p.Collective) for name in one.writes}
        waits = sorted({index for name, index in self.first.items() if name in waited})
        for name, operation in self.collectives.items():
            if name not in self.first:
                after = bisect_right(waits, self.last[name])
                self.first[name] = waits[after] if after < len(waits) else len(self.operations) - 1
                self.unread.setdefault(self.first[name], []).append(operation)

    def _share(self, index: int, operation: p.Operation) -> None:
        owner = self.owner
        match operation:
            case p.Slice(reads=(source, *_), writes=(part,)) if source not in self.views and is_view(operation):
                owner[part] = owner.get(source, source)
            case p.Rope(reads=(source, *_), writes=(query, *_)):
                whole = owner.get(source, source) if only_splits(operation) else query
                owner.update(dict.fromkeys(operation.writes, whole))
                self.views.update(operation.writes)
            case p.Collective(reads=(source, *_), writes=(result,), kind=kind):
                self.collectives[result] = operation
                if kind == "all_reduce" and self.last[source] == index and source not in owner:
                    owner[result] = source

    def expiring(self) -> dict[tuple[int, int], list[str]]:
        """Storages by the operation AFTER which nobody reads them, or BEFORE which the collective that did is done."""
        last: dict[str, tuple[int, int]] = {}
        for name, at in self.last.items():
            whole = self.owner.get(name, name)
            last[whole] = max(last.get(whole, (0, BEFORE)), (at, AFTER))
        for name, collective in self.collectives.items():
            for source in collective.reads:
                whole = self.owner.get(source, source)
                last[whole] = max(last[whole], (self.first[name], BEFORE))
        found: dict[tuple[int, int], list[str]] = {}
        for name, moment in last.items():
            found.setdefault(moment, []).append(name)
        return found

    def arriving(self, index: int, dtype: str, machine: Machine) -> int:
        """What the collectives have received whose values the operation is the first to read, and the largest of those
        that end unread while its rank waits: each is done as it comes."""
        reads = (name for name in self.operations[index].reads if self.first[name] == index)
        read = (self.collectives[name] for name in reads if name in self.collectives)
        unread = (received_bytes(one, dtype, machine) for one in self.unread.get(index, ()))
        return sum(received_bytes(one, dtype, machine) for one in read) + max(unread, default=0)

    def written(self, operation: p.Operation, dtype: str) -> dict[str, int]:
        """Bytes that an operation adds to each storage."""
        found: dict[str, int] = {}
        if isinstance(operation, p.Slice) and operation.writes[0] not in self.owner:
            return {operation.writes[0]: part_elements(operation) * DTYPE_BYTES[dtype]}
        if isinstance(operation, p.Rope) and only_splits(operation):
            return {}
        if isinstance(operation, p.Collective) and operation.writes[0] in self.owner:
            return {}
        for name, num_bytes in output_bytes(operation, dtype).items():
            whole = self.owner.get(name, name)
            found[whole] = found.get(whole, 0) + num_bytes
        return found
