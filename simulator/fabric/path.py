"""Path: what a unit of an activity's work uses of each resource, its rate cap and its share.

At most one activity runs on a path at a time; others that are alike run on its twins. So the paths in use say what
max-min fair rates depend on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.simulation.clock import Action


class Path:
    """``weights[i]`` units of ``resources[i]`` for a unit of work, and of resources that never limit it.

    ``number``: its place among all paths of a ``Sharing``; ``done``: what to call when the work on it is done, None if
    there is none. ``ends``: of a plain path of one or two resources, each with the other (−1: none). Compared by
    identity."""

    __slots__ = (
        "alone", "cap", "done", "ends", "number", "plain", "resources", "share", "total", "twin", "unlimited",
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
        self.done: Action | None = None
        self.twin: Path | None = None
        self.alone = 0.0  # its rate with nothing beside it; 0: not asked yet
        self.total = 0.0  # work started on it so far
        self.plain = cap == math.inf and share == 1.0 and weights.count(1.0) == len(weights)
        self.ends: tuple[tuple[int, int], ...] = ()
        if self.plain and 1 <= len(resources) <= 2:
            one, other = resources if len(resources) == 2 else (resources[0], -1)
            self.ends = ((one, other), (other, one)) if other >= 0 else ((one, -1),)

    def alike(self, number: int) -> Path:
        return Path(self.resources, self.weights, self.unlimited, cap=self.cap, share=self.share, number=number)
