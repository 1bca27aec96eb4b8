"""Exchange: collectives of CPU ranks over their mesh.

    in one node     every member sends to every other at once: small values whole, large ones by parts, summed where
                    they belong and (all-reduce) sent back
    across nodes    a ring through the members in order; hierarchical: parts inside each node, then across, then inside
    two members     each sends the other its value: a ring would go twice
    broadcast       a binomial tree

Every part is summed once, or by all in the members' order, so all members hold the same bits; always in one order,
so they are the same every time. What can go out at once
is sent when the collective is issued; the rest while the rank waits for this value or any other.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from executor.mesh import Key, Mesh, Steps, Transfer
from executor.transfers import combined
from executor.two_levels import levels_of
from executor.weights import TORCH_DTYPES
from simulator import program as p
from simulator.workspace import WHOLE_BYTES

MESSAGES, COLLECTIVES = 0, 1  # channels of the mesh

Some = Generator[Key, Tensor, None]


def begin(mesh: Mesh, operation: p.Collective, value: Tensor, nodes: Sequence[int]) -> Transfer:
    """Issue a collective of this rank's ``value`` (contiguous)."""
    return mesh.begin(steps_of(mesh, operation, value, nodes))


def steps_of(mesh: Mesh, operation: p.Collective, value: Tensor, nodes: Sequence[int]) -> Steps:
    """What this rank sends and asks for."""
    talk = Talk(mesh, operation.tag, operation.ranks)
    across = len({nodes[rank] if nodes else 0 for rank in operation.ranks}) > 1 and len(operation.ranks) > 2
    match operation.kind:
        case "broadcast":
            return talk.broadcast(value)
        case "all_to_all":
            return talk.parts(operation, value)
        case "all_reduce":
            levels = levels_of(operation.ranks, nodes) if operation.algorithm == "hierarchical" else None
            if levels is not None:
                inside, over = (
                    Talk(mesh, operation.tag, next(ranks for ranks in part if mesh.rank in ranks))
                    for part in (levels.inside, levels.across)
                )
                return inside.reduce_parts(value, over)
            if across:
                return talk.ring_reduce(value)
            small = len(operation.ranks) == 2 or value.nbytes <= WHOLE_BYTES
            return talk.whole(operation, value) if small else talk.reduce_parts(value)
        case "all_gather":
            return talk.ring_gather(operation, value) if across else talk.whole(operation, value)
        case "reduce_scatter":
            return talk.ring_scatter(value) if across else talk.parts(operation, value)


