"""Which rows are held out, by rule.

``random``: a fifth of the rows. ``unseen …``: every row that has one of a few inner grid values of a column.
``beyond …``: the rows past the largest values of a column (prefill lengths > 4096 and GEMM m ≥ 4096, as
earlier measurements of ours; elsewhere the top fifth of the column's distinct values). ``N points``: all
rows but N random ones. docs/accuracy.md says which of these moved while the model was developed, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from calibration.rows import Table
from simulator.costs.physics import COLUMNS

Mask = npt.NDArray[np.bool_]
Split = Callable[[Table], Mask]
SPLIT_SEED = 1
TEST_SHARE = 0.2


def random_fifth(table: Table) -> Mask:
    return np.random.default_rng(SPLIT_SEED).random(len(table.seconds)) < TEST_SHARE


def all_but(num_points: int) -> Split:
    """Held out: everything except ``num_points`` random rows."""

    def mask(table: Table) -> Mask:
        held = np.ones(len(table.seconds), dtype=np.bool_)
        held[np.random.default_rng(SPLIT_SEED + 1).permutation(len(held))[:num_points]] = False
        return held

    return mask


def column(table: Table, name: str) -> npt.NDArray[np.float64]:
    return table.x[:, COLUMNS[table.kernel].index(name)]


def unseen(**values: tuple[int, ...]) -> Split:
    """Held out: rows with any of the given values in any of the given columns."""

    def mask(table: Table) -> Mask:
        found = [np.isin(column(table, name), chosen) for name, chosen in values.items()]
        return np.asarray(np.any(found, axis=0))

    return mask


def above(limit: float, *names: str) -> Split:
    """Held out: rows above ``limit`` in any of the columns."""
    return lambda table: np.asarray(np.any([column(table, name) > limit for name in names], axis=0))


def top_fifth(*names: str) -> Split:
    """Held out: rows with one of the largest fifth of a column's distinct values, in any of the columns."""

    def mask(table: Table) -> Mask:
        chosen = []
        for name in names:
            distinct = np.unique(column(table, name))
            chosen.append(column(table, name) >= distinct[-max(1, len(distinct) // 5)])
        return np.asarray(np.any(chosen, axis=0))

    return mask


def not_a_causal_square(table: Table) -> Mask:
    """Held out: windowed and unmasked kernels, from causal squares alone (what a rectangle's prediction rests on)."""
    return np.asarray((column(table, "window") > 0) | (column(table, "causal") == 0))


def unseen_model(hidden: int, inter: int) -> Split:
    """Held out: every row of the routed experts of one model."""
    return lambda table: np.asarray((column(table, "hidden") == hidden) & (column(table, "inter") == inter))


SPLITS: Mapping[str, Mapping[str, Split]] = {
    "attention_prefill": {
        "random": random_fifth,
        "unseen": unseen(seq_q=(1536, 6144), batch=(8,), heads=(24,)),
        "beyond seq > 4096": above(4096, "seq_q"),
        "windows, no mask": not_a_causal_square,
        "200 points": all_but(200),
        "50 points": all_but(50),
    },
    "gemm": {
        "random": random_fifth,
        "unseen m": unseen(m=(48, 49, 192, 193, 768, 769)),
        "unseen n, k": unseen(n=(2560, 6144), k=(2560, 6144)),
        "beyond m >= 4096": above(4095, "m"),
        "beyond n, k": top_fifth("n", "k"),
        "200 points": all_but(200),
        "50 points": all_but(50),
    },
    "attention_decode": {
        "random": random_fifth,
        "unseen": unseen(context=(512, 8192), batch=(16,), heads=(24,)),
        "beyond context": top_fifth("context"),
        "200 points": all_but(200),
        "50 points": all_but(50),
    },
    "moe": {
        "random": random_fifth,
        "unseen": unseen(tokens=(192, 1536), ep=(8,)),
        "unseen model": unseen_model(4096, 1536),
        "beyond tokens": top_fifth("tokens"),
        "200 points": all_but(200),
        "50 points": all_but(50),
    },
}
