"""Redistribution: from the tiles ranks hold to the tiles ranks need, as a list of point-to-point moves.

All schemes' activation traffic is this one thing: FA Pool's query and KV scatter and its gather, context parallelism's
KV exchange, MA Separation's M:N all-to-all, pipeline boundaries, KV hand-over from prefill to decode. A rank takes
what it holds itself first, then from its own node, then from the sources in turn.

Multicast (Q, K, V to a pool) has three algorithms:
    direct  every rank gets its part straight from the source
    tree    one copy into every other node, then from its leader to the node's ranks: each byte crosses a node's
            border once
    chain   as tree, but the copies pass from node to node, cut in chunks so that the hops overlap
            (pipelined chain: (hops − 2 + c)(α + M/(cβ)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from simulator.placement import Multicast
from simulator.tile import (
    Span,
    Tile,
    intersect,
    intersect_columns,
    intersect_tiles,
    is_empty,
    split_block,
    subtract,
    union,
)


@dataclass(frozen=True, slots=True)
class Holding:
    """A rank and the tile of the value it holds or needs."""

    rank: int
    tile: Tile


@dataclass(frozen=True, slots=True)
class Move:
    """Part ``part`` of holding number ``source`` goes to rank ``to`` and becomes the next holding."""

    source: int
    part: Tile
    to: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Holdings 0..n−1 are the ones given; each move adds one. ``parts[i]``: (holding, tile) that make need i."""

    needs: tuple[Holding, ...]
    holdings: tuple[Holding, ...]
    moves: tuple[Move, ...]
    parts: tuple[tuple[tuple[int, Tile], ...], ...]


@dataclass
class _Draft:
    holdings: list[Holding]
    moves: list[Move] = field(default_factory=list)
    led: dict[int, int] = field(default_factory=dict)

    def move(self, source: int, part: Tile, to: int) -> int:
        self.moves.append(Move(source, part, to))
        self.holdings.append(Holding(to, part))
        return len(self.holdings) - 1

    def leader(self, needs: tuple[Holding, ...], group: list[tuple[int, Tile]]) -> int:
        """The rank of a node that receives a copy for ``group``: another one for each source of the same receivers.

        Counted from the last: under a causal mask the last ranks need every piece, so leaders stay the same."""
        last = needs[group[-1][0]].rank
        turn = self.led[last] = self.led.get(last, -1) + 1
        return needs[group[-1 - turn % len(group)][0]].rank


@lru_cache(maxsize=4096)
def plan(
    held: tuple[Holding, ...],
    needs: tuple[Holding, ...],
    nodes: tuple[int, ...],
    multicast: Multicast,
    chunks: int,
) -> Plan:
    """Moves that give every need its tile. ``nodes[rank]`` is a rank's node."""
    supply = _Supply(held, nodes)
    wanted = [supply.sources(need, turn) for need, turn in zip(needs, _turns(needs), strict=True)]
    draft = _Draft(list(held))
    parts: list[list[tuple[int, Tile]]] = [[] for _ in needs]
    remote: dict[tuple[int, int], list[tuple[int, Tile]]] = {}
    for index, (need, pieces) in enumerate(zip(needs, wanted, strict=True)):
        for source, part in pieces:
            if held[source].rank == need.rank:
                parts[index].append((source, part))
            elif multicast == "direct" or nodes[held[source].rank] == nodes[need.rank]:
                parts[index].append((draft.move(source, part, need.rank), part))
            else:
                remote.setdefault((source, nodes[need.rank]), []).append((index, part))
    if multicast == "chain":
        _chain(draft, parts, needs, remote, chunks)
    else:
        for (source, _), receivers in remote.items():
            _fan_out(draft, parts, needs, source, receivers)
    return Plan(needs, tuple(draft.holdings), tuple(draft.moves), tuple(tuple(part) for part in parts))


