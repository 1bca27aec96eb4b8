"""What every lowered program must satisfy, whatever the scheme."""

from __future__ import annotations

from collections import Counter

from simulator import program as p
from simulator.lowering.builder import Layout
from simulator.tile import num_tokens


def assert_well_formed(program: p.Program) -> None:
    """Values are written once, before they are read; messages and collectives pair up, byte for byte."""
    sends: Counter[tuple[int, int, int, int]] = Counter()
    receives: Counter[tuple[int, int, int, int]] = Counter()
    collectives: dict[int, list[tuple[int, p.Collective]]] = {}
    for rank, operations in enumerate(program.ranks):
        written = {"tokens"} | {f"cache.{shard.layer}" for shard in program.caches[rank]}
        for operation in operations:
            missing = [name for name in operation.reads if name not in written]
            assert not missing, f"rank {rank}: {operation} reads {missing} before anything wrote it"
            for name in operation.writes:
                assert name not in written or name.startswith("cache."), f"rank {rank} writes {name} twice"
                written.add(name)
            match operation:
                case p.Send():
                    sends[rank, operation.to, operation.tag, operation.num_bytes] += 1
                case p.Recv():
                    receives[operation.source, rank, operation.tag, operation.num_bytes] += 1
                case p.Collective():
                    collectives.setdefault(operation.tag, []).append((rank, operation))
                case p.Concat():
                    _assert_parts_cover(operation)
        assert program.next_tokens[rank] in written | {""}
    assert sends == receives
    for members in collectives.values():
        first = members[0][1]
        assert sorted(rank for rank, _ in members) == sorted(first.ranks)
        assert len({(op.kind, op.num_bytes, op.shape, op.ranks) for _, op in members}) == 1


def _assert_parts_cover(operation: p.Concat) -> None:
    layout = Layout((), (operation.row_width,), "fp32")
    cells = [num_tokens(part.block, operation.batch) * part.num_cells for part in (*operation.parts, operation.target)]
    assert sum(cells[:-1]) == cells[-1], f"parts of {operation.writes} do not cover the target"
    assert layout.row_width == operation.row_width


def sent_bytes(program: p.Program) -> int:
    return sum(op.num_bytes for operations in program.ranks for op in operations if isinstance(op, p.Send))