@dataclass(frozen=True, slots=True)
class Talk:
    """The members of one collective, as this rank talks to them."""

    mesh: Mesh
    tag: int
    ranks: tuple[int, ...]

    @property
    def place(self) -> int:
        return self.ranks.index(self.mesh.rank)

    def send(self, place: int, value: Tensor) -> None:
        self.mesh.send(self.ranks[place], COLLECTIVES, self.tag, value)

    def receive(self, place: int, like: Tensor) -> Steps:
        """A flat value of ``like``'s type from a member."""
        content = yield self.ranks[place], COLLECTIVES, self.tag
        return content.view(like.dtype)

    def others(self) -> list[int]:
        """The other members' places, each rank beginning with the one after it."""
        count = len(self.ranks)
        return [(self.place + step) % count for step in range(1, count)]

    def whole(self, operation: p.Collective, value: Tensor) -> Steps:
        """Everybody gets everybody's value, and combines them itself."""
        for place in self.others():
            self.send(place, value)
        if operation.kind == "all_reduce" and len(self.ranks) == 2:
            return value.add_((yield from self.receive(1 - self.place, value)).view(value.shape))
        values = [value] * len(self.ranks)
        for place in self.others():
            values[place] = (yield from self.receive(place, value)).view(value.shape)
        return combined(operation, values, self.place)

    def parts(self, operation: p.Collective, value: Tensor) -> Steps:
        """Member i gets everybody's i-th part of the rows."""
        chunks = value.chunk(len(self.ranks))
        for place in self.others():
            self.send(place, chunks[place])
        found = [chunks[self.place]] * len(self.ranks)
        for place in self.others():
            found[place] = (yield from self.receive(place, value)).view(chunks[self.place].shape)
        if operation.kind == "reduce_scatter":
            return summed([found[0].clone(), *found[1:]])
        return torch.cat(found)

    def reduce_parts(self, value: Tensor, over: Talk | None = None) -> Steps:
        """All-reduce: member i sums everybody's i-th part into its own, across nodes too if ``over`` has members there,
        and sends it back. One part at a time: nothing else is held."""
        chunks = value.view(-1).tensor_split(len(self.ranks))
        mine = chunks[self.place]
        for place in self.others():
            self.send(place, chunks[place])
        for place in self.others():
            mine += yield from self.receive(place, value)
        if over is not None:
            mine.copy_((yield from over.reduce(mine)))
        for place in self.others():
            self.send(place, mine)
        for place in self.others():
            chunks[place].copy_((yield from self.receive(place, value)))
        return value

    def reduce(self, value: Tensor) -> Steps:
        """All-reduce: two members swap, more pass on in a ring."""
        if len(self.ranks) != 2:
            return (yield from self.ring_reduce(value))
        other = 1 - self.place
        self.send(other, value)
        theirs = yield from self.receive(other, value)
        return summed([theirs, value] if other == 0 else [value, theirs])

    def ring_reduce(self, value: Tensor) -> Steps:
        """All-reduce: every part goes once round to be summed, and once more to be known."""
        chunks = value.view(-1).tensor_split(len(self.ranks))
        yield from self._round(chunks, 0)
        yield from self._pass_on(chunks, (self.place + 1) % len(self.ranks))
        return value

    def ring_scatter(self, value: Tensor) -> Steps:
        """Reduce-scatter: part i ends with member i."""
        chunks = [chunk.clone() for chunk in value.chunk(len(self.ranks))]
        yield from self._round(chunks, -1)
        return chunks[self.place]

    def ring_gather(self, operation: p.Collective, value: Tensor) -> Steps:
        found = [value if place == self.place else torch.empty_like(value) for place in range(len(self.ranks))]
        yield from self._pass_on([one.view(-1) for one in found], self.place)
        return combined(operation, found, self.place)

    def _round(self, chunks: Sequence[Tensor], shift: int) -> Some:
        """Sum every part round the ring, in place: this member ends with part place + 1 + shift."""
        count, place = len(self.ranks), self.place
        after, before = (place + 1) % count, (place - 1) % count
        self.send(after, chunks[(place + shift) % count])
        for step in range(1, count):
            part = chunks[(place + shift - step) % count]
            part.add_((yield from self.receive(before, part)).view(part.shape))
            if step < count - 1:
                self.send(after, part)

    def _pass_on(self, chunks: Sequence[Tensor], mine: int) -> Some:
        """Give every part once round the ring, beginning with this member's own."""
        count, place = len(self.ranks), self.place
        after, before = (place + 1) % count, (place - 1) % count
        for step in range(count - 1):
            self.send(after, chunks[(mine - step) % count])
            part = chunks[(mine - step - 1) % count]
            part.copy_((yield from self.receive(before, part)))

    def broadcast(self, value: Tensor) -> Steps:
        """From the first member: whoever has it sends it to the member half the rest away."""
        span = 1
        while span < len(self.ranks):
            span *= 2
        if self.place:
            span = self.place & -self.place
            value = (yield from self.receive(self.place - span, value)).view(value.shape)
        span //= 2
        while span:
            if self.place + span < len(self.ranks):
                self.send(self.place + span, value)
            span //= 2
        return value


def summed(values: Sequence[Tensor]) -> Tensor:
    """Their sum in the members' order, written over the first."""
    total, *rest = values
    for value in rest:
        total += value
    return total


def message(mesh: Mesh, operation: p.Recv) -> Tensor:
    """The value of a point-to-point transfer."""
    found = mesh.receive(operation.source, MESSAGES, operation.tag)
    return found.view(TORCH_DTYPES[operation.dtype]).view(operation.shape)