class _Supply:
    """Who holds which tile. Of those that hold the same one, a need takes its own rank, then one of its node, then of
    all in turn."""

    def __init__(self, held: tuple[Holding, ...], nodes: tuple[int, ...]) -> None:
        self.held, self.nodes = held, nodes
        self.by_columns: dict[tuple[Span, Span], dict[Tile, _Holders]] = {}
        self.offers: dict[Tile, _Offers] = {}
        self.first: dict[int, int] = {}
        for index, holding in enumerate(held):
            tiles = self.by_columns.setdefault((holding.tile.columns, holding.tile.dims), {})
            holders = tiles.get(holding.tile)
            if holders is None:
                holders = tiles[holding.tile] = _Holders()
            holders.add(index, holding.rank, nodes[holding.rank])
            self.first.setdefault(holding.rank, index)

    def sources(self, need: Holding, turn: int) -> tuple[tuple[int, Tile], ...]:
        """Which holding gives which part of ``need``, the best first where tiles overlap."""
        own = self.first.get(need.rank)
        if own is not None and self.held[own].tile == need.tile:
            return ((own, need.tile),)
        offers, node = self._offers(need.tile), self.nodes[need.rank]
        if offers.disjoint:
            found = [(holders.best(need.rank, node, turn)[2], part) for holders, part in offers.parts]
        else:
            best = sorted(holders.best(need.rank, node, turn) for holders, _ in offers.parts)
            found = self._taken(need.tile, [index for *_, index in best])
        return tuple(sorted(found, key=lambda item: (item[1].columns, item[1].dims, item[0])))

    def _offers(self, tile: Tile) -> _Offers:
        """What every tile held has of ``tile``."""
        offers = self.offers.get(tile)
        if offers is None:
            parts = []
            for (held_columns, held_dims), tiles in self.by_columns.items():
                columns = intersect_columns(held_columns, tile.columns)
                dims = intersect_columns(held_dims, tile.dims)
                if columns is None or dims is None:
                    continue
                for held, holders in tiles.items():
                    block = intersect(held.block, tile.block)
                    if not is_empty(block):
                        parts.append((holders, Tile(columns, block, dims)))
            offers = self.offers[tile] = _Offers(parts, self._disjoint(tile, parts))
        return offers

    def _disjoint(self, tile: Tile, parts: list[tuple[_Holders, Tile]]) -> bool:
        """Whether parts, each as it is, make the tile: parts of all its columns do if they are as many tokens, and
        together are as many (an overlap may be as large as a gap)."""
        if parts and all(part.columns == tile.columns and part.dims == tile.dims for _, part in parts):
            together = replace(tile, block=union([part.block for _, part in parts]))
            return sum(_size(part) for _, part in parts) == _size(tile) == _size(together)
        whole = [(holders.indices[0], part) for holders, part in parts]
        return self._taken(tile, [index for index, _ in whole]) == whole

    def _taken(self, wanted: Tile, order: Sequence[int]) -> list[tuple[int, Tile]]:
        """What each holding gives of ``wanted`` after those before it."""
        found: list[tuple[int, Tile]] = []
        missing = [wanted]
        for index in order:
            rest: list[Tile] = []
            for tile in missing:
                part = intersect_tiles(self.held[index].tile, tile)
                if part is None:
                    rest.append(tile)
                else:
                    found.append((index, part))
                    rest.extend(_remainder(tile, part))
            missing = rest
            if not missing:
                break
        assert not missing or all(is_empty(tile.block) for tile in missing), f"nobody holds {missing} of {wanted}"
        return found


@dataclass(slots=True)
class _Holders:
    """Holdings of one tile, in order; the first of every rank, and the numbers of every node's."""

    indices: list[int] = field(default_factory=list)
    by_rank: dict[int, int] = field(default_factory=dict)
    by_node: dict[int, list[int]] = field(default_factory=dict)

    def add(self, index: int, rank: int, node: int) -> None:
        self.by_rank.setdefault(rank, index)
        self.by_node.setdefault(node, []).append(len(self.indices))
        self.indices.append(index)

    def best(self, rank: int, node: int, turn: int) -> tuple[int, int, int]:
        """(0 own, 1 the node's, 2 another's; places from its turn; the holding)."""
        own, count = self.by_rank.get(rank), len(self.indices)
        if own is not None:
            return 0, 0, own
        near = self.by_node.get(node)
        if near is not None:
            number = min(near, key=lambda number: (number - turn) % count)
            return 1, (number - turn) % count, self.indices[number]
        return 2, 0, self.indices[turn % count]


@dataclass(frozen=True, slots=True)
class _Offers:
    """Holders and their part of a wanted tile; ``disjoint``: no two parts overlap, so all are taken."""

    parts: list[tuple[_Holders, Tile]]
    disjoint: bool


