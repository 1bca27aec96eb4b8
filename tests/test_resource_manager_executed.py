"""The resource manager on real processes: placements switch with the longest sequence, tokens stay the reference's."""

from __future__ import annotations

import pytest

from executor.reference import Reference
from executor.resource_manager import Batch, Entry, ResourceManager, Serving, rules_of
from executor.session import prompts_of
from executor.supervisor import Supervisor
from simulator.errors import SpecError
from simulator.placement import AttentionGrid
from simulator.serving.log import ServedBatch
from simulator.serving.pool_policy import PoolRules
from simulator.serving.resource_manager import BatchEnded, BatchFormed, Start, decide, idle_pool
from tests.schemes import pooled, static, tiny_model

MODEL = tiny_model()
BASE = static(MODEL, 2)
ENTRIES = (
    Entry("prefill", 0, BASE),
    Entry("prefill", 16, pooled(MODEL, 2, AttentionGrid(heads=(8,), query_blocks=1))),
    Entry("prefill", 32, pooled(MODEL, 2, AttentionGrid(heads=(8,), query_blocks=2))),
    Entry("decode", 0, BASE),
    Entry("decode", 32, pooled(MODEL, 2, AttentionGrid(heads=(8,), kv_blocks=2))),
)
BATCHES = [
    Batch((5, 9), 3),
    Batch((40, 7, 12), 3),
    Batch((33,), 2),
    Batch((20, 20), 3),
    Batch((8,), 0),
    Batch((50,), 1),
]
POOLS = [(0, 0), (2, 2), (2, 2), (1, 0), (0, 0), (2, 2)]


def manager(rules: PoolRules | None = None) -> ResourceManager:
    return ResourceManager(ENTRIES, rules or rules_of(ENTRIES))


def test_batches_of_different_lengths_switch_placements_and_keep_the_references_tokens(world: Supervisor) -> None:
    serving = Serving(MODEL, manager(), world, nodes=(0,) * 4, dtype="fp32")
    assert serving.warm() > 0
    reference, served = Reference(MODEL), []
    for generation, batch in serving.run(BATCHES):
        want = reference.generate(prompts_of(generation), len(generation.programs))
        assert [list(row) for row in batch.generated] == want
        served.append(batch)
    assert [(batch.prefill_pool_gpus, batch.decode_pool_gpus) for batch in served] == POOLS
    assert_changes_tell_the_story(served)
    first = served[0].switch_s  # makes the base's weights; a later change to a pool finds groups and weights made
    assert min(batch.switch_s for batch in served[1:]) < first
    assert all(batch.ttft_s > batch.switch_s > 0 for batch in served)
    assert [batch.tpot_s is None for batch in served] == [not batch.decoded_tokens for batch in BATCHES]


def assert_changes_tell_the_story(served: list[ServedBatch]) -> None:
    """0 → 2 for the second batch, held by the third, down to 1 and then 0 for the fourth, up to 2 for the last."""
    told = [[(c.phase, c.what, c.before_gpus, c.after_gpus) for c in batch.changes] for batch in served]
    assert told == [
        [],
        [("prefill", "activated", 0, 2)],
        [],
        [("prefill", "released", 2, 1), ("decode", "released", 1, 0)],
        [],
        [("prefill", "activated", 0, 2)],
    ]


def test_the_simulators_function_decides_and_hysteresis_holds_at_run_time() -> None:
    rules = PoolRules(pool_gpus=2, prefill=rules_of(ENTRIES).prefill, decode=rules_of(ENTRIES).decode, band=0.25)
    running = manager(rules)
    sizes = []
    for longest in (40, 25, 20):  # a held pool of 2 is kept down to 0.75 × 32 = 24 tokens
        placed = running.form(longest)
        sizes.append(placed.prefill.pool_gpus)
        running.end()
    assert sizes == [2, 2, 1]
    state, expected = idle_pool(rules), []
    for longest in (40, 25, 20):
        for phase in ("prefill", "decode"):
            state, decisions = decide(state, BatchFormed(0, 0, phase, longest), rules)  # type: ignore[arg-type]
            expected += [d.pool_gpus for d in decisions if isinstance(d, Start) and phase == "prefill"]
            state, _ = decide(state, BatchEnded(0, 0), rules)
    assert expected == sizes


def test_work_that_ends_gives_the_pool_back() -> None:
    running = manager()
    running.form(40)
    running.end()
    assert [(change.what, change.after_gpus) for change in running.release()] == [("released", 0)]


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(SpecError, match="no decode entry"):
        rules_of(ENTRIES[:2])
    with pytest.raises(SpecError, match="lengths \\[0\\]"):
        Batch((0,), 1)
