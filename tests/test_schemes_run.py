"""Every scheme of the lattice runs to its end on the engine, and the links carry exactly the bytes it planned."""

from __future__ import annotations

import pytest

from simulator.cluster import Fabric
from simulator.lowering import lower
from simulator.placement import AttentionGrid, Placement
from simulator.program import Collective, Program, Recv, Send
from simulator.simulation.critical_path import critical_path, path_times
from simulator.simulation.engine import run
from simulator.workload import Sequences, Step, decode_step
from tests.hand_made import cluster, durations
from tests.schemes import pooled, tiny_model
from tests.test_lowering import MOE, RAGGED, placements

MACHINE = cluster(4, 3, link=10e9, latency_s=1e-6, nic_latency_s=2e-6, fabric=Fabric(latency_s=1e-6))
NODES = tuple(node for node, _, _ in MACHINE.rank_nodes())
DENSE = tiny_model()
GRID = AttentionGrid(heads=(8,), query_blocks=4)
PLACEMENTS = [(DENSE, placement) for placement in placements(DENSE)] + [
    (MOE, placement) for placement in placements(MOE)[-2:]
]


def lowered(model: object, placement: Placement, step: Step) -> Program:
    return lower(model, step, placement, nodes=NODES)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [RAGGED, decode_step(6, 40)], ids=["prefill", "decode"])
@pytest.mark.parametrize(("model", "placement"), PLACEMENTS, ids=lambda value: value.name)
def test_every_scheme_runs_to_its_end_and_sends_what_it_planned(
    model: object, placement: Placement, step: Step
) -> None:
    program = lowered(model, placement, step)
    timeline = run(program, MACHINE, durations(program, 10e-6))
    sent = sum(o.num_bytes for operations in program.ranks for o in operations if isinstance(o, Send))
    received = sum(o.num_bytes for operations in program.ranks for o in operations if isinstance(o, Recv))
    assert sent == received
    path = critical_path(timeline)
    assert path_times(path).total_s == pytest.approx(timeline.duration_s)
    if not any(isinstance(o, Collective) for operations in program.ranks for o in operations):
        out = sum(
            units
            for resource, units in zip(timeline.resources, timeline.resource_units, strict=True)
            if resource.name.endswith("out")
        )
        assert out == pytest.approx(sent)


def test_two_micro_batches_of_a_pool_overlap_and_one_cannot() -> None:
    """Feed-forward of one micro-batch runs while the pool attends for the other: less than twice one alone."""
    step = Step("prefill", (Sequences(2, 0, 64),))
    one = lowered(DENSE, pooled(DENSE, 4, GRID), step)
    two = lowered(DENSE, pooled(DENSE, 4, GRID, micro_batches=2), step)
    alone = run(one, MACHINE, durations(one, 1e-3)).duration_s
    # every operation of half the batch takes half as long, so without overlap the step would take `alone`
    assert run(two, MACHINE, durations(two, 0.5e-3)).duration_s < 0.8 * alone