def _turns(needs: tuple[Holding, ...]) -> list[int]:
    """Of every need: its number among those of the same columns."""
    asked: dict[tuple[Span, Span], int] = {}
    turns = []
    for need in needs:
        columns = (need.tile.columns, need.tile.dims)
        asked[columns] = asked.get(columns, -1) + 1
        turns.append(asked[columns])
    return turns


def _remainder(tile: Tile, part: Tile) -> list[Tile]:
    """``tile`` without ``part``, as tiles."""
    rest = []
    if tile.columns[0] < part.columns[0]:
        rest.append(replace(tile, columns=(tile.columns[0], part.columns[0])))
    if part.columns[1] < tile.columns[1]:
        rest.append(replace(tile, columns=(part.columns[1], tile.columns[1])))
    if tile.dims[0] < part.dims[0]:
        rest.append(Tile(part.columns, tile.block, (tile.dims[0], part.dims[0])))
    if part.dims[1] < tile.dims[1]:
        rest.append(Tile(part.columns, tile.block, (part.dims[1], tile.dims[1])))
    block = subtract(tile.block, part.block)
    if not is_empty(block):
        rest.append(replace(part, block=block))
    return rest


def _by_columns(receivers: Sequence[tuple[int, Tile]]) -> list[list[tuple[int, Tile]]]:
    groups: dict[tuple[Span, Span], list[tuple[int, Tile]]] = {}
    for index, part in receivers:
        groups.setdefault((part.columns, part.dims), []).append((index, part))
    return list(groups.values())


def _union(receivers: Sequence[tuple[int, Tile]]) -> Tile:
    return replace(receivers[0][1], block=union([part.block for _, part in receivers]))


def _fan_out(
    draft: _Draft,
    parts: list[list[tuple[int, Tile]]],
    needs: tuple[Holding, ...],
    source: int,
    receivers: list[tuple[int, Tile]],
) -> None:
    """One copy of everything a node's receivers need to a leader (another for each source), then to the others."""
    for group in _by_columns(receivers):
        if len(group) == 1:
            index, part = group[0]
            parts[index].append((draft.move(source, part, needs[index].rank), part))
            continue
        leader = draft.leader(needs, group)
        copy = draft.move(source, _union(group), leader)
        _deliver(draft, parts, needs, copy, leader, group)


def _deliver(
    draft: _Draft,
    parts: list[list[tuple[int, Tile]]],
    needs: tuple[Holding, ...],
    copy: int,
    leader: int,
    group: list[tuple[int, Tile]],
) -> None:
    for index, part in group:
        if needs[index].rank == leader:
            parts[index].append((copy, part))
        else:
            parts[index].append((draft.move(copy, part, needs[index].rank), part))


def _chain(
    draft: _Draft,
    parts: list[list[tuple[int, Tile]]],
    needs: tuple[Holding, ...],
    remote: dict[tuple[int, int], list[tuple[int, Tile]]],
    chunks: int,
) -> None:
    """Source → leader of the node that needs most → leader of the next …, chunk by chunk; leaders serve their node."""
    chains: dict[tuple[int, Span, Span], list[list[tuple[int, Tile]]]] = {}
    for (source, _), receivers in remote.items():
        for group in _by_columns(receivers):
            chains.setdefault((source, group[0][1].columns, group[0][1].dims), []).append(group)
    for (source, columns, dims), groups in chains.items():
        groups.sort(key=lambda group: (-_size(_union(group)), -group[0][0]))
        everything = union([_union(group).block for group in groups])
        hops = [(draft.leader(needs, group), group) for group in groups]
        for piece in split_block(everything, chunks):
            _chain_piece(draft, parts, needs, source, Tile(columns, piece, dims), hops)


def _chain_piece(
    draft: _Draft,
    parts: list[list[tuple[int, Tile]]],
    needs: tuple[Holding, ...],
    source: int,
    piece: Tile,
    hops: list[tuple[int, list[tuple[int, Tile]]]],
) -> None:
    copy = source
    for number, (leader, receivers) in enumerate(hops):
        onward = replace(piece, block=intersect(piece.block, union([_union(g).block for _, g in hops[number:]])))
        if is_empty(onward.block):
            return
        group = [
            (index, replace(piece, block=intersect(piece.block, part.block)))
            for index, part in receivers
            if not is_empty(intersect(piece.block, part.block))
        ]
        copy = draft.move(copy, onward, leader)
        _deliver(draft, parts, needs, copy, leader, group)


def _size(tile: Tile) -> int:
    return sum(stop - start for spans in tile.block for start, stop in spans)
