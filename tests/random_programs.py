"""Random programs of four ranks: kernels, messages and all-reduces that read what their ranks wrote last."""

from __future__ import annotations

from hypothesis import strategies as st

from simulator.program import Operation, Program
from tests.hand_made import collective, compute, program, recv, send
from tests.played import MB

SHAPES = st.lists(
    st.tuples(
        st.sampled_from(["compute", "message", "collective"]), st.integers(0, 3), st.integers(1, 3), st.integers(0, 9)
    ),
    min_size=1,
    max_size=14,
)
"""(what, rank, distance to the peer, size): steps of a random program; a step reads what its ranks wrote last."""


def random_program(shape: list[tuple[str, int, int, int]], order: tuple[int, ...] = (0, 1, 2, 3)) -> Program:
    """Four ranks; rank r of the shape is ``order[r]`` of the program."""
    lists: list[list[Operation]] = [[], [], [], []]
    last = [[f"v{rank}"] for rank in range(4)]
    for step, (what, rank, distance, size) in enumerate(shape):
        here, there = order[rank], order[(rank + distance) % 4]
        if what == "compute":
            lists[here].append(compute(last[here] if size % 2 else [], [f"s{step}"]))
            last[here] = [f"s{step}"]
        elif what == "message":
            lists[here].append(send(there, last[here][0], size * MB, tag=step))
            lists[there].append(recv(here, f"s{step}", size * MB, tag=step))
            last[there] = [f"s{step}"]
        else:
            group = (here, there)
            for one in group:
                lists[one].append(collective(group, size * MB, reads=last[one], writes=[f"s{step}"], tag=step))
                last[one] = [f"s{step}"]
    return program(*lists)
