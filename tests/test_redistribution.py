"""Redistribution: needs are met from what ranks hold, and what nobody holds is never made up."""

from __future__ import annotations

import pytest

from simulator.lowering.redistribution import Holding, plan
from simulator.tile import Span, Tile

NODES = (0, 0, 0)


def rows(rank: int, *spans: Span) -> Holding:
    return Holding(rank, Tile((0, 4), (spans,)))


def test_parts_that_make_the_tile_are_all_sent() -> None:
    made = plan((rows(0, (0, 4)), rows(1, (4, 8))), (rows(2, (0, 8)),), NODES, "direct", 1)
    assert [(move.source, move.part.block, move.to) for move in made.moves] == [
        (0, (((0, 4),),), 2),
        (1, (((4, 8),),), 2),
    ]


def test_an_overlap_does_not_stand_for_a_gap_of_its_size() -> None:
    with pytest.raises(AssertionError, match="nobody holds"):
        plan((rows(0, (0, 4)), rows(1, (2, 6))), (rows(2, (0, 8)),), NODES, "direct", 1)


def test_tokens_that_two_hold_are_sent_once() -> None:
    made = plan((rows(0, (0, 5)), rows(1, (3, 8))), (rows(2, (0, 8)),), NODES, "direct", 1)
    assert sum(stop - start for move in made.moves for spans in move.part.block for start, stop in spans) == 8
