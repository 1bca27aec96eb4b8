"""Depth: a deep model simulated shallow. Its layers are alike, so when a step's state repeats from layer to layer, the
layers left out are copies of one that was played.

The engine is deterministic and knows only differences of time: if every operation of three successive layers begins and
ends the same number of picoseconds (the period) after its like in the layer before, the state at a layer's start has
repeated, and with it all that follows. A model of L layers then takes (L − depth) periods longer than one of ``depth``.
Where replicas drift apart (each layer leaves some further ahead) nothing repeats, and the whole model is simulated.
Not for pipelines, nor for models whose layers differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from simulator.model import Model
from simulator.placement import Placement
from simulator.simulation.timeline import Timeline

DEPTHS = (6, 12)  # layers tried before the whole model; the first two may still differ from those after


@dataclass(frozen=True, slots=True)
class Shallow:
    """A model and its placements cut to ``depth`` of ``layers`` layers."""

    model: Model
    placement: Placement
    cache: Placement | None
    depth: int
    layers: int

    def repeated(self) -> tuple[int, int]:
        """The layer that stands for those left out, itself included, and how many they are."""
        return self.depth - 3, self.layers - self.depth + 1


def shallow_versions(model: Model, placement: Placement, cache: Placement | None) -> tuple[Shallow, ...]:
    """Shallow models that may stand for the whole one, shallowest first."""
    stages = (*placement.stages, *(cache.stages if cache is not None else ()))
    if len(set(model.layers)) > 1 or len(placement.stages) > 1 or (cache is not None and len(cache.stages) > 1):
        return ()
    if any(stage.experts is not None and len(set(stage.experts)) > 1 for stage in stages):
        return ()
    found = []
    for depth in DEPTHS:
        if 2 * depth <= model.num_layers:
            cut = model.model_copy(update={"layers": model.layers[:depth]})
            kept = None if cache is None else _cut(cache, depth)
            found.append(Shallow(cut, _cut(placement, depth), kept, depth, model.num_layers))
    return tuple(found)


def _cut(placement: Placement, depth: int) -> Placement:
    stage = placement.stages[0].model_copy(update={"last_layer": depth})
    return placement.model_copy(update={"stages": (stage,)})


def period_ps(timeline: Timeline, depth: int) -> int | None:
    """Picoseconds by which each of three layers before the last follows its like; None if they differ."""
    found: set[int] = set()
    for rank in timeline.ranks:
        layer_of = np.array([operation.layer for operation in timeline.program.ranks[rank]])
        layers = [np.flatnonzero(layer_of == layer) for layer in range(depth - 4, depth - 1)]
        for one, other in pairwise(layers):
            if len(one) != len(other):
                return None
            for times in (timeline.start_ps[rank], timeline.end_ps[rank]):
                found.update(np.unique(times[other] - times[one]).tolist())
        if len(found) > 1:
            return None
    return found.pop() if found else None
