"""Cache fit: which candidates can prefill into the KV cache that another placement decodes from."""

from __future__ import annotations

import numpy as np

from planner.candidate import Scheme, Table, name_of
from simulator.placement import Placement


def sliced(placement: Placement) -> bool:
    return any(stage.grid.dim_slices > 1 for stage in placement.stages)


def beside_cache(table: Table, cache: Placement | None) -> Table:
    """The candidates that can prefill into a cache: a sliced one only by the very placement that decodes from it."""
    if cache is None:
        return table
    two_level = table["scheme"] == Scheme.TWO_LEVEL
    if not sliced(cache):
        return np.asarray(table[~two_level])
    same = [row for row in np.flatnonzero(two_level) if name_of(table[row]) == cache.name]
    return np.asarray(table[np.array(same, dtype=np.int64)])
