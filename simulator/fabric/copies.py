"""Copies: of a folded program, how many blocks share each link that block 0 uses.

Every block's links must be an image of block 0's: the same kinds and rates, links that two ranks share shared by the
images of both, and no link of block 0 the image of another one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose

from simulator.fabric.topology import Topology
from simulator.fold import Fold, UnfoldableError


@dataclass(frozen=True, slots=True)
class Copies:
    """``on[r]``: blocks that use resource r, of those that block 0 uses; ``images[c][r]``: what is r to block c."""

    on: dict[int, int]
    images: tuple[dict[int, int], ...]
    used: tuple[frozenset[int], ...]  # what each block uses

    def of_message(self, weights: dict[int, float]) -> dict[int, float]:
        """What a message takes from block 0's links together with its images."""
        return {resource: weight * self.on[resource] for resource, weight in weights.items()}

    def of_collective(self, weights: dict[int, float], groups: int) -> dict[int, float]:
        """What a collective of ``groups`` (it and its images: one each block, or one of all) takes from block 0's."""
        mine = [resource for resource in weights if resource in self.on]
        for image, used in zip(self.images, self.used, strict=True) if groups == 1 else ():
            alike = all(isclose(weights[r], weights.get(image[r], 0.0), rel_tol=1e-12) for r in mine)
            if not alike or sum(resource in used for resource in weights) != len(mine):
                raise UnfoldableError("a collective lays unlike bytes on like links")
        times = self.on if groups > 1 else dict.fromkeys(self.on, 1)
        return {resource: weights[resource] * times[resource] for resource in mine}


def copies_on(fold: Fold, topology: Topology) -> Copies | None:
    """How many blocks share every resource of block 0; None where the cluster does not treat the blocks alike."""
    first = [topology.resources_of(rank) for rank in fold.images[0]]
    on = dict.fromkeys((resource for row in first for resource in row), 0)
    images = []
    for ranks in fold.images:
        image: dict[int, int] = {}
        nodes: dict[int, int] = {}
        for kept, rank, mine in zip(fold.images[0], ranks, first, strict=True):
            a, b, theirs = topology.places[kept], topology.places[rank], topology.resources_of(rank)
            if not mine or a.spec != b.spec or nodes.setdefault(a.node, b.node) != b.node:
                return None
            if len(mine) != len(theirs) or any(image.setdefault(x, y) != y for x, y in zip(mine, theirs, strict=True)):
                return None
        if len(set(image.values())) < len(image) or len(set(nodes.values())) < len(nodes):
            return None
        for x, y in image.items():
            rates = topology.resources[x].bandwidth_bytes_per_s, topology.resources[y].bandwidth_bytes_per_s
            if rates[0] != rates[1] or (x != y and y in on):
                return None
            on[x] += x == y
        images.append(image)
    return Copies(on, tuple(images), tuple(frozenset(image.values()) for image in images))
