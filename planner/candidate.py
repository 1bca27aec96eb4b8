"""Candidate: a point of the lattice as a row of integers, its GPUs and its name.

Columns that a scheme does not use keep their default, so that equal placements are equal rows.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from simulator.placement import BlockRule, DimMode, Multicast

RULES: tuple[BlockRule, ...] = ("contiguous", "zigzag", "sqrt")
MULTICASTS: tuple[Multicast, ...] = ("direct", "tree", "chain")
MODES: tuple[DimMode, ...] = ("gather_qk", "all_to_all", "score_sum", "per_slice")


class Scheme(IntEnum):
    """Families of the lattice."""

    STATIC = 0
    CONTEXT = 1
    POOL = 2
    JOINED = 3
    SEPARATED = 4
    TWO_LEVEL = 5


class Dealing(IntEnum):
    """How heads are dealt over head groups: evenly (the documents' rule), or by the integer program, head by head or in
    whole KV groups."""

    EVEN = 0
    HEADS = 1
    KV_GROUPS = 2


COLUMNS = (
    "scheme", "order", "tensor", "stages", "replicas", "heads", "queries", "keys", "experts", "micro_batches",
    "rule", "multicast", "exit", "streams", "ring", "slices", "mode", "dealing",
)  # fmt: skip
ROW = np.dtype([(name, np.int32) for name in COLUMNS])
Table = npt.NDArray[np.void]
DEFAULTS = dict.fromkeys(COLUMNS, 1) | dict.fromkeys(
    ("order", "experts", "multicast", "exit", "ring", "mode", "dealing"), 0
) | {"rule": 2}  # fmt: skip


def row(scheme: Scheme, **columns: int) -> tuple[int, ...]:
    """A candidate's columns, defaults where nothing is given."""
    return tuple((DEFAULTS | {"scheme": int(scheme)} | columns).values())


def rows(scheme: Scheme, count: int, **columns: npt.ArrayLike) -> Table:
    """``count`` candidates from columns (or one value for all), defaults where nothing is given."""
    table = np.empty(count, dtype=ROW)
    for name, value in (DEFAULTS | {"scheme": int(scheme)} | columns).items():
        table[name] = value
    return table


def num_gpus(table: Table) -> npt.NDArray[np.int64]:
    """GPUs of every candidate."""
    static = table["tensor"] * table["stages"] * table["replicas"]
    grid = table["heads"] * table["queries"] * table["keys"]
    counts = [static, static, table["tensor"] + grid, grid, table["heads"] + table["experts"], static]
    return np.asarray(np.choose(table["scheme"], counts), dtype=np.int64)


def pool_gpus(table: Table) -> npt.NDArray[np.int64]:
    """GPUs of every candidate that only attend, in the two pool families."""
    pooled = (table["scheme"] == Scheme.POOL) | (table["scheme"] == Scheme.JOINED)
    return np.asarray(np.where(pooled, num_gpus(table) - table["tensor"], 0), dtype=np.int64)


def name_of(candidate: np.void) -> str:
    """``tp8-cp5-zigzag-mb2`` and the like."""
    c = {name: int(candidate[name]) for name in COLUMNS}
    name = _scheme_name(c)
    if c["queries"] > 1:
        name += f"-{RULES[c['rule']]}"
    if c["multicast"]:
        name += f"-{MULTICASTS[c['multicast']]}"
    name += "-ring" * c["ring"] + f"-s{c['streams']}" * (c["streams"] > 1)
    name += ("", "-dealt", "-dealt_kv")[c["dealing"]]
    return name + (f"-mb{c['micro_batches']}" if c["micro_batches"] > 1 else "") + f"-o{c['order']}" * (c["order"] > 0)


def _scheme_name(c: dict[str, int]) -> str:
    grid = f"h{c['heads']}q{c['queries']}k{c['keys']}"
    match Scheme(c["scheme"]):
        case Scheme.STATIC:
            return f"tp{c['tensor']}-pp{c['stages']}"
        case Scheme.CONTEXT:
            return f"tp{c['tensor']}-cp{c['replicas']}"
        case Scheme.POOL:
            return f"base{c['tensor']}-pool{c['heads'] * c['queries'] * c['keys']}-{grid}"
        case Scheme.JOINED:
            return f"base{c['tensor']}+pool{c['heads'] * c['queries'] * c['keys'] - c['tensor']}-{grid}"
        case Scheme.SEPARATED:
            return f"ma{c['heads']}-{c['experts']}" + ("-all_reduce" if c["exit"] else "")
        case Scheme.TWO_LEVEL:
            return f"two-level-h{c['heads']}d{c['slices']}-{MODES[c['mode']]}"
