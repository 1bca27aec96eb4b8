"""Path: what a unit of an activity's work uses of each resource, its rate cap and its share.

At most one activity runs on a path at a time; others that are alike run on its twins. So the paths in use say what
max-min fair rates depend on, and rates once found hold whenever the same paths are in use again (``mark``).
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.fabric.component import Activity

MARK_BYTES = 16  # sets of paths are told apart by the exclusive or of their marks: 2⁻¹²⁸ a pair to be taken for alike


class Path:
    """``weights[i]`` units of ``resources[i]`` for a unit of work, and of resources that never limit it.

    ``number``: its place among all paths of a ``Sharing``."""

    __slots__ = (
        "activity", "alone", "cap", "mark", "number", "plain", "resources", "share", "total", "twin", "unlimited",
        "weights",
    )  # fmt: skip

    def __init__(
        self,
        resources: tuple[int, ...],
        weights: tuple[float, ...],
        unlimited: tuple[tuple[int, float], ...] = (),
        *,
        cap: float = math.inf,
        share: float = 1.0,
        number: int = 0,
    ) -> None:
        self.resources, self.weights, self.unlimited = resources, weights, unlimited
        self.cap, self.share, self.number = cap, share, number
        self.mark = int.from_bytes(blake2b(number.to_bytes(8, "big"), digest_size=MARK_BYTES).digest(), "big")
        self.activity: Activity | None = None
        self.twin: Path | None = None
        self.alone = 0.0  # its rate with nothing beside it; 0: not asked yet
        self.total = 0.0  # work started on it so far
        self.plain = cap == math.inf and share == 1.0 and set(weights) <= {1.0}

    def alike(self, number: int) -> Path:
        return Path(self.resources, self.weights, self.unlimited, cap=self.cap, share=self.share, number=number)
