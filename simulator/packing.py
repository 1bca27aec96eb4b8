"""Packing: a program whose point-to-point values travel compressed, and how many bytes that takes. Off by default.

    int8   a scale (fp32) for every group of ``GROUP`` values, and each value in a byte: 4·n → n + 4·n/128 bytes
    topk   the n/``KEEP`` values of the largest magnitude in fp32 with their int32 places; the others arrive as 0

Sends and receives keep their order and tags, so the simulator plays a packed program as it is. What it leaves out: the
time to pack and unpack, and collectives, which add values up and would have to unpack in between.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.program import Operation, Packing, Program, Recv, Send
from simulator.units import DTYPE_BYTES

GROUP = 128
KEEP = 8
MIN_VALUES = 256  # smaller values travel as they are
FLOATS = ("fp32", "bf16", "fp16")


def packed_bytes(packing: Packing, num_values: int) -> int:
    """Of a payload of ``num_values``."""
    if packing == "int8":
        return num_values + 4 * -(-num_values // GROUP)
    return 8 * kept_values(num_values)


def kept_values(num_values: int) -> int:
    """Of top-k: at least one."""
    return max(1, num_values // KEEP)


def packed(program: Program, packing: Packing) -> Program:
    """The same program with every large floating-point message packed, where that makes it smaller."""
    smaller: dict[tuple[int, int, int], int] = {}
    for rank, operations in enumerate(program.ranks):
        for operation in operations:
            if isinstance(operation, Recv) and operation.dtype in FLOATS:
                values = operation.num_bytes // DTYPE_BYTES[operation.dtype]
                size = packed_bytes(packing, values)
                if values >= MIN_VALUES and size < operation.num_bytes:
                    smaller[operation.source, rank, operation.tag] = size

    def one(rank: int, operation: Operation) -> Operation:
        if isinstance(operation, Send) and (size := smaller.get((rank, operation.to, operation.tag))):
            return replace(operation, num_bytes=size, packing=packing)
        if isinstance(operation, Recv) and (size := smaller.get((operation.source, rank, operation.tag))):
            return replace(operation, num_bytes=size, packing=packing)
        return operation

    ranks = tuple(tuple(one(rank, operation) for operation in row) for rank, row in enumerate(program.ranks))
    return replace(program, ranks=ranks)
